"""What holds for a model in a bucket, whoever keeps it.

A test class gives the fixtures bucket, with url, put({key: content}) and delete(key), and said.
"""

import io
import tarfile

import pytest

import sources
from serving.errors import SourceError
from serving.model import ModelFolder
from tests.sources.test_store import below, bring


class BucketContract:
    @pytest.fixture
    def open(self, bucket, said):
        """The source of a key."""
        return lambda key: sources.open(f"{bucket.url}/{key}", said.append)

    @pytest.fixture
    def fetch(self, open, store):
        return lambda key, version: bring(store, open(key), version)

    def test_version_folders_are_versions_and_one_is_fetched_alone(self, bucket, open, fetch):
        bucket.put({"digits/1/model.py": b"one", "digits/2/model.py": b"two", "digits/2/assets/x": b""})
        bucket.put({"digits/010/model.py": b"ten", "digits/model.toml": b"", "digits-2/3/model.py": b"other"})
        assert sorted(open("digits").versions().identities) == [1, 2, 10]
        path = fetch("digits/", 2)
        model = ModelFolder.find(path)
        assert (model.name, model.version, model.path, model.root) == ("digits", 2, path / "2", path)
        assert (path.name, below(path)) == ("digits", ["2", "2/assets", "2/assets/x", "2/model.py", "model.toml"])
        assert (path / "2" / "model.py").read_bytes() == b"two"
        assert below(fetch("digits", 10)) == ["10", "10/model.py", "model.toml"]

    def test_a_model_without_version_folders_is_version_1(self, bucket, fetch):
        bucket.put({"a/letters/saved_model.pb": b"graph", "a/letters/variables/v.index": b"", "a/letters/": b""})
        path = fetch("a/letters", 1)
        assert (path.name, below(path)) == ("letters", ["1", "1/saved_model.pb", "1/variables", "1/variables/v.index"])

    def test_an_archive_is_unpacked_as_an_object_or_alone_in_a_folder(self, bucket, fetch):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            header = tarfile.TarInfo("digits/model.py")
            header.size = 3
            tar.addfile(header, io.BytesIO(b"one"))
        bucket.put({"digits.tar.gz": packed.getvalue(), "job/output/model.tar.gz": packed.getvalue()})
        path = fetch("digits.tar.gz", 1)
        assert (path.name, below(path)) == ("digits", ["1", "1/model.py"])
        assert below(fetch("job/output", 1)) == ["1", "1/model.py"]

    def test_one_file_may_be_a_model(self, bucket, fetch):
        bucket.put({"digits.onnx": b"graph"})
        path = fetch("digits.onnx", 1)
        assert (path.name, below(path)) == ("digits", ["1", "1/digits.onnx"])

    def test_an_identity_changes_with_its_own_content_alone(self, bucket, open):
        bucket.put({"changing/1/model.py": b"one", "changing/2/model.py": b"two"})
        before = open("changing").versions().identities
        assert open("changing").versions().identities == before
        bucket.put({"changing/2/model.py": b"owt"})
        after = open("changing").versions().identities
        assert (after[1] == before[1], after[2] == before[2]) == (True, False)
        bucket.put({"changing/model.toml": b""})
        beside = open("changing").versions().identities
        assert after[1] != beside[1] and after[2] != beside[2]

    def test_what_changed_is_fetched_anew_under_the_same_number(self, bucket, fetch):
        bucket.put({"same/model.py": b"one"})
        first = fetch("same", 1)
        bucket.put({"same/model.py": b"two"})
        second = fetch("same", 1)
        assert [(path / "1" / "model.py").read_bytes() for path in (first, second)] == [b"one", b"two"]

    def test_a_model_of_many_files_is_whole(self, bucket, fetch):
        # more than servers list at once
        bucket.put({f"many/{number}": b"%d" % number for number in range(25)})
        path = fetch("many", 1)
        assert {int(file.name) for file in (path / "1").iterdir()} == set(range(25))
        assert all(file.read_text() == file.name for file in (path / "1").iterdir())

    @pytest.mark.parametrize("key", ["nothing", "nothing.tar.gz", "nothing/below"])
    def test_a_key_without_a_model_is_told(self, bucket, open, key):
        bucket.put({"other": b""})
        with pytest.raises(
            SourceError, match=rf"/{key}: there is nothing in bucket \w+ under '{key}'; correct the key"
        ):
            open(key).versions()

    def test_a_bucket_that_there_is_not_is_told(self, bucket):
        url = f"{bucket.url.partition('://')[0]}://missing-bucket/digits"
        with pytest.raises(SourceError, match=rf"{url}: there is no bucket missing-bucket or no such"):
            sources.open(url).versions()

    def test_an_address_without_a_bucket_is_refused(self, bucket):
        scheme = bucket.url.partition("://")[0]
        with pytest.raises(SourceError, match=f"it names no bucket; an address is {scheme}://bucket/key"):
            sources.open(f"{scheme}:///digits")
