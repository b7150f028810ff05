"""What a trial's server is told."""

from pathlib import Path

from serving.settings import Settings
from tuning.stack import QUIET

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
