"""What a library raises over a file: a sentence, unless it may pass."""

import errno
import logging
import warnings
from pathlib import Path

import pytest

from mules.engines.files import reading
from serving.errors import ModelError

FILE = Path("model.x")


class ResourceExhaustedError(Exception):
    """As TensorFlow calls it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "the disk does not answer"),
        ResourceExhaustedError("the accelerator is full"),
        ModelError("a sentence already"),
        KeyboardInterrupt(),
    ],
)
def test_what_may_pass_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, reading(FILE):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("\n  the first line \nthe second"), "is broken or of another kind: the first line"),
        # as HDF5 says it
        (OSError("truncated file"), "is broken or of another kind: truncated file"),
        (KeyError(), "is broken or of another kind: KeyError"),
        (ModuleNotFoundError(name="a.b"), "needs the module a.b, which is not installed: install it beside the server"),
    ],
)
def test_anything_else_is_a_sentence(error, told):
    with pytest.raises(ModelError) as caught, reading(FILE):
        raise error
    assert str(caught.value).startswith("model.x ") and str(caught.value).endswith(told)


def test_what_a_library_warns_of_goes_to_the_log(caplog):
    with caplog.at_level(logging.INFO), reading(FILE):
        warnings.warn("this will change", FutureWarning, stacklevel=1)
    assert "model.x: FutureWarning: this will change" in caplog.text
