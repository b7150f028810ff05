"""uwsgi.ini with other numbers in it: the lines that name them change, and nothing else does.

Runs in:  the command line.
Raises:   IniError, in one sentence.
"""

import difflib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from serving.errors import SettingsError
from serving.settings import Settings

# (section, key)
Lines = Mapping[tuple[str, str], int]

_SECTION = re.compile(r"\s*\[(?P<name>[^\]]+)\]\s*")
_LINE = re.compile(r"(?P<before>\s*(?P<key>[\w-]+)\s*=\s*)(?P<value>.*?)(?P<after>\s*)")
# what the environment says instead, between if-env and endif
_FROM_ENVIRONMENT = "%(_)"
_VARIABLES = {"mules": "MULES", "processes": "WORKERS", "threads": "THREADS", "queue": "QUEUE"}


class IniError(Exception):
    """The file cannot be written, in one sentence."""


def rewritten(text: str, lines: Lines) -> str:
    """The text with these numbers: each in its first line that has one of its own, or at the end of its section."""
    found: list[str] = []
    left, section = dict(lines), ""
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        if header := _SECTION.fullmatch(body):
            found += _missing(found, left, section)
            section = header["name"]
        elif (match := _LINE.fullmatch(body)) and match["value"] != _FROM_ENVIRONMENT:
            value = left.pop((section, match["key"]), None)
            if value is not None:
                line = f"{match['before']}{value}{match['after']}{line[len(body) :]}"
        found.append(line)
    found += _missing(found, left, section)
    for (section, key), value in left.items():
        raise IniError(f"there is no [{section}] for {key} = {value}")
    return "".join(found)


def _missing(before: list[str], left: dict[tuple[str, str], int], section: str) -> list[str]:
    """What a section that ends here does not have."""
    missing = {key: left.pop((section, key)) for wanted, key in list(left) if wanted == section}
    if missing and before and not before[-1].endswith("\n"):
        before[-1] += "\n"
    return [f"{key} = {value}\n" for key, value in missing.items()]


def difference(old: str, new: str, name: str) -> str:
    """As `diff -u` prints it, without the values of what is secret."""
    before, after = (_hidden(text).splitlines(True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, name, f"{name} (tuned)"))


def _hidden(text: str) -> str:
    secrets = "|".join(setting.name for setting in fields(Settings) if not setting.repr)
    return re.sub(rf"(?m)^(\s*(?:{secrets})[^\S\n]*=[^\S\n]*)\S.*$", r"\1…", text)


def overridden(lines: Lines, environ: Mapping[str, str]) -> list[str]:
    """The variables that come before what the file will say."""
    names = [_VARIABLES.get(key, f"SERVING_{key.upper()}") for _, key in lines]
    return [name for name in names if name in environ]


def write(file: Path, old: str, lines: Lines, environ: Mapping[str, str]) -> None:
    """Put the numbers into a file that still has its old text, all at once; the server must take what it says then."""
    # a link stays one
    file = file.resolve()
    new = rewritten(old, lines)
    try:
        if file.read_text() != old:
            raise IniError(f"{file} has changed since the measurement began; run tune again")
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        fresh = Path(name)
        try:
            with os.fdopen(descriptor, "w") as out:
                out.write(new)
            _check(fresh, lines, environ)
            shutil.copystat(file, fresh)
            about = file.stat()
            os.chown(fresh, about.st_uid, about.st_gid)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise IniError(f"{file} cannot be written: {error.strerror}; apply the difference by hand") from error


def _check(file: Path, lines: Lines, environ: Mapping[str, str]) -> None:
    """Raise IniError unless the file is read as it is meant."""
    own = {key: value for key, value in environ.items() if key not in overridden(lines, environ)}
    try:
        settings = Settings.read(file, own)
    except SettingsError as error:
        raise IniError(f"the server would refuse what was found, and nothing is written: {error}") from error
    for (_, key), value in lines.items():
        if getattr(settings, key.replace("-", "_")) != value:
            raise IniError(f"{key} = {value} would not be read from {file.name}, and nothing is written")
