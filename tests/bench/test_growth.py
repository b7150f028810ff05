"""A short measurement of how ours grows."""

import json

from bench import growth
from bench.work import ROOT

from .test_compare import plots, run

SHORT = ["--seconds", "0.2", "--repeats", "1", "--tries", "1"]
SIZES = ["--mules", "2", "--clients", "4", "--batches", "1,4", "--bodies", "100000"]


def test_growth_with_mules_clients_and_bytes(tmp_path):
    done = run("bench.growth", *SHORT, *SIZES, "--peers", "", "--out", tmp_path)
    found = json.loads((tmp_path / "growth.json").read_text())
    assert [one["processes"] for one in found["mules"]] == [2]
    assert [one["clients"] for one in found["clients"]] == [4]
    assert [(round(one["body_bytes"] / 1e5), one["clients"]) for one in found["bodies"]] == [(1, 1), (1, 16)]
    measured = [*found["mules"], *found["clients"], *found["bodies"]]
    assert all(one["right"] > 0 and one["wrong"] == one["cut"] == 0 for one in measured)
    # a lone client's requests come one by one
    assert set(found["batches"]["1"]) == {"1"} and found["batches"]["4"]
    assert plots(tmp_path) == ["bodies.png", "growth.png"]
    assert done.stdout.strip() in (tmp_path / "compare.md").read_text()


def test_bodies_have_their_sizes_and_answers_of_their_own():
    items = growth.items_of(64_000)
    assert all(abs(len(item.request) - 64_000) < 6_400 for item in items)
    assert len({item.right for item in items}) == growth.BODY_INPUTS


def test_counted_batches_are_told():
    assert growth._mean({1: 2, 4: 2}) == 2.5
    assert growth._shares({4: 1, 1: 2, 2: 1}) == [(1, 0.25), (2, 0.5), (4, 1.0)]
    assert growth._most({1: 2, 4: 5, 8: 1, 16: 2}) == "4 (50%), 1 (20%), 16 (20%)"


def test_the_results_of_the_tree_can_be_read():
    folder = ROOT / "bench" / "results"
    assert (folder / "compare.md").exists() == (folder / "compare.json").exists()
