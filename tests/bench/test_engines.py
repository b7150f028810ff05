"""A short measurement of what engines cost."""

import json

import pytest

from bench import engines
from mules.engines import _NAMES

from .test_compare import run


def cells(table):
    """The rows of a table, its head first."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [head, *rows]


def test_engines_beside_their_libraries(tmp_path):
    done = run("bench.engines", "--only", "sklearn,python", "--repeats", "1", "--out", tmp_path)
    found = json.loads((tmp_path / "engines.json").read_text())
    assert [one["name"] for one in found] == ["sklearn", "python"]
    _, *rows = cells(done.stdout)
    for one, (name, title, *numbers) in zip(found, rows, strict=True):
        assert (name, title) == (one["name"], engines.SUBJECTS[name].title)
        for place, count in enumerate(("1", "32")):
            (engine,), (library,) = one["engine_us"][count], one["library_us"][count]
            assert engine > 0 and library > 0
            assert numbers[3 * place : 3 * place + 3] == [
                f"{engine:.1f}",
                f"{library:.1f}",
                f"{engine - library:+.1f}",
            ]
    # the section that the results have of it, with the machine and what was measured
    written = (tmp_path / "compare.md").read_text()
    assert done.stdout.strip() in written and "## Engines" in written
    assert "one thread; medians of 1 [lowest–highest]." in written and " cores" in written


def test_the_table_has_a_row_for_each_engine_that_there_is():
    assert list(engines.SUBJECTS.keys() ^ {*_NAMES}) == []
    costs = [
        engines.Costs(name, {1: [3.0 + place] * 3, 32: [1.25, 1.0, 1.5]}, {1: [2.0] * 3, 32: [1.5] * 3})
        for place, name in enumerate(engines.SUBJECTS)
    ]
    head, *rows = cells(engines.render(costs))
    assert head[2:] == [f"{count}: {what}, µs" for count in (1, 32) for what in ("engine", "library", "more")]
    for place, (name, row) in enumerate(zip(engines.SUBJECTS, rows, strict=True)):
        assert row[:2] == [name, engines.SUBJECTS[name].title]
        assert row[2:] == [f"{3.0 + place:.1f}", "2.0", f"{1.0 + place:+.1f}", "1.2 [1.0–1.5]", "1.5", "-0.2"]


def test_what_cannot_be_measured_is_told(tmp_path):
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match=r"models verify .*muleteer: the model folder .* is empty"):
        engines._run(["muleteer", "models", "verify", "--json", "--model", str(tmp_path / "own")])
