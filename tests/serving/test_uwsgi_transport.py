"""The transport over a real uWSGI: its tests run in a mule, and are reported here one by one."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .ini import shipped
from .quarantine_contract import QuarantineContract
from .transport_contract import REPLICAS, SEATS, TransportContract

HERE = Path(__file__).parent
TESTS = sorted(
    {name for contract in (TransportContract, QuarantineContract) for name in dir(contract) if name.startswith("test_")}
    | set(re.findall(r"^def (test_\w+)", (HERE / "uwsgi_contract.py").read_text(), re.MULTILINE))
)
PATIENCE_S = 120.0
STOP_S = 10.0


@pytest.fixture(scope="module")
def report():
    """What became of each test in uWSGI: its failure, or the empty string."""
    # a unix socket's path must be short
    with tempfile.TemporaryDirectory(prefix="muleteer-") as folder:
        run_dir = Path(folder)
        with (run_dir / "log").open("wb") as log:
            server = start(run_dir, log)
        try:
            until = time.monotonic() + PATIENCE_S
            while not (run_dir / "report.xml").exists():
                assert server.poll() is None and time.monotonic() < until, (run_dir / "log").read_text()
                time.sleep(0.05)
        finally:
            stop(server)
        yield read(run_dir / "report.xml")


def start(run_dir, log):
    """The shipped uwsgi.ini with small numbers, and with the tests in place of the app."""
    values = {"module": "tests.serving.uwsgi_server:application", "max_reply_bytes": 4096}
    (run_dir / "uwsgi.ini").write_text(shipped(**values))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SERVING_")}
    # one mule more is the spare
    numbers = {
        "MULES": REPLICAS - 1,
        "WORKERS": 2,
        "THREADS": SEATS,
        "QUEUE": 128,
        "PREDICTION_WORKERS": 1,
        "CONTROL_WORKER": 2,
    }
    environ |= {key: str(value) for key, value in numbers.items()}
    environ |= {"RUN_DIR": str(run_dir), "REPORT": str(run_dir / "report.xml")}
    command = [Path(sys.executable).with_name("uwsgi"), "--ini", run_dir / "uwsgi.ini"]
    return subprocess.Popen(
        command,
        cwd=HERE.parents[1],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def stop(server):
    """Ask it to end, so that its semaphores end too; then end what is left of it."""
    with suppress(subprocess.TimeoutExpired):
        server.send_signal(signal.SIGINT)
        server.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def read(file):
    found = {}
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        # a failure, an error or a skip
        found[case.get("name")] = "\n".join(f"{child.get('message')}\n{child.text}" for child in case)
    return found


@pytest.mark.parametrize("name", TESTS)
def test_inside_uwsgi(report, name):
    failure = report.get(name, "it was not run")
    assert not failure, failure


def test_no_other_tests_ran_inside_uwsgi(report):
    assert sorted(report) == TESTS
