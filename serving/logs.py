"""The logs of all processes in one form: a JSON object for each line, or text for who reads it on a terminal.

What others print, as uWSGI, nginx and a framework's C++, is read from a pipe by the supervisor, which gives it that
form; our own processes write for themselves, and no model waits for a reader.  nginx writes the access log.

Runs in:  both, and in the supervisor.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TextIO

# to uWSGI, by its environment: the form, and the file that is the log
_FORM, _FD = "MULETEER_LOG_FORM", "MULETEER_LOG_FD"
_COLOURS = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}
# of nginx: 2026/01/31 12:00:00 [crit] 12#12: *3 text; of absl: E0131 12:00:00.123456 12 file.cc:1] text, and of older
# TensorFlow: 2026-01-31 12:00:00.123456: E file.cc:1] text
_NGINX = re.compile(r"\d{4}/\d\d/\d\d [\d:]{8} \[(\w+)\] (\d+)#\d+: (.*)")
_ABSL = re.compile(r"(?:\d{4}-\d\d-\d\d [\d:.]+: )?([IWEF])(?:\d{4} [\d:.]+ +\d+)? (\S+:\d+\] .*)")
_LEVELS = {
    **{"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL},
    **{"debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warn": logging.WARNING},
    **{"error": logging.ERROR, "crit": logging.CRITICAL, "alert": logging.CRITICAL, "emerg": logging.CRITICAL},
}
# what a client has sent may be in a text, and is not to move the cursor of who reads it on a terminal
_SHOWN = {sign: f"\\x{sign:02x}" for sign in (*range(32), *range(127, 160)) if chr(sign) not in "\t\n"}
# of one line; what is longer becomes several
_MOST_BYTES = 1 << 16


class Form(StrEnum):
    """How a line of the log looks."""

    JSON = "json"
    TEXT = "text"
    COLOUR = "colour"


def choose(log_format: str, terminal: bool, environ: Mapping[str, str]) -> Form:
    """The form for log_format; terminal: whether somebody reads it as it is written."""
    if log_format == "json" or (log_format == "auto" and not terminal):
        return Form.JSON
    return Form.COLOUR if terminal and not environ.get("NO_COLOR") else Form.TEXT


class JsonFormatter(logging.Formatter):
    """A record as one JSON object."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": getattr(record, "of", self._process),
            "pid": getattr(record, "pid", record.process),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", None),
            **getattr(record, "about", {}),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in told.items() if value is not None}, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A record as a line to read, and its traceback below it."""

    def __init__(self, process: str, colours: bool) -> None:
        super().__init__()
        self._process = process
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        level = record.levelname.ljust(7)
        process = getattr(record, "of", self._process)
        about = f" ({record.request_id})" if hasattr(record, "request_id") else ""
        if self._colours:
            when, process, about = (f"\x1b[2m{text}\x1b[0m" if text else "" for text in (when, process, about))
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        told = f"{when} {level} {process}  {record.getMessage().translate(_SHOWN)}{about}"
        return f"{told}\n{self.formatException(record.exc_info).translate(_SHOWN)}" if record.exc_info else told


class Log(logging.StreamHandler[TextIO]):
    """Where a process writes its records, each by one write."""

    def __init__(self, form: Form, fd: int, process: str) -> None:
        # what is no Unicode, as of a file's name, is a question mark
        super().__init__(os.fdopen(fd, "w", encoding="utf-8", errors="replace", closefd=False))
        self.form, self.fd = form, fd
        self.rename(process)

    def rename(self, process: str) -> None:
        """From now on this is another process: one that has been forked."""
        json_like = self.form is Form.JSON
        self.setFormatter(JsonFormatter(process) if json_like else TextFormatter(process, self.form is Form.COLOUR))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk, or a reader that has gone, is no reason to print more."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def start(log: Log, level: str) -> Log:
    """Let all loggers of this process write there."""
    logging.basicConfig(level=level.upper(), handlers=[log], force=True)
    return log


def told(log: Log) -> dict[str, str]:
    """The environment that tells a child where to log, and how."""
    return {_FORM: log.form.value, _FD: str(log.fd)}


def heard(environ: Mapping[str, str], process: str) -> Log:
    """The log that the parent told of, or standard error."""
    fd = int(environ.get(_FD, "2"))
    try:
        os.fstat(fd)
    except OSError:
        # uWSGI was told to start itself anew, and has closed it
        fd = 2
    return Log(Form(environ.get(_FORM, Form.JSON)), fd, process)


def read(line: str) -> str:
    """A line of the log as text to read: the message, and the traceback below it."""
    try:
        told = json.loads(line)
        return "\n".join([f"{told['process']}: {told['message']}", *told.get("exception", "").splitlines()])
    except (ValueError, TypeError, KeyError):
        return line


class Pipe:
    """What a program prints, line by line as records of a log."""

    def __init__(self, log: Log, program: str) -> None:
        self._log, self._program = log, program
        self._end, self.fd = os.pipe()
        self._thread = threading.Thread(target=self._read, name=f"log of {program}", daemon=True)

    def start(self) -> None:
        """The program has been started: read until it, and all that it has started, have ended."""
        os.close(self.fd)
        self._thread.start()

    def is_open(self) -> bool:
        """Whether somebody may still print."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Until all is read."""
        self._thread.join(timeout_s)

    def _read(self) -> None:
        rest = b""
        while found := os.read(self._end, _MOST_BYTES):
            *lines, rest = (rest + found).split(b"\n")
            if len(rest) >= _MOST_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._tell(line)
        self._tell(rest)
        os.close(self._end)

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._log.handle(record(self._program, text))


def record(program: str, text: str) -> logging.LogRecord:
    """What a program has printed; the level is its own where that is known."""
    level, pid = logging.INFO, None
    if match := _NGINX.fullmatch(text):
        level, pid, text = _LEVELS.get(match[1], logging.INFO), int(match[2]), match[3]
    elif match := _ABSL.fullmatch(text):
        level, text = _LEVELS[match[1]], match[2]
    made = logging.LogRecord(program, level, "", 0, text, None, None)
    made.of, made.pid = program, pid
    return made
