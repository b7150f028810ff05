"""A model that is tried: loaded as a replica would, in a process that ends with it.

Runs in:  the command line, and the process that it starts.
Units:    seconds, MB of 2**20 bytes.
Raises:   TrialFailed, in one sentence.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
import timeit
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving.errors import ModelError, ServingError
from serving.model import ModelFolder
from serving.settings import Settings
from serving.task import Tensors


class TrialFailed(Exception):
    """The model cannot be loaded, or does not answer."""


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, called in a process that ends with it; TrialFailed with what it raises, or died of."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    try:
        kind, found = mine.recv()
    except KeyboardInterrupt:
        process.kill()
        raise
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = (
            f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
        )
        raise TrialFailed(f"the process that loaded the model {how}") from None
    process.join()
    if kind == "error":
        raise TrialFailed(found)
    return found


def try_out(folder: ModelFolder, settings: Settings) -> dict[str, Any]:
    """Load a model, and what a replica does before it is ready."""
    from mules import engines
    from mules.canary import Canary

    before, start = rss_mb(), time.monotonic()
    engine = engines.load(folder, settings.threads_per_replica)
    load_s = time.monotonic() - start
    signature, answer = engine.signature, folder.answer(engine.signature)
    most = engines.most_rows(settings.max_batch_rows, folder, engine)
    sample = folder.sample(signature)
    sizes = [rows for rows, _ in Canary(engine, sample, answer).warm_up(most)]
    return {
        "name": folder.name,
        "version": folder.version,
        "engine": engines.find(folder),
        "inputs": [f"{spec.name} {spec}" for spec in signature.inputs],
        "outputs": [f"{spec.name} {spec}" for spec in signature.outputs],
        "load_s": load_s,
        "others": {name: str(other.signature) for name, other in engines.others(engine).items()},
        "ms": {str(rows): _ms(engine, sample, rows) for rows in sizes},
        "mb": rss_mb(),
        "model_mb": rss_mb() - before,
        "compared": answer is not None,
    }


def _ms(engine: Any, sample: Tensors, rows: int) -> float:
    """What a predict of so many rows takes, the mean of as many as a fifth of a second holds."""
    inputs = {name: tensor.repeat(rows, axis=0) for name, tensor in sample.items()}
    calls, took_s = timeit.Timer(lambda: engine.predict(inputs)).autorange()
    return took_s / calls * 1000


def answer(folder: ModelFolder, settings: Settings, body: bytes) -> str:
    """What POST /predict answers."""
    from app import codec
    from mules import engines
    from mules.canary import check_outputs
    from serving import batching

    engine = engines.load(folder, settings.threads_per_replica)
    inputs, encode, name = codec.decode(body, engine.signature, settings.max_request_rows, engines.signatures(engine))
    engine = engines.others(engine).get(name, engine)
    most = engines.most_rows(settings.max_batch_rows, folder, engine)
    parts = []
    for part in batching.slices(inputs, engine.signature.rows(inputs), most):
        parts.append(engine.predict(part))
        check_outputs(parts[-1], engine.signature, engine.signature.rows(part))
    return encode(batching.join(parts)).decode()


def _run(connection: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    # what the model prints is not the answer
    os.dup2(2, 1)
    try:
        connection.send(("found", work(*arguments)))
    except (ModelError, ServingError) as error:
        connection.send(("error", str(error)))
    except (Exception, SystemExit) as error:
        connection.send(("error", f"the model raised {type(error).__name__}: {error}"))
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # a framework's threads may not end
    os._exit(0)


def rss_mb() -> int:
    """Memory of this process."""
    return int(re.findall(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024
