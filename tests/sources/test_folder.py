"""Folders of this machine, which are served where they are."""

import os

import pytest

import sources
from serving.errors import SourceError
from serving.model import ModelFolder
from tests.sources.test_store import below


@pytest.fixture
def root(tmp_path):
    for name in ("2/model.py", "010/model.py", "9/assets/x", "model.toml"):
        file = tmp_path / "digits" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}")
    return tmp_path / "digits"


def test_version_folders_are_versions_as_for_the_server(root, store):
    source = sources.open(str(root))
    assert (source.name, sorted(store.look(source).identities)) == ("digits", [2, 9, 10])
    assert max(source.versions().identities) == ModelFolder.find(root).version
    assert sorted(sources.open(str(root / "2")).versions().identities) == [1]


def test_nothing_is_fetched(root, store):
    source = sources.open(str(root))
    assert store.fetch(source, 10) == root
    assert below(store.root / "objects") == []


def test_an_identity_changes_with_its_own_files_and_those_beside_it(root):
    source = sources.open(str(root))
    before = source.versions().identities
    assert source.versions().identities == before
    os.utime(root / "9" / "assets" / "x", (1, 1))
    after = source.versions().identities
    assert {version for version in after if after[version] != before[version]} == {9}
    (root / "sample.json").touch()
    beside = source.versions().identities
    assert all(beside[version] != after[version] for version in after)


@pytest.mark.parametrize(("name", "told"), [("missing", "does not exist"), ("model.toml", "is not a folder")])
def test_what_is_no_folder_is_told(root, name, told):
    with pytest.raises(SourceError, match=f"{name}: it {told}; set MODEL to a folder that holds a model, or to a URL"):
        sources.open(str(root / name)).versions()
