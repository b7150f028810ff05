"""The forms of a log's lines, whatever they hold; and what a program prints, as lines."""

import json
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import logs
from serving.logs import Form, Log, Pipe


@pytest.fixture
def log(tmp_path):
    """A function that makes a log of a form, and reads its lines."""
    opened = []

    def make(form):
        file = tmp_path / form
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        opened.append(fd)
        made = Log(form, fd, "mule 1")
        return made, lambda: file.read_text().splitlines()

    yield make
    for fd in opened:
        os.close(fd)


def record(message, *args, level=logging.INFO, error=None, **extra):
    about = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("muleteer.test", level, __file__, 1, message, args, about)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(
    ("setting", "terminal", "environ", "form"),
    [
        ("auto", True, {}, Form.COLOUR),
        ("auto", True, {"NO_COLOR": "1"}, Form.TEXT),
        ("auto", True, {"NO_COLOR": ""}, Form.COLOUR),
        ("auto", False, {}, Form.JSON),
        ("text", False, {}, Form.TEXT),
        ("json", True, {}, Form.JSON),
    ],
)
def test_the_form_is_for_who_reads_it(setting, terminal, environ, form):
    assert logs.choose(setting, terminal, environ) is form


def test_a_record_is_one_json_object(log):
    made, lines = log(Form.JSON)
    try:
        raise ValueError("the model's\nown words")
    except ValueError as error:
        made.handle(record("it raised %d", 3, level=logging.ERROR, error=error, request_id="a-1", about={"replica": 2}))
    (line,) = map(json.loads, lines())
    assert (line["level"], line["process"], line["pid"], line["logger"]) == (
        "error",
        "mule 1",
        os.getpid(),
        "muleteer.test",
    )
    assert (line["message"], line["request_id"], line["replica"]) == ("it raised 3", "a-1", 2)
    assert line["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert line["exception"].endswith("ValueError: the model's\nown words")


@given(st.text(st.characters()))
def test_a_line_of_json_is_one_line_whatever_it_says(text):
    formatted = logs.JsonFormatter("worker 1").format(record("%s", text))
    assert formatted.count("\n") == 0 and json.loads(formatted)["message"] == text


def test_a_text_that_is_no_unicode_is_logged_all_the_same(log):
    made, lines = log(Form.JSON)
    made.handle(record("a file called \udcff"))
    assert json.loads(lines()[0])["message"] == "a file called ?"


def test_a_fork_has_another_name(log):
    made, lines = log(Form.TEXT)
    made.rename("worker 2")
    made.handle(record("it starts", request_id="a-1"))
    assert lines()[0].endswith("INFO    worker 2  it starts (a-1)")


def test_colours_are_for_the_eye_alone(log):
    made, lines = log(Form.COLOUR)
    made.handle(record("it fails", level=logging.ERROR))
    assert "\x1b[31mERROR" in lines()[0] and lines()[0].endswith("it fails")


@given(st.text(st.characters()))
def test_no_text_steers_the_terminal_of_who_reads_it(text):
    error = ValueError(text)
    formatted = logs.TextFormatter("mule 1", colours=False).format(record("%s", text, error=error))
    steering = {chr(sign) for sign in (*range(32), *range(127, 160))} - {"\t", "\n"}
    assert not steering & {*formatted}


def test_what_cannot_be_written_is_left_out(capsys):
    full = os.open("/dev/full", os.O_WRONLY)
    Log(Form.JSON, full, "mule 1").handle(record("nobody hears it"))
    os.close(full)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("printed", "level", "pid", "message"),
    [
        ("2026/01/31 12:00:00 [crit] 12#13: *3 no space", logging.CRITICAL, 12, "*3 no space"),
        ("2026/01/31 12:00:00 [notice] 12#13: started", logging.INFO, 12, "started"),
        ("E0131 12:00:00.123456   12 file.cc:7] it fails", logging.ERROR, None, "file.cc:7] it fails"),
        ("2026-01-31 12:00:00.123456: W tensorflow/a/b.cc:7] hm", logging.WARNING, None, "tensorflow/a/b.cc:7] hm"),
        ("spawned uWSGI mule 1", logging.INFO, None, "spawned uWSGI mule 1"),
        ("100% {of} it", logging.INFO, None, "100% {of} it"),
    ],
)
def test_what_is_printed_has_the_level_that_it_says(printed, level, pid, message):
    found = logs.record("uwsgi", printed)
    assert (found.levelno, found.pid, found.getMessage(), found.of) == (level, pid, message, "uwsgi")


def test_what_a_program_prints_is_read_line_by_line(log):
    made, lines = log(Form.JSON)
    pipe = Pipe(made, "uwsgi")
    other = os.dup(pipe.fd)
    pipe.start()
    for part in (b"one\ntw", b"o\r\n\n", b"\xff\xfe\n", b"x" * 200_000, b"\nlast"):
        os.write(other, part)
    assert pipe.is_open()
    os.close(other)
    pipe.wait(10)
    assert not pipe.is_open()
    messages = [json.loads(line)["message"] for line in lines()]
    assert messages[:3] == ["one", "two", "��"] and messages[-1] == "last"
    assert "".join(messages[3:-1]) == "x" * 200_000


def test_a_line_of_the_log_can_be_read(log):
    made, lines = log(Form.JSON)
    try:
        raise KeyError("x")
    except KeyError as error:
        made.handle(record("it raised", error=error))
    told = logs.read(lines()[0]).splitlines()
    assert told[0] == "mule 1: it raised" and told[-1] == "KeyError: 'x'"
    assert logs.read("no json") == "no json" and logs.read("[1]") == "[1]"


def test_a_child_hears_where_to_log_and_how(log):
    made, lines = log(Form.TEXT)
    heard = logs.heard(logs.told(made), "master")
    assert (heard.form, heard.fd) == (made.form, made.fd)
    heard.handle(record("here"))
    assert lines()[0].endswith("master  here")
    closed = logs.told(made) | {"MULETEER_LOG_FD": "987"}
    assert logs.heard(closed, "master").fd == 2 == sys.__stderr__.fileno()
