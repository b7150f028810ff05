"""The peers: each has an app and pinned requirements, and the same TensorFlow as ours."""

import re

import pytest

from bench import peer
from bench.peer import ENVIRONMENTS, PEERS, REQUIREMENTS
from bench.work import ROOT


def pins(name):
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_all_versions_are_pinned(name):
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!]+( ?;.*)?", line) for line in pins(name)), name


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_all_serve_with_the_same_tensorflow(name):
    ours = re.search(r"tensorflow-cpu==([\d.]+)", (ROOT / "pyproject.toml").read_text())[1]
    assert any(line.replace("_", "-").startswith(f"tensorflow-cpu=={ours}") for line in pins(name))


@pytest.mark.parametrize("one", PEERS.values(), ids=lambda one: one.name)
def test_each_has_an_app_that_says_why_it_is_set_so(one):
    (app,) = set(re.findall(r"bench\.peers\.(\w+_app)", one.command))
    text = (REQUIREMENTS / f"{app}.py").read_text()
    assert text.startswith('"""')
    assert one.package.lower() in {line.partition("==")[0].partition("[")[0].lower() for line in pins(one.environment)}


def test_changed_requirements_are_installed_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "FOLDER", tmp_path)
    monkeypatch.setattr(peer, "REQUIREMENTS", tmp_path)
    (tmp_path / "tiny.txt").write_text("a==1\n")
    (tmp_path / "tiny").mkdir()
    one = peer.Peer("tiny", "tiny", "tiny", "", "")
    assert not one.installed
    peer._mark("tiny").touch()
    assert one.installed and peer.install("tiny")
    (tmp_path / "tiny.txt").write_text("a==2\n")
    assert not one.installed


def test_one_that_cannot_be_installed_is_named_at_the_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(peer, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(peer, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(peer, "ENVIRONMENTS", ("broken", "there"))
    (tmp_path / "broken.txt").write_text("not a requirement\n")
    (tmp_path / "there.txt").write_text("")
    (tmp_path / "peers" / "there").mkdir(parents=True)
    peer._mark("there").touch()
    assert peer.main([]) == 1
    told = capfd.readouterr().err.splitlines()
    assert told[-1].startswith("not installed: broken") and "there: installed already" in told
    assert peer.main(["there"]) == 0
