"""What all sources share: names, safe paths, what is never shown, and what is missing."""

import sys

import pytest

import sources
from serving.errors import SourceError
from sources.source import inside, model_name, reason, shown


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/models/digits", "digits"),
        ("s3://bucket/models/digits/", "digits"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/models/v1.2", "v1.2"),
        ("s3://bucket/models/digits.v2", "digits.v2"),
        ("s3://bucket/models/my.model/", "my.model"),
        ("gs://bucket/digits.onnx", "digits"),
        ("https://me:hush@host/a/digits.tar.gz?signature=1#sha256=2", "digits"),
        ("https://host/Digits.TGZ", "Digits"),
        ("https://host/a%20b%2Fc.zip", "c"),
        ("https://host/..", "model"),
        ("https://host/.hidden", ".hidden"),
    ],
)
def test_a_model_is_called_like_the_last_part_of_its_url(url, name):
    assert model_name(url) == name


def test_what_may_be_secret_is_not_shown():
    assert shown("https://me:hush@host:1/a/b.zip?X-Amz-Signature=hush#sha256=0") == "https://host:1/a/b.zip"
    assert shown("s3://bucket/key") == "s3://bucket/key"
    assert shown("models:/digits@champion") == "models:/digits@champion"


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../b", "a\0"])
def test_a_name_that_leads_out_of_its_folder_is_none(tmp_path, name):
    with pytest.raises(ValueError, match="is no path inside a folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a b", "~", "a\\b", "ä"])
def test_other_names_are_inside(tmp_path, name):
    assert inside(tmp_path, name).relative_to(tmp_path).as_posix() == name


def test_a_reason_has_the_words_of_the_system_and_not_of_a_library():
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise RuntimeError("https://host/?signature=hush") from error
    except RuntimeError as error:
        assert reason(error) == "Connection refused"
    assert reason(KeyError("hush")) == "key error"


@pytest.mark.parametrize("url", ["ftp://host/a", "hdfs://host/a", "file:///a", "c:/a"])
def test_another_scheme_is_refused(url):
    scheme = url.partition(":")[0]
    with pytest.raises(
        SourceError, match=f"^{scheme}: is nothing that models come from; a folder, s3://, gs://, https"
    ):
        sources.open(url)


@pytest.mark.parametrize(
    ("text", "url"), [("models/digits", False), ("/a:/b", False), ("models:/a", True), ("S3://a", True)]
)
def test_a_url_is_told_from_a_path(text, url):
    assert sources.is_url(text) is url


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("s3://bucket/digits", "boto3", "s3"),
        ("gs://bucket/digits", "google", "gs"),
        ("models:/digits", "mlflow", "mlflow"),
        ("runs:/1/digits", "mlflow", "mlflow"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, url, library, extra):
    # as the import system says of what is not installed
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    told = (
        rf"^{url} needs {library}, which is not installed: .venv/bin/pip install -c constraints.txt -e '.\[{extra}\]'$"
    )
    with pytest.raises(SourceError, match=told):
        sources.open(url)
