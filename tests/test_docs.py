"""The README is complete: every setting with its default, every error code, every file and test that it names."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from serving.errors import ServingError, tree
from serving.settings import Settings, read_ini

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INI = read_ini(ROOT / "uwsgi.ini", {})
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
COMMON = {"if-env", "if-not-env", "endif"}


def row_of(key):
    return next((row for row in ROWS if f"`{key}`" in row[0]), None)


@pytest.mark.parametrize("key", sorted(set(INI["uwsgi"]) - COMMON))
def test_every_setting_of_uwsgi_is_in_the_table(key):
    row = row_of(key)
    assert row, f"{key} is not in the README"
    if row[1].isdecimal():
        # of mules, which uWSGI adds up, the first line is the one to tune
        assert row[1] == INI["uwsgi"][key][0]


@pytest.mark.parametrize("setting", [field for field in fields(Settings) if field.metadata["section"] == "serving"])
def test_every_setting_of_serving_is_in_the_table_with_its_default(setting):
    row = row_of(setting.name)
    assert row, f"{setting.name} is not in the README"
    default = str(setting.default).lower() if setting.type is bool else str(setting.default)
    assert row[1].strip("`") == default == INI["serving"][setting.name][0]
    variable = "MODEL" if setting.name == "model" else f"SERVING_{setting.name.upper()}"
    assert row[2] == f"`{variable}`"


@pytest.mark.parametrize("key", ["mules", "processes", "threads", "queue"])
def test_the_variables_in_the_table_override_the_file(key):
    variable = row_of(key)[2].strip("`")
    assert read_ini(ROOT / "uwsgi.ini", {variable: "17"})["uwsgi"][key][0] == "17"


def test_each_line_of_uwsgi_ini_has_its_reason_above_it():
    lines = (ROOT / "uwsgi.ini").read_text().splitlines()
    block_has_comment = False
    for line in lines:
        if not line.strip() or line.startswith("["):
            block_has_comment = False
        elif line.startswith(";"):
            block_has_comment = True
        else:
            assert block_has_comment, f"no reason stands above: {line}"


@pytest.mark.parametrize("error", [error for error in tree(ServingError) if not error.__subclasses__()])
def test_every_error_code_is_in_the_table(error):
    assert any(str(error.status) in row[0] and f"`{error.code}`" in row[1] for row in ROWS)


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_test_that_a_promise_names_exists():
    named = re.findall(r"`(tests/[\w/.]+)`", README)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists()] == []
