"""A short measurement of what engines cost."""

import json

from bench import engines

from .test_compare import run


def test_engines_beside_their_libraries(tmp_path):
    options = ["--only", "sklearn,python", "--seconds", "0.05", "--repeats", "1", "--out", tmp_path]
    done = run("bench.engines", *options)
    found = json.loads((tmp_path / "engines.json").read_text())
    assert [one["name"] for one in found] == ["sklearn", "python"]
    assert all(one[way][rows] > 0 for one in found for way in ("engine_us", "library_us") for rows in ("1", "32"))
    assert done.stdout.strip() in (tmp_path / "compare.md").read_text()


def test_the_table_has_a_row_for_each_engine():
    costs = [engines.Costs(name, {1: 3.0, 32: 1.25}, {1: 2.0, 32: 1.0}) for name in engines.SUBJECTS]
    table = engines.render(costs).splitlines()
    assert len(table) == 2 + len(engines.SUBJECTS)
    assert [cell.strip() for cell in table[2].split("|")[3:-1]] == ["3.0", "2.0", "+1.0", "1.2", "1.0", "+0.2"]
