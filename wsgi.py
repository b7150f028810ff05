"""What uWSGI loads: settings, transport, board and app, made in the master; after the fork a mule becomes a replica.

Runs in:  master, and all that is forked from it.  Nothing here may import an ML framework.
"""

import logging
import os
from pathlib import Path

from app import create_app
from serving import uwsgi_transport
from serving.model import ModelFolder
from serving.settings import Settings
from serving.store import Board

settings = Settings.read(Path(uwsgi_transport.config_file()))
logging.basicConfig(
    level=settings.log_level.upper(),
    format="%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s",
)
folder = ModelFolder.find(settings.model)
transport = uwsgi_transport.UwsgiTransport(settings)
board = Board(settings.mules, settings.heartbeat_timeout_ms / 1000, settings.deadline_ms / 1000)
application = create_app(settings, transport, board)


def start_process() -> None:
    """What a new worker or mule does first; for a mule, all it ever does."""
    replica_id = uwsgi_transport.replica_id()
    if not replica_id:
        transport.start_worker()
        return
    status = 1
    try:
        from mules.replica import run

        transport.start_replica()
        status = run(settings, folder, transport, board.records[replica_id - 1], os.getpid())
    except Exception:
        logging.getLogger("muleteer").exception("replica %d failed", replica_id)
    finally:
        # uWSGI respawns it; Python's own exit could hang in a framework's threads
        os._exit(status)


uwsgi_transport.after_fork(start_process)
