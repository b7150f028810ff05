"""What a trial's server is told."""

import os
import subprocess
import tempfile
from pathlib import Path

from serving.settings import Settings
from tuning.stack import QUIET, sweep

SHIPPED = Path(__file__).parents[2] / "uwsgi.ini"
OUTSIDE = {
    "grpc_port": 9000,
    "version_poll_s": 10,
    "prediction_log_sample": 0.5,
    "prediction_log_dir": "/nowhere",
    "otlp_endpoint": "http://127.0.0.1:4318",
    "carbon": "127.0.0.1:2003",
    "statsd": "127.0.0.1:8125",
}


def test_a_trial_tells_nobody_and_keeps_nothing(tmp_path):
    ini = tmp_path / "uwsgi.ini"
    ini.write_text(SHIPPED.read_text() + "".join(f"{key} = {value}\n" for key, value in OUTSIDE.items()))
    shipped = Settings.read(SHIPPED, {})
    trial = Settings.read(ini, {"SENTRY_DSN": "https://key@sentry.example/1", **QUIET})
    for key in [*OUTSIDE.keys() - {"prediction_log_dir"}, "sentry_dsn"]:
        assert getattr(trial, key) == getattr(shipped, key), key


def test_what_killed_ones_left_behind_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    left = tmp_path / f"muleteer-tune-{dead.pid}-x"
    kept = [
        tmp_path / f"muleteer-tune-{os.getpid()}-x",
        tmp_path / "muleteer-tune-x-y",
        tmp_path / f"other-{dead.pid}-x",
    ]
    for folder in (left, *kept):
        folder.mkdir()
        (folder / "access.log").write_text("x")
    elsewhere = tmp_path / f"muleteer-tune-{dead.pid}-y"
    elsewhere.symlink_to(kept[0])
    sweep()
    assert not left.exists() and elsewhere.is_symlink()
    assert all((folder / "access.log").exists() for folder in kept)
