"""What the server tells a collector of OpenTelemetry: a receiver that reads OTLP as it is, and clients that trace."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from serving.settings import Settings

from .conftest import DIGITS, FANCY, ROOT, Server, free_port, wait_until, write_model
from .test_08_crash import busy
from .test_28_metrics import scrape, total

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INTERNAL, SERVER = 1, 2
ERROR = 2
# a reply tells its queue's milliseconds in 32 bits
ROUNDED_NS = 1000
# nginx knows milliseconds
NGINX_NS = 2_000_000
SLOW = """
import os
import time


class Model:
    inputs = {"s": "float32"}
    outputs = {"pid": "int64"}

    def __init__(self, path): ...

    def predict(self, inputs):
        if (inputs["s"] < 0).any():
            raise ValueError("the secret is 42")
        time.sleep(float(inputs["s"].max()))
        return {"pid": [os.getpid()] * len(inputs["s"])}
"""


@dataclass(frozen=True)
class Span:
    process: str
    resource: dict
    about: dict
    links: list
    told: object

    def __getattr__(self, name):
        return getattr(self.told, name)

    @property
    def trace(self):
        return self.told.trace_id.hex()

    @property
    def id(self):
        return self.told.span_id.hex()

    @property
    def parent(self):
        return self.told.parent_span_id.hex()

    @property
    def start(self):
        return self.told.start_time_unix_nano

    @property
    def end(self):
        return self.told.end_time_unix_nano

    @property
    def failed(self):
        return self.told.status.code == ERROR


def attributes(told):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in told}


class Collector:
    """Takes OTLP over HTTP, as its specification has it; it may also be asked not to answer."""

    def __init__(self):
        self.spans, self.headers, self.requests = [], [], 0
        self.answers = threading.Event()
        self.answers.set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                collector.requests += 1
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                collector.answers.wait()
                collector.headers.append(dict(self.headers))
                collector.take(sent)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_): ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, sent):
        for of_process in sent.resource_spans:
            resource = attributes(of_process.resource.attributes)
            for scope in of_process.scope_spans:
                assert scope.scope.name == "muleteer"
                for told in scope.spans:
                    links = [(link.trace_id.hex(), link.span_id.hex()) for link in told.links]
                    found = Span(resource["muleteer.process"], resource, attributes(told.attributes), links, told)
                    self.spans.append(found)

    def of(self, trace):
        return [span for span in self.spans if span.trace == trace]

    def wait(self, trace, *names):
        """The spans of a trace, once these are there."""
        wanted = Counter(names)

        def found():
            spans = self.of(trace)
            return spans if not wanted - Counter(span.name for span in spans) else None

        return wait_until(
            found, f"the spans {names} of {trace}; there are {[span.name for span in self.of(trace)]}", 15
        )

    def close(self):
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(collector, tmp_path_factory):
    """A server of two replicas that traces what its clients do."""
    server = Server(
        MODEL=write_model(tmp_path_factory.mktemp("traces") / "model", SLOW),
        **{"MULES": 2, "WORKERS": 2, "THREADS": 4, "GRPC_PORT": free_port()},
        SERVING_OTLP_ENDPOINT=collector.url,
        SERVING_TRACE_SAMPLE="0",
    )
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def new():
    """Headers of a client that traces, and its trace."""

    def new(sampled=True, parent=PARENT):
        trace = os.urandom(16).hex()
        return {"traceparent": f"00-{trace}-{parent}-0{int(sampled)}"}, trace

    return new


WHOLE = ("POST /predict", "handler", "decode", "queue", "predict", "encode", "batch")


def named(spans):
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def check_nested(spans, slack_ns=ROUNDED_NS):
    """Each span lies within its parent, where that is one of the server's."""
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert span.start <= span.end
        if outer := by_id.get(span.parent):
            assert outer.start - slack_ns <= span.start and span.end <= outer.end + slack_ns, (span.name, outer.name)


