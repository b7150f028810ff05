"""What the dialects and the media types cost: the same row, asked for in each of them, next to /predict.

usage: python -m bench.dialects [--seconds S] [--repeats N] [--tries N] [--only NAMES] [--out DIR]

The model takes float32 numbers and gives three means.  Rows of 64 numbers and of 150,000 (600 KB as they are in
memory), one client and 16.  The ways are measured in turns, one after the other in each repeat, on one server;
max_frame_bytes and max_body_bytes are raised so that the largest fit.

Writes dialects.json and a section of compare.md.

Units: microseconds of CPU for a right answer, but for what ends in _ms; bytes.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

import nginx
from bench import arena, measurement, report
from bench.compare import add_options, check_tools, names
from bench.contender import NGINX, Muleteer
from bench.measurement import Load, Measurement
from bench.ranking import Spread
from bench.report import say
from bench.workload import WORKLOADS, WorkFiles
from load import loadgen
from load.loadgen import Item

SECONDS = 2.0
REPEATS = 3
SIZES = (64, 150_000)
CLIENTS = (1, 16)
INPUTS = 10
ENVIRON = {"SERVING_MAX_FRAME_BYTES": 2 << 20, "SERVING_MAX_BODY_BYTES": 16 << 20}
# that all others are compared with
JSON = "predict JSON"
CHANNELS = 3

Row = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Way:
    """One dialect and media type."""

    path: str
    headers: Mapping[str, str]
    body: Callable[[Row], bytes]
    # what the body of the answer holds, from the three means
    right: Callable[[Row], bytes] = lambda y: orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def item(self, place: int, size: int) -> Item:
        """The request for one row, and its answer."""
        x = np.random.default_rng(place).random((1, size), np.float32)
        x = x[:, : size // CHANNELS * CHANNELS]
        body = self.body(x)
        headers = {**self.headers}
        if "X-Tensor-Shape" in headers:
            headers["X-Tensor-Shape"] = f"1,{x.size}"
        if headers.get("Inference-Header-Content-Length") == "":
            headers["Inference-Header-Content-Length"] = str(body.index(b"\n") + 1)
        y = x.reshape(1, -1, CHANNELS).mean(axis=1)[0]
        return Item(loadgen.request(body, self.path, headers=headers), loadgen.CONTAINS, self.right(y))


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _npy(x: Row) -> bytes:
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def _v2(x: Row, **more: object) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), **more}]}


def _binary(x: Row) -> bytes:
    # the JSON part ends with the line, where the header says that it does
    return _json(_v2(x, parameters={"binary_data_size": x.nbytes})) + b"\n" + x.tobytes()


def _raw(y: Row) -> bytes:
    return y.tobytes()


_APPLICATION_JSON = {"Content-Type": "application/json"}
_PREDICT, _V1, _V2 = "/predict", "/v1/models/image:predict", "/v2/models/image/infer"
WAYS = {
    JSON: Way(_PREDICT, _APPLICATION_JSON, lambda x: _json({"instances": x})),
    "predict npy": Way(_PREDICT, {"Content-Type": "application/x-npy"}, _npy),
    "predict npy both ways": Way(
        _PREDICT, {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}, _npy, _raw
    ),
    "predict raw tensor": Way(
        _PREDICT,
        {"Content-Type": "application/octet-stream", "X-Tensor-Dtype": "float32", "X-Tensor-Shape": ""},
        lambda x: x.tobytes(),
    ),
    "TensorFlow Serving": Way(_V1, _APPLICATION_JSON, lambda x: _json({"instances": x})),
    "TensorFlow Serving signature_name": Way(
        _V1, _APPLICATION_JSON, lambda x: _json({"signature_name": "serving_default", "instances": x})
    ),
    "Open Inference JSON": Way(_V2, _APPLICATION_JSON, lambda x: _json(_v2(x, data=x.ravel()))),
    "Open Inference binary": Way(_V2, {"Inference-Header-Content-Length": ""}, _binary),
    "Open Inference raw": Way(_V2, {"Inference-Header-Content-Length": "0"}, lambda x: x.tobytes(), _raw),
    "invocations JSON": Way("/invocations", _APPLICATION_JSON, lambda x: _json({"instances": x})),
}


def _items(way: Way, size: int) -> list[Item]:
    return [way.item(place, size) for place in range(INPUTS)]


def table(found: Sequence[Measurement], size: int) -> str:
    """By way: medians, and the rate of 16 clients next to that of JSON by /predict."""
    rows = []
    rates: dict[str, float] = {}
    for name in dict.fromkeys(one.workload for one in found):
        own = [one for one in found if one.workload == name]
        lone, many = ([one for one in own if one.clients == clients] for clients in CLIENTS)
        rate = Spread.of([one.rate for one in many])
        rates[name] = rate.median
        cpu = Spread.of([one.total_us for one in lone])
        rows.append(
            [
                name,
                f"{own[0].body_bytes:,}",
                f"{Spread.of([one.p50_ms for one in lone]).median:.2f}",
                cpu.text("%.0f"),
                rate.text("%.0f"),
                f"{rate.median / rates[JSON]:.2f}" if rates.get(JSON) else "",
                str(sum(one.errors for one in own)),
            ]
        )
    head = ["way", "body, bytes", "1: p50, ms", "1: CPU, µs", "16: requests/s", "of JSON's", "errors"]
    return f"### rows of {size:,} numbers\n\n" + report.table(head, rows)


def main() -> int:
    """Run, write, and print the tables."""
    parser = argparse.ArgumentParser(prog="bench.dialects", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, SECONDS, REPEATS)
    parser.add_argument("--only", type=names(list(WAYS)), default=list(WAYS), metavar="NAMES", help="ways, by name")
    arguments = parser.parse_args()
    try:
        check_tools()
    except nginx.StartError as error:
        parser.error(str(error))
    found: dict[int, list[Measurement]] = {size: [] for size in SIZES}
    with arena.entered(), tempfile.TemporaryDirectory(prefix="bench-work-") as folder:
        works, workload = WorkFiles(Path(folder)), WORKLOADS["image"]
        first = WAYS[JSON].item(0, SIZES[0]).request
        running = Muleteer().start(workload, first, ENVIRON)
        try:
            for repeat in range(arguments.repeats):
                for size in SIZES:
                    for name in arguments.only:
                        items = partial(_items, WAYS[name], size)
                        file, body_bytes, _ = works.made(f"{name}-{size}", items)
                        load = Load(name, workload.processes, file, body_bytes, arguments.seconds, arguments.tries)
                        for clients in CLIENTS:
                            taken = measurement.take(
                                running, "muleteer", NGINX, load, clients, repeat, lambda one: say(str(one))
                            )
                            found[size].append(taken)
        finally:
            running.stop()
    parts = [report.machine(), f"{report.repeats(arguments.repeats, arguments.seconds)}: medians [lowest–highest]."]
    text = "\n\n".join([*parts, *(table(own, size) for size, own in found.items())])
    arguments.out.mkdir(parents=True, exist_ok=True)
    told = {str(size): [one.told() for one in own] for size, own in found.items()}
    (arguments.out / "dialects.json").write_text(json.dumps(told, indent=1) + "\n")
    report.write(arguments.out / "compare.md", "Dialects", text)
    print(text)
    return 1 if any(one.errors for own in found.values() for one in own) else 0


if __name__ == "__main__":
    sys.exit(main())
