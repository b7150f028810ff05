"""What uWSGI loads: settings, transport, board and app, made in the master; after the fork a mule becomes a replica.

Runs in:  master, and all that is forked from it.  Nothing here may import an ML framework.
"""

import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import reload
from app import create_app
from app.feeds import Feeds
from app.front import Front
from app.metrics import Metrics
from app.prediction_log import PredictionLog
from serving import logs, sentry, uwsgi_transport
from serving.counts import Counts
from serving.memory import Memory
from serving.plan import PlanFile
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.store import Board

# malloc.h
M_ARENA_MAX = -8

settings = Settings.read(Path(uwsgi_transport.config_file()))
log = logs.start(logs.heard(os.environ, "master"), settings.log_level)
transport = uwsgi_transport.UwsgiTransport(settings)
quarantine = Quarantine(uwsgi_transport.Notes(), settings.quarantine_s)
# what the uWSGI before this one has counted is there
known = Memory.of(os.environ)
# of each thread that predicts, and of each worker, for what is no prediction
counts = Counts(settings.seats, settings.processes, settings.mule_processes, known)
board = Board(settings.mules, settings.heartbeat_timeout_ms / 1000, settings.longest_predict_s, known)
# the supervisor writes there what is to be served, and makes the other when this uWSGI serves no more
plan, drain_file = PlanFile(Path(os.environ["RUN_DIR"], "plan.json")), Path(os.environ["RUN_DIR"], "drain")
# by chance, others on this machine begin somewhere else
first_processor = os.urandom(1)[0]
# of a worker or mule: what it calls when it ends, so that its last errors are told
last_words: list[Callable[[], None]] = []


def load() -> tuple[bool, str]:
    """Have the supervisor look for versions: whether all went well, and what happened."""
    told = reload.Progress(state=reload.FAILED)
    try:
        for told in reload.follow(Path(os.environ["RUN_DIR"]).parent):  # noqa: B007
            if drain_file.exists():
                # another uWSGI serves, and this one is to end
                break
    except reload.NoServer as error:
        return False, str(error)
    return told.state != reload.FAILED, told.text


spans = traces = None
if settings.otlp_endpoint:
    # what they need is not there otherwise
    from app.traces import Traces
    from serving.spans import Spans

    spans = Spans(settings.otlp_endpoint, settings.trace_sample)
    traces = Traces(spans)
metrics = Metrics(
    transport,
    board,
    counts,
    Front(Path(os.environ["RUN_DIR"]).parent),
    settings.deadline_ms / 1000,
    quarantine,
    settings.cache_items,
)
feeds = Feeds(
    metrics,
    f"{socket.gethostname()}:{os.environ['PORT']}",
    settings.address("carbon"),
    settings.address("statsd"),
    known,
    Path(os.environ["RUN_DIR"]).parent / "statsd.turn",
)
prediction_log = PredictionLog(settings, counts.kept) if settings.prediction_log_sample else None
application = create_app(
    settings, transport, board, quarantine, plan, metrics, drain_file.exists, load, prediction_log, traces
)


def pin(number: int) -> None:
    """Keep a worker on one processor, where each of its threads that wakes lets the others finish."""
    processors = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {processors[(first_processor + number) % len(processors)]})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        logging.getLogger("muleteer").warning("worker %d is not kept on one processor, and slower: %s", number, error)


def tell_last() -> None:
    """What any of them tells when it ends."""
    if spans is not None:
        spans.stop()
    for tell in last_words:
        tell()


def start_process() -> None:
    """What a new worker or mule does first; for a mule, all it ever does."""
    id = uwsgi_transport.mule_id()
    if id:
        # until it takes them over (mules/mule.py): uWSGI would exit within its handler, where Python may hang
        for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(asked, lambda *_: os._exit(0))
    name = f"mule {id}" if id else f"worker {uwsgi_transport.worker_id()}"
    log.rename(name)
    if settings.sentry_dsn:
        last_words.append(sentry.start(settings.sentry_dsn, name))
    if not id:
        # glibc gives every few threads a heap, which all fill up over hours; two do for threads that take turns
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
        number = uwsgi_transport.worker_id()
        if died := transport.start_worker():
            about = {"about": {"worker": number}}
            told = "worker %d died (process %d); this one follows it"
            logging.getLogger("muleteer").error(told, number, died, extra=about)
        # the one that answers health
        control = number > settings.prediction_workers
        metrics.start_worker(number, control, None if traces is None else traces.add_own)
        if prediction_log and not control:
            prediction_log.start_worker(number)
        if settings.pin_workers and not control:
            pin(number)
        if spans is not None:
            spans.start(f"worker {number}")
        if control:
            feeds.start()
        return
    status = 1
    try:
        from mules.mule import run
        from mules.pool import Pool

        counts.batches.start(id - 1)
        of_batches = None
        if spans is not None:
            from mules.traces import Traces as BatchTraces

            spans.start(f"mule {id}")
            of_batches = BatchTraces(spans)
        pool = Pool(id, settings, board, transport, quarantine, plan)
        status = run(
            settings,
            transport,
            pool,
            quarantine,
            id,
            os.getpid(),
            board,
            uwsgi_transport.end_by,
            counts.batches,
            of_batches,
        )
    except Exception:
        logging.getLogger("muleteer").exception("mule %d failed", id)
    finally:
        tell_last()
        # uWSGI respawns it; Python's own exit could hang in a framework's threads
        os._exit(status)


def end_worker() -> None:
    """What a worker does last."""
    transport.end_worker()
    feeds.stop()
    tell_last()


uwsgi_transport.after_fork(start_process)
uwsgi_transport.at_exit(end_worker)