def test_a_request_is_one_trace_from_its_client_to_the_batch(traced, collector):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("client")
    with tracer.start_as_current_span("client") as client:
        headers = {}
        TraceContextTextMapPropagator().inject(headers)
        headers["tracestate"] = "vendor=a:b, other=c"
        began = time.time_ns()
        answer = traced.predict({"s": 0.02}, X_Request_Id="traced-1", **headers)
        ended = time.time_ns()
    assert answer.status == 200
    trace, parent = f"{client.get_span_context().trace_id:032x}", f"{client.get_span_context().span_id:016x}"
    spans = collector.wait(trace, *WHOLE)
    found = named(spans)
    assert {*found} == {*WHOLE}
    server, handler = found["POST /predict"], found["handler"]
    assert (server.parent, server.kind) == (parent, SERVER)
    assert handler.parent == server.id
    assert {found[name].parent for name in ("decode", "queue", "predict", "batch", "encode")} == {handler.id}
    check_nested(spans)
    assert began - NGINX_NS <= server.start and server.end <= ended
    assert found["decode"].end == found["queue"].start
    assert abs(found["queue"].end - found["predict"].start) <= ROUNDED_NS
    assert found["predict"].end <= found["encode"].start
    assert found["predict"].end - found["predict"].start >= 20e6
    assert {span.process for span in spans} == {server.process, found["batch"].process}
    assert server.process == "worker 1" and found["batch"].process in ("mule 1", "mule 2")
    assert found["batch"].resource["process.pid"] == answer.json["pid"]
    assert {span.trace_state for span in spans} == {"vendor=a:b,other=c"}
    assert server.about == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "url.path": "/predict",
        "url.scheme": "http",
        "muleteer.request_id": "traced-1",
        "muleteer.model.version": 1,
        "muleteer.rows": 1,
    }
    assert found["batch"].about == {
        "muleteer.model.version": 1,
        "muleteer.batch.tasks": 1,
        "muleteer.batch.rows": 1,
    }
    assert found["batch"].links == [(trace, handler.id)]
    assert found["predict"].links == [(trace, found["batch"].id)]
    assert not any(span.failed for span in spans)


def test_a_batch_is_linked_with_all_of_its_members(traced, collector, new):
    members = [new() for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        blockers = []
        for seconds in (0.5, 2):
            blockers.append(pool.submit(traced.predict, {"s": seconds}))
            wait_until(lambda: len(busy(traced)) == len(blockers), "each replica is at work")
        # the first that is free takes both
        waiting = [pool.submit(traced.predict, {"instances": [0, 0]}, **headers) for headers, _ in members]
        assert {one.result().status for one in blockers + waiting} == {200}
    spans = [named(collector.wait(trace, "POST /predict", "predict", "encode")) for _, trace in members]
    ((batch_trace, batch_id),) = {span["predict"].links[0] for span in spans}
    assert batch_trace not in {trace for _, trace in members}
    (batch,) = collector.wait(batch_trace, "batch")
    assert batch.id == batch_id and batch.parent == ""
    assert sorted(batch.links) == sorted((span["handler"].trace, span["handler"].id) for span in spans)
    assert (batch.about["muleteer.batch.tasks"], batch.about["muleteer.batch.rows"]) == (2, 4)
    assert {(batch.start, batch.end)} == {(span["predict"].start, span["predict"].end) for span in spans}
    assert {span["predict"].about["muleteer.rows"] for span in spans} == {2}


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-zz",
        f"00-{TRACE}-{PARENT}-01\xff",
        f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
        "x" * 4000,
    ],
)
def test_a_traceparent_that_is_broken_is_as_none(traced, collector, new, traceparent):
    headers, trace = new()
    # as Latin-1, whatever it is
    with httpx.Client() as client:
        sent = client.post(
            f"{traced.url}/predict", content=b'{"s": 0}', headers={b"traceparent": traceparent.encode("latin-1")}
        )
    assert sent.status_code == 200
    assert traced.predict({"s": 0}, **headers).status == 200
    collector.wait(trace, *WHOLE)
    assert collector.of(TRACE) == []


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known(traced, collector):
    trace = os.urandom(16).hex()
    assert traced.predict({"s": 0}, traceparent=f"cc-{trace}-{PARENT}-01-what-comes").status == 200
    assert named(collector.wait(trace, *WHOLE))["POST /predict"].parent == PARENT


