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
# by the number of a mule: 1 once it has started
started = memoryview(mmap.mmap(-1, settings.mule_processes + 2))


def application(environ, start_response):
    raise AssertionError("nobody asks")


def start_process():
    mule_id = uwsgi_transport.mule_id()
    if not mule_id:
        transport.start_worker()
        return
    started[mule_id] = 1
    try:
        if mule_id == 1:
            run_tests(Path(os.environ["REPORT"]))
        else:
            run_replica(mule_id)
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


def run_replica(mule_id):
    from .transport_contract import ALL, BRIEFLY_S

    transport.start_replica(mule_id)
    pid = os.getpid().to_bytes(4)
    while not echoing[0]:
        time.sleep(BRIEFLY_S)
    while True:
        for taken in transport.take(BRIEFLY_S, ALL):
            transport.publish(taken, pid + taken.frame)


uwsgi_transport.after_fork(start_process)
