"""What a model folder's files hold: artifacts that libraries read, and code of the user's.

Runs in:  mule.
Raises:   ModelError, in one sentence, where a file is broken or needs what is not there.
"""

import contextlib
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.errors import ModelError

# that the accelerator's memory is full, as TensorFlow and PyTorch call it
_FULL = ("ResourceExhaustedError", "OutOfMemoryError")

log = logging.getLogger("muleteer.engines")


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Make one sentence of whatever a library raises over a file.

    What may pass, a full memory or a disk that does not answer, stays what it is, and the load is tried again.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            _check_version(file, told)
            if isinstance(error, ModelError | MemoryError) or type(error).__name__ in _FULL or _of_system(error):
                raise
            raise ModelError(_sentence(file, error)) from error
    _check_version(file, told)
    for warning in told:
        log.info("%s: %s: %s", file, warning.category.__name__, first_line(warning.message))


def extra(module: str, name: str, file: Path) -> Any:
    """A library that only some models need, of the extra of that name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(f"{file} needs {error.name}, which is not installed: pip install '.[{name}]'") from error


def imported(file: Path) -> ModuleType:
    """The module of a file of the user's.  Those beside it can be imported, and classes of it pickled."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def _of_system(error: Exception) -> bool:
    # libraries raise OSError, without a number, for what they cannot read
    return isinstance(error, OSError) and error.errno is not None


def _sentence(file: Path, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{file} needs the module {error.name}, which is not installed: install it beside the server"
    return f"{file} cannot be read, it is broken or of another kind: {first_line(error)}"


def first_line(error: BaseException | str) -> str:
    """What an error says, as a part of a sentence."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_version(file: Path, told: list[warnings.WarningMessage]) -> None:
    """Refuse what scikit-learn says another version of it has written; it need not be imported to say so."""
    for warning in told:
        if warning.category.__name__ == "InconsistentVersionWarning":
            found: Any = warning.message
            raise ModelError(
                f"{file} was written by scikit-learn {found.original_sklearn_version}, and"
                f" {found.current_sklearn_version} is installed, which may read it wrongly: install"
                f" scikit-learn=={found.original_sklearn_version}, or write the file anew"
            )