def test_who_is_not_sampled_leaves_nothing(traced, collector, new):
    unsampled = [new(sampled=False) for _ in range(3)]
    for headers, _ in unsampled:
        assert traced.predict({"s": 0}, **headers).status == 200
    headers, trace = new()
    assert traced.predict({"s": 0}, **headers).status == 200
    collector.wait(trace, *WHOLE)
    assert [collector.of(trace) for _, trace in unsampled] == [[], [], []]


def test_a_refusal_is_told_and_is_no_error_of_the_server(traced, collector, new):
    headers, trace = new()
    assert traced.predict({"t": 0}, **headers).status == 400
    found = named(collector.wait(trace, "POST /predict", "handler"))
    assert {*found} == {"POST /predict", "handler"}
    about = found["POST /predict"].about
    assert (about["http.response.status_code"], about["muleteer.code"]) == (400, "signature")
    assert "error.type" not in about and not any(span.failed for span in found.values())


def test_what_the_model_raises_fails_its_spans_and_is_not_told(traced, collector, new):
    headers, trace = new()
    assert traced.predict({"s": -1}, **headers).status == 500
    found = named(collector.wait(trace, "POST /predict", "handler", "decode", "queue", "predict", "batch"))
    assert "encode" not in found
    assert {name for name, span in found.items() if span.failed} == {"POST /predict", "handler", "predict", "batch"}
    assert found["POST /predict"].about["error.type"] == "engine"
    assert found["predict"].about["error.type"] == found["batch"].about["error.type"] == "ValueError"
    assert "secret" not in "".join(str(span.told) for span in collector.spans)


def test_a_deadline_ends_the_wait(traced, collector, new):
    headers, trace = new()
    assert traced.predict({"s": 0.5}, X_Request_Timeout_Ms="100", **headers).status == 504
    found = named(collector.wait(trace, "POST /predict", "handler", "decode", "wait", "predict", "batch"))
    assert found["wait"].failed and found["wait"].about["error.type"] == "deadline"
    assert found["POST /predict"].about["http.response.status_code"] == 504
    # it goes on
    assert not found["predict"].failed and found["predict"].end > found["wait"].end


def test_what_nginx_refuses_is_in_the_trace_of_its_client(traced, collector, new):
    def ask(_):
        headers, trace = new()
        began = time.time_ns()
        return traced.predict({"s": 0.3}, **headers), trace, began, time.time_ns()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    answer, trace, began, ended = next(one for one in answers if one[0].status == 503)
    (span,) = collector.wait(trace, "POST /predict")
    assert (span.parent, span.kind, span.failed) == (PARENT, SERVER, True)
    assert span.about["muleteer.code"] == span.about["error.type"] == answer.json["code"] == "queue_full"
    assert span.about["muleteer.request_id"] == answer.headers["x-request-id"]
    assert span.process == "worker 2"
    assert began - NGINX_NS <= span.start <= span.end <= ended + NGINX_NS


def test_a_broken_traceparent_does_not_hide_what_nginx_refuses(traced):
    def refused():
        return total(scrape(traced), "requests_total", route="/predict", status="413")

    before = refused()
    large = b"x" * (Settings.read(ROOT / "uwsgi.ini", {}).max_body_bytes + 1)
    broken = {"traceparent": f"00-{TRACE}-{PARENT}-01 /nowhere"}
    assert traced.request("POST", "/predict", large, broken).status == 413
    wait_until(lambda: refused() == before + 1, "it is counted")


