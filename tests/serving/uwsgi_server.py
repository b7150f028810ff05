"""What uWSGI loads in test_uwsgi_transport.py: mule 1 runs the tests of uwsgi_contract.py, the others echo.

Runs in:  master, and all that is forked from it.
"""

import mmap
import os
import signal
import time
import traceback
from pathlib import Path

from serving import uwsgi_transport
from serving.settings import Settings

settings = Settings.read(Path(uwsgi_transport.config_file()))
transport = uwsgi_transport.UwsgiTransport(settings)
# 1 once the replicas in processes of their own may take what is queued
echoing = mmap.mmap(-1, 1)


def application(environ, start_response):
    raise AssertionError("nobody asks")


def start_process():
    replica_id = uwsgi_transport.replica_id()
    if not replica_id:
        transport.start_worker()
        return
    try:
        if replica_id == 1:
            run_tests(Path(os.environ["REPORT"]))
        else:
            run_replica()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


def run_tests(report):
    import pytest

    part = report.with_suffix(".part")
    tests = Path(__file__).with_name("uwsgi_contract.py")
    pytest.main([str(tests), "-p", "no:cacheprovider", f"--junit-xml={part}"])
    # the report is there when it is whole
    part.rename(report)
    while True:
        signal.pause()


def run_replica():
    from .transport_contract import BRIEFLY_S, address, never

    transport.start_replica()
    pid = os.getpid().to_bytes(4)
    while not echoing[0]:
        time.sleep(BRIEFLY_S)
    while True:
        for frame in transport.take(BRIEFLY_S, never):
            transport.publish(*address(frame), pid + frame)


uwsgi_transport.after_fork(start_process)
