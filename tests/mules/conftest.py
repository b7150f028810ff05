"""Model folders, and imports that end with their test."""

import sys

import pytest

from serving.model import ModelFolder


@pytest.fixture(autouse=True)
def own_imports(tmp_path_factory):
    """What a model.py imported, and its place in sys.path, is for its test alone."""
    path, base = list(sys.path), str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    """A model folder with these files: their names with _ for the dot."""

    def write(**files):
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            (tmp_path / f"{stem}.{suffix}").write_text(text)
        return ModelFolder.find(tmp_path)

    return write