def test_a_path_that_predicts_nothing_is_not_traced(traced, collector, new):
    asked = [(path, *new()) for path in ("/readyz", "/metrics", "/nowhere", "/v2/models/model")]
    for path, headers, _ in asked:
        traced.request("GET", path, headers=headers)
    headers, trace = new()
    assert traced.predict({"s": 0}, **headers).status == 200
    collector.wait(trace, *WHOLE)
    assert [collector.of(trace) for *_, trace in asked] == [[]] * 4


def test_each_dialect_has_the_name_of_its_route(traced, collector, new):
    for path, body, route in (
        ("/v1/models/model:predict", b'{"instances": [0]}', "/v1/models/{model}:predict"),
        (
            "/v2/models/model/infer",
            b'{"inputs": [{"name": "s", "shape": [1], "datatype": "FP32", "data": [0]}]}',
            "/v2/models/{model}/infer",
        ),
        ("/invocations", b'{"instances": [0]}', "/invocations"),
        ("/predictions/model", b'{"s": 0}', "/predictions/{model}"),
    ):
        headers, trace = new()
        answer = traced.request("POST", path, body, {"Content-Type": "application/json", **headers})
        assert answer.status == 200, answer.body
        span = named(collector.wait(trace, f"POST {route}", *WHOLE[1:]))[f"POST {route}"]
        assert (span.about["http.route"], span.about["url.path"]) == (route, path)


def test_a_call_by_grpc_is_a_trace_as_well(traced, collector, new):
    name = "inference.GRPCInferenceService/ModelInfer"
    with triton.InferenceServerClient(f"127.0.0.1:{traced.settings['GRPC_PORT']}") as client:
        for value, code in ((0, "OK"), (-1, "INTERNAL")):
            headers, trace = new()
            row = triton.InferInput("s", [1], "FP32").set_data_from_numpy(np.array([value], np.float32))
            with nullcontext() if code == "OK" else pytest.raises(InferenceServerException):
                client.infer("model", [row], headers=headers)
            span = named(collector.wait(trace, name, "handler", "queue", "predict", "batch"))[name]
            assert (span.parent, span.kind, span.failed) == (PARENT, SERVER, code != "OK")
            assert span.about["rpc.system.name"] == "grpc" and span.about["rpc.method"] == name
            assert span.about["rpc.response.status_code"] == code


def test_a_replica_that_is_killed_leaves_the_trace_to_the_one_that_takes_over(traced, collector, new):
    headers, trace = new()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(traced.predict, {"s": 1}, **headers)
        (pid,) = wait_until(lambda: busy(traced), "it is predicted")
        killed = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        survivor = answer.result().json["pid"]
    assert survivor != pid
    spans = collector.wait(trace, *WHOLE)
    found = named(spans)
    assert found["predict"].resource["process.pid"] == survivor
    # it waits until it is predicted by the other
    assert found["queue"].start < killed <= found["queue"].end + ROUNDED_NS
    check_nested(spans)
    wait_until(lambda: sum(one["ready"] for one in traced.ready()["replicas"]) == 2, "two are ready again")


def test_a_worker_that_is_killed_leaves_the_trace_to_the_one_that_is_asked_again(start, collector, tmp_path, new):
    server = start(
        MODEL=write_model(tmp_path / "model", SLOW), WORKERS=3, THREADS=4, SERVING_OTLP_ENDPOINT=collector.url
    ).wait_ready()
    headers, trace = new()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.predict, {"s": 1}, **headers)
        wait_until(lambda: busy(server), "it is predicted")
        killed = time.time_ns()
        for pid in server.prediction_workers():
            os.kill(pid, signal.SIGKILL)
        assert answer.result().status == 200
    spans = collector.wait(trace, "POST /predict", "handler", "queue", "predict", "encode")
    (server_span,) = [span for span in spans if span.name == "POST /predict"]
    (handler,) = [span for span in spans if span.name == "handler"]
    # since nginx passed it on for the first time
    assert server_span.start < killed <= handler.start and handler.parent == server_span.id


def test_the_standard_variables_say_whose_spans_they_are_and_who_is_sampled(start, collector):
    server = start(
        MODEL=FANCY,
        MULES=1,
        SERVING_OTLP_ENDPOINT=collector.url + "/",
        SERVING_TRACE_SAMPLE="0",
        OTEL_SERVICE_NAME="jokes",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.version=mine",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20let-me-in",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.5",
    ).wait_ready()
    statuses = Counter(server.predict({"text": "hello"}, X_Request_Id=f"jokes-{n}").status for n in range(40))
    assert statuses == {200: 40}

    def found():
        return [span for span in collector.spans if span.resource["service.name"] == "jokes" and span.kind == SERVER]

    wait_until(found, "spans of jokes")
    assert server.stop() == 0
    # each once, and none of its own choice: that all or none of 40 fall on one side happens once in 10^12
    ids = Counter(span.about["muleteer.request_id"] for span in found())
    assert 0 < len(ids) < 40 and set(ids.values()) == {1}
    assert len({span.trace for span in found()}) == len(ids)
    about = found()[0].resource
    assert about["deployment.environment.name"] == "test" and about["service.version"] == "mine"
    assert about["telemetry.sdk.name"] == "opentelemetry"
    assert any(headers.get("authorization") == "Bearer let-me-in" for headers in collector.headers)
    assert "let-me-in" not in server.log + server.output


def test_a_stop_sends_what_there_is(start, collector, new):
    server = start(
        MODEL=FANCY, MULES=1, SERVING_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="3600000"
    ).wait_ready()
    headers, trace = new()
    assert server.predict({"text": "hello"}, **headers).status == 200
    assert collector.of(trace) == []
    assert server.stop() == 0
    assert Counter(span.name for span in collector.of(trace)) == Counter(WHOLE)


@pytest.mark.parametrize("collector_is", ["gone", "silent"])
def test_a_collector_that_does_not_answer_keeps_nobody_waiting(start, collector_is):
    collector = Collector()
    if collector_is == "gone":
        collector.close()
    else:
        collector.answers.clear()
    try:
        server = start(
            MODEL=FANCY,
            MULES=4,
            SERVING_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_MAX_QUEUE_SIZE="64",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16",
        ).wait_ready()
        # more than the queue holds, and again while a batch is on its way
        for _ in range(2):
            with ThreadPoolExecutor(8) as pool:
                assert {pool.submit(server.predict, {"text": "x"}).result().status for _ in range(200)} == {200}
            wait_until(lambda: complaints(server), "it is told that spans are lost")
        assert server.stop() == 0
        # once a minute by each process, of what is dropped and of what is not sent
        assert max(complaints(server).values()) <= 2, server.log
        assert collector_is == "gone" or collector.requests
    finally:
        if collector_is == "silent":
            collector.close()


def complaints(server):
    """How many lines there are of a collector, by pid."""
    lines = map(json.loads, server.log.splitlines())
    return Counter(line["pid"] for line in lines if line["logger"].startswith("opentelemetry"))


def test_off_nothing_of_it_is_loaded_or_passed_on(digits):
    program = (
        "import sys, app, app.predict, app.metrics, mules.mule, serving.store\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    conf = (digits.run_dir / "nginx.conf").read_text()
    assert "traceparent" not in re.findall(r"proxy_set_header (\S+)", conf)
    assert digits.settings["MODEL"] == DIGITS


def test_a_server_without_the_extra_says_so(tmp_path):
    # an environment that has all but that
    program = (
        "import importlib.metadata, sys\n"
        "found = importlib.metadata.distribution\n"
        "def distribution(name):\n"
        "    if name.startswith('opentelemetry'):\n"
        "        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "importlib.metadata.distribution = distribution\n"
        "from pathlib import Path\n"
        "from serving.settings import Settings\n"
        "Settings.read(Path('uwsgi.ini'), {'SERVING_OTLP_ENDPOINT': 'http://127.0.0.1:4318'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "it needs the extra otel; pip install -c constraints.txt '.[otel]', or leave it empty" in done.stderr
