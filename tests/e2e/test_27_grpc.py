"""gRPC: the clients of other servers, as they are, and the promises that HTTP has, kept for calls as well."""

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import aio, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from .conftest import DIGITS, Server, free_port, masters, reload, wait_until, write_model
from .test_04_health import SLOW
from .test_08_crash import TRAP, busy
from .test_12_reload import WORDS, write_ini
from .test_14_worker import BLOB, hold_several, kill

SAMPLE = json.loads((DIGITS / "sample.json").read_text())
IMAGE = np.array([SAMPLE["image"]], np.float32)
# every dtype, twice over
MIXED = """
import numpy as np

KINDS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 string".split()

class Model:
    inputs = {kind: f"{kind}[2]" for kind in KINDS}
    outputs = {kind: f"{kind}[2]" for kind in KINDS}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        return inputs
"""


def serve(start, **environ):
    return start(GRPC_PORT=free_port(), **environ).wait_ready()


def address(server):
    return f"127.0.0.1:{server.settings['GRPC_PORT']}"


@contextmanager
def channel(server):
    """One with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address(server), own) as opened:
        yield opened


@pytest.fixture(scope="module")
def server():
    server = Server(MODEL=DIGITS, GRPC_PORT=free_port())
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(address(server)) as client:
        yield client


def image(rows=IMAGE):
    return triton.InferInput("image", rows.shape, "FP32").set_data_from_numpy(rows)


def seconds(*values):
    """A call of the slow model."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="seconds", datatype="FP64", shape=[len(values)])
    tensor.contents.fp64_contents.extend(values)
    return service_pb2.ModelInferRequest(model_name="slow", inputs=[tensor])


def slept(answer):
    return list(answer.outputs[0].contents.fp64_contents)


def infer(opened, *values, **more):
    return service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer.future(seconds(*values), **more)


def told(call):
    """The code of a call that ends in an error, and its words."""
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    return raised.value.code(), raised.value.details()


def test_the_same_row_is_answered_with_the_same_numbers_as_over_http(server, client):
    expected = server.predict(SAMPLE).json
    found = client.infer("digits", [image()], request_id="some id")
    assert found.get_response().id == "some id" and found.get_response().model_version == "1"
    assert found.as_numpy("digit").tolist() == [expected["digit"]]
    np.testing.assert_array_equal(found.as_numpy("probabilities"), np.array([expected["probabilities"]], np.float32))
    wanted = [triton.InferRequestedOutput("probabilities")]
    (only,) = client.infer("digits", [image()], outputs=wanted, model_version="1").get_response().outputs
    assert only.name == "probabilities"


def test_an_asynchronous_client_is_answered(server):
    async def ask():
        async with aio.InferenceServerClient(address(server)) as client:
            found = await asyncio.gather(*(client.infer("digits", [image()]) for _ in range(8)))
            return [one.as_numpy("digit").tolist() for one in found]

    assert asyncio.run(ask()) == [[server.predict(SAMPLE).json["digit"]]] * 8


def test_a_client_with_its_default_settings_finds_its_way(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "7") and not client.is_model_ready("none")
    assert "model_repository" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("digits", as_json=True)
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "8", "8"]}]
    assert metadata["versions"] == ["1"]
    (only,) = client.get_model_repository_index().models
    assert (only.name, only.version, only.state) == ("digits", "1", "READY")
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="repository_api = false") as error:
            call("digits")
        assert error.value.status() == "StatusCode.PERMISSION_DENIED"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_messages_come_packed(client, coding):
    rows = np.repeat(IMAGE, 64, axis=0)
    found = client.infer("digits", [image(rows)], compression_algorithm=coding)
    assert found.as_numpy("digit").tolist() == client.infer("digits", [image(rows)]).as_numpy("digit").tolist()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_name": "none"}, "NOT_FOUND", "the model here is 'digits', not 'none'"),
        ({"model_version": "7"}, "NOT_FOUND", "no version '7' of the model is served; there is 1"),
        ({"inputs": [image(IMAGE[:, :, 1:])]}, "INVALID_ARGUMENT", "one row has shape [8, 7]"),
        ({"inputs": [image(np.repeat(IMAGE, 1025, axis=0))]}, "RESOURCE_EXHAUSTED", "max_request_rows in uwsgi.ini"),
        ({"outputs": [triton.InferRequestedOutput("ö%")]}, "INVALID_ARGUMENT", "output 'ö%' is unknown"),
    ],
)
def test_errors_have_a_code_and_words(client, changes, code, words):
    with pytest.raises(InferenceServerException) as error:
        client.infer(**{"model_name": "digits", "inputs": [image()]} | changes)
    assert error.value.status() == f"StatusCode.{code}"
    assert words in error.value.message()


def raw_call(opened, path, *bodies, many=False, **more):
    """A call of bytes as they are."""
    kind = opened.stream_stream if many else opened.unary_unary
    return kind(path, request_serializer=bytes, response_deserializer=bytes)(*bodies, **more)


def code_of(opened, path, body):
    with pytest.raises(grpc.RpcError) as raised:
        raw_call(opened, path, body)
    return raised.value.code().name, raised.value.details()


def test_what_is_no_message_is_refused(server):
    with channel(server) as opened:
        for path in ("inference.GRPCInferenceService/ModelInfer", "tensorflow.serving.PredictionService/Predict"):
            code, words = code_of(opened, f"/{path}", b"\xff" * 100)
            assert code == "INVALID_ARGUMENT" and words.startswith("the message is no ")
            assert code_of(opened, f"/{path}", bytes(9 << 20))[0] == "RESOURCE_EXHAUSTED"
            assert code_of(opened, f"/{path}", b"")[0] == "INVALID_ARGUMENT"
        for path in ("/inference.GRPCInferenceService/None", "/none.None/None", "/predict", "/readyz"):
            code, words = code_of(opened, path, b"")
            assert code == "UNIMPLEMENTED" and "there is no such call here" in words


def test_what_streams_is_refused_while_it_is_still_open(server):
    over = threading.Event()

    def messages():
        yield b""
        over.wait(30)

    with channel(server) as opened:
        answers = raw_call(opened, "/inference.GRPCInferenceService/ModelStreamInfer", messages(), many=True)
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        over.set()
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(server):
    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(64 << 20)])
    with channel(server) as opened:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer
        code, words = told(call.future(request, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "max_body_bytes in uwsgi.ini" in words


def test_health_is_told_as_grpc_has_it(server):
    with channel(server) as opened:
        for service in (b"", b"\x0a\x1e" + b"inference.GRPCInferenceService"):
            assert raw_call(opened, "/grpc.health.v1.Health/Check", service) == b"\x08\x01"
        assert code_of(opened, "/grpc.health.v1.Health/Check", b"\x0a\x04none")[0] == "NOT_FOUND"


def test_http_has_none_of_these_paths(server):
    frame = b"\0\0\0\0\0"
    for path in ("/inference.GRPCInferenceService/ModelInfer", "/grpc.health.v1.Health/Check"):
        for headers in ({}, {"TE": "trailers", "Content-Type": "application/grpc"}):
            assert server.request("POST", path, frame, headers).status == 404


def test_there_is_no_port_for_it_unless_one_is_set(digits):
    assert "http2" not in (digits.run_dir / "nginx.conf").read_text()
    assert "  grpc  " not in digits.output


def test_one_port_is_not_for_both(start):
    port = free_port()
    server = start(MODEL=DIGITS, PORT=port, GRPC_PORT=port)
    assert server.process.wait(20) == 2
    assert server.output == f"muleteer: grpc_port = {port} is the port for HTTP too; set GRPC_PORT to another\n"


def test_calls_are_logged_with_their_status(server, client):
    with suppress(InferenceServerException):
        client.infer("none", [image()], headers={"x-request-id": "who-asks"})
    line = server.access("who-asks")
    assert (line["path"], line["grpc_status"]) == ("/inference.GRPCInferenceService/ModelInfer", 5)


# ---- tensors of all kinds


def mixed_rows():
    rng = np.random.default_rng(1)
    rows = {}
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        limit = np.iinfo(kind)
        rows[kind] = np.array([[limit.min, limit.max], [1, 2], [3, 4]], kind)
    for kind in ("float16", "float32", "float64"):
        rows[kind] = np.concatenate([rng.random((1, 2)), [[np.nan, np.inf], [-np.inf, -0.0]]]).astype(kind)
    rows["bool"] = np.array([[True, False], [False, True], [True, True]])
    rows["string"] = np.array([[b"", "ä".encode()], [b"\xff\0", b"x" * 300], [b"1", b"2"]], object)
    return rows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("models") / "mixed", MIXED)
    server = Server(MODEL=model, MULES=1, GRPC_PORT=free_port())
    try:
        yield server.wait_ready()
    finally:
        server.close()


def test_tensors_of_all_kinds_come_back_as_they_were_sent_raw(mixed):
    rows = mixed_rows()
    with triton.InferenceServerClient(address(mixed)) as client:
        inputs = [
            triton.InferInput(kind, tensor.shape, "BYTES" if kind == "string" else datatype(kind))
            for kind, tensor in rows.items()
        ]
        for tensor in inputs:
            tensor.set_data_from_numpy(rows[tensor.name()])
        found = client.infer("mixed", inputs)
    for kind, tensor in rows.items():
        np.testing.assert_array_equal(found.as_numpy(kind), tensor, strict=kind != "string")


def datatype(kind):
    return kind.upper().replace("FLOAT", "FP")


def typed(name, datatype, shape, **contents):
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return tensor


def test_typed_contents_are_answered_typed(start, tmp_path):
    kinds = [kind for kind in mixed_rows() if kind != "float16"]
    source = MIXED.replace("float16 ", "")
    server = serve(start, MODEL=write_model(tmp_path / "typed", source), MULES=1)
    rows = mixed_rows()
    fields = {"bool": "bool_contents", "int64": "int64_contents", "uint64": "uint64_contents"}
    fields |= {"float32": "fp32_contents", "float64": "fp64_contents", "string": "bytes_contents"}
    fields |= {f"{sign}int{bits}": f"{sign}int_contents" for sign in ("", "u") for bits in (8, 16, 32)}
    names = {kind: "BYTES" if kind == "string" else datatype(kind) for kind in kinds}
    inputs = [
        typed(kind, names[kind], rows[kind].shape, **{fields[kind]: rows[kind].ravel().tolist()}) for kind in kinds
    ]
    with channel(server) as opened:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer
        found = call(service_pb2.ModelInferRequest(model_name="typed", inputs=inputs))
        assert not found.raw_output_contents
        for output in found.outputs:
            values = list(getattr(output.contents, fields[output.name]))
            assert (output.datatype, output.shape) == (names[output.name], [3, 2])
            np.testing.assert_array_equal(values, rows[output.name].ravel().tolist())
        # what is wrong with one of them, of which the others are right
        for wrong, words in (
            (typed("int8", "INT8", [3, 2], int_contents=[1, 2, 300, 4, 5, 6]), "is INT8"),
            (typed("int8", "INT8", [3, 2], int64_contents=[1] * 6), "has contents in int64_contents, not in"),
            (typed("int8", "INT8", [3, 2], int_contents=[1] * 5), "has 5 elements of int_contents"),
            (typed("int8", "FP16", [3, 2]), "has no typed contents: send it raw"),
            (typed("int8", "BF16", [3, 2]), "has datatype 'BF16'"),
            (typed("int8", "INT8", [3, -2], int_contents=[1]), "and shape [3, -2]"),
            (typed("int8", "INT8", [-1, -1], int_contents=[1]), "has no 'shape'"),
            (typed("int8", "INT8", [1 << 40, 1 << 40], int_contents=[1]), "and shape [1099511627776, "),
            (typed("int8", "INT8", [1025, 0]), "max_request_rows"),
        ):
            others = [tensor for tensor in inputs if tensor.name != "int8"]
            code, said = told(call.future(service_pb2.ModelInferRequest(inputs=[*others, wrong])))
            assert code.name in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED") and words in said, said
        code, said = told(call.future(service_pb2.ModelInferRequest(inputs=inputs, raw_input_contents=[b"", b""])))
        assert "12 inputs, and 2 in raw_input_contents" in said


# ---- promises


@pytest.fixture
def slow(start, tmp_path):
    """Starts a server of a slow model."""
    return lambda **environ: serve(start, MODEL=write_model(tmp_path / "slow", SLOW), **environ)


def test_a_client_s_deadline_is_the_task_s_too(start, tmp_path):
    calls = tmp_path / "calls"
    source = SLOW.replace("        time.sleep", f"        open({str(calls)!r}, 'a').write('x')\n        time.sleep")
    server = serve(start, MODEL=write_model(tmp_path / "slow", source), MULES=1, SERVING_REFUSE_LATE="false")
    calls.unlink()
    with channel(server) as opened:
        first = infer(opened, 1.0)
        wait_until(calls.exists, "it is predicted", 10)
        late = infer(opened, 0.0, timeout=0.3)
        assert told(late)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert slept(first.result()) == [1.0]
        assert slept(infer(opened, 0.0).result()) == [0.0]
    # the second one was dropped
    assert calls.read_text() == "xx"


def test_the_server_s_deadline_is_told(slow):
    server = slow(SERVING_DEADLINE_MS=500)
    with channel(server) as opened:
        code, words = told(infer(opened, 1.5))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED and "deadline_ms" in words


def test_a_call_that_is_cancelled_frees_its_thread(slow):
    server = slow(MULES=2, WORKERS=2, THREADS=1)
    with channel(server) as opened:
        cancelled = infer(opened, 4.0)
        wait_until(lambda: busy(server), "it is predicted", 10)
        cancelled.cancel()

        def answered():
            with suppress(grpc.RpcError):
                return slept(infer(opened, 0.0).result()) == [0.0]

        wait_until(answered, "the only thread is free", 3)


def test_what_finds_no_thread_is_refused_at_once_and_told_when_to_come_back(slow):
    server = slow(MULES=1, WORKERS=2, THREADS=2)
    with channel(server) as opened:
        calls = [infer(opened, 0.7) for _ in range(8)]
        # health does not wait behind them
        assert raw_call(opened, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
        codes = [call.code() for call in calls]
        refused = [call for call in calls if call.code() is not grpc.StatusCode.OK]
        assert codes.count(grpc.StatusCode.OK) == 2 and len(refused) == 6
        for call in refused:
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "2 threads wait for replies (threads in uwsgi.ini)" in call.details()
            assert ("grpc-retry-pushback-ms", "1000") in call.trailing_metadata()
        assert slept(infer(opened, 0.0).result()) == [0.0]


def test_connections_and_the_calls_of_one_have_the_same_limit(slow):
    server = slow(MULES=1, WORKERS=2, THREADS=1, SERVING_MAX_CONNECTIONS=66)
    over = threading.Event()

    def half():
        yield seconds(0.0).SerializeToString()
        over.wait(30)

    with channel(server) as opened:
        kind = opened.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [kind.future(half()) for _ in range(80)]
        wait_until(lambda: sum(call.done() for call in calls) == 14, "the others are refused", 10)
        refused = [call for call in calls if call.done()]
        assert {call.code() for call in refused} == {grpc.StatusCode.UNAVAILABLE}
        assert all("max_connections" in call.details() for call in refused)
        assert server.predict({"seconds": 0}).status == 200
        assert raw_call(opened, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
        for call in calls:
            call.cancel()
        over.set()
        wait_until(lambda: infer(opened, 0.0).code() is grpc.StatusCode.OK, "there is room again", 10)


def test_what_cannot_make_its_deadline_is_refused_at_the_door(slow):
    server = slow(MULES=1, SERVING_DEADLINE_MS=1500)
    with channel(server) as opened:
        for _ in range(5):
            infer(opened, 0.3).result()
        calls = [infer(opened, 0.3) for _ in range(20)]
        found = Counter(call.code().name for call in calls)
        # 1.5 s are enough for four of 0.3 s, one more or less
        assert set(found) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, found
        assert found["OK"] >= 3 and found["UNAVAILABLE"] >= 13 and found["DEADLINE_EXCEEDED"] <= 2, found
        late = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
        assert all("come back later" in call.details() for call in late)
        assert all(int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1000 for call in late)


@pytest.mark.parametrize("count", [1, 2])
def test_every_call_that_a_killed_worker_held_is_answered(slow, count):
    server = slow(MULES=4, WORKERS=3, THREADS=8)
    with channel(server) as opened:
        calls = [infer(opened, 0.3 + number / 1000) for number in range(16)]
        victims = server.prediction_workers()[:count]
        wait_until(lambda: hold_several(server, victims), "they hold several", 10)
        kill(server, victims)
        assert [slept(call.result()) for call in calls] == [[0.3 + number / 1000] for number in range(16)]


def test_a_large_message_is_sent_again_whole(start, tmp_path):
    server = serve(start, MODEL=write_model(tmp_path / "blob", BLOB), MULES=1, WORKERS=2, THREADS=4)
    text = typed("text", "BYTES", [1], bytes_contents=[b"x" * 900_000])
    with channel(server) as opened:
        call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer.future(
            service_pb2.ModelInferRequest(inputs=[*seconds(0.5).inputs, text])
        )
        wait_until(lambda: busy(server), "it is predicted", 10)
        kill(server, server.prediction_workers())
        assert slept(call.result()) == [900_000]


def test_what_a_killed_replica_held_is_answered_by_the_others(slow):
    server = slow(MULES=3)
    with channel(server) as opened:
        calls = [infer(opened, 0.3 + number / 1000) for number in range(9)]
        victim = wait_until(lambda: len(busy(server)) == 3 and busy(server)[0], "all are busy", 10)
        os.kill(victim, signal.SIGKILL)
        assert [slept(call.result()) for call in calls] == [[0.3 + number / 1000] for number in range(9)]


def test_the_input_that_crashes_is_told_to_who_sent_it(start, tmp_path):
    server = serve(start, MODEL=write_model(tmp_path / "trap", TRAP), MULES=2)
    with channel(server) as opened:

        def do(word):
            tensor = typed("do", "BYTES", [1], bytes_contents=[word])
            return service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer.future(
                service_pb2.ModelInferRequest(inputs=[tensor])
            )

        code, words = told(do(b"exit"))
        assert code is grpc.StatusCode.INTERNAL and "exited with status 3" in words
        assert do(b"good").result().outputs[0].contents.bytes_contents == [b"good"]


@contextmanager
def load(server, clients=6):
    """Clients that do not cease to call, each over its own connection; each answer was right, in the end.

    Gives how many calls there were, and the states that the connections came to.
    """
    over, wrong, count, states = threading.Event(), [], [0], []

    def ask(number):
        with channel(server) as opened:
            opened.subscribe(states.append)
            call = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer
            turn = 0
            while not over.is_set():
                turn += 1
                sent = f"{number}/{turn}".encode()
                tensor = typed("text", "BYTES", [1], bytes_contents=[sent])
                try:
                    found = call(service_pb2.ModelInferRequest(inputs=[tensor]), timeout=10)
                    if found.outputs[0].contents.bytes_contents != [b"one " + sent]:
                        wrong.append(found)
                except grpc.RpcError as error:
                    wrong.append((error.code(), error.details(), error.debug_error_string()))
                count[0] += 1

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask, number) for number in range(clients)]
        try:
            wait_until(lambda: count[0] >= 10 * clients or wrong, "all call")
            yield count, states
            before = count[0]
            wait_until(lambda: count[0] >= before + 10 * clients or wrong, "all still call")
        finally:
            over.set()
        for one in running:
            one.result()
    assert wrong == []


@pytest.fixture
def words(start, tmp_path):
    model = write_model(tmp_path / "model", WORDS)
    (model / "word").write_text("one")
    return lambda **environ: serve(start, MODEL=model, MULES=1, **environ)


def test_a_connection_that_has_had_its_share_of_calls_is_closed_and_no_call_fails(words):
    server = words()
    with load(server) as (count, states):
        wait_until(lambda: count[0] > 9000, "a thousand calls for each, and more", 60)
        # nginx has ended each
        assert states.count(grpc.ChannelConnectivity.IDLE) >= 6


def test_a_reload_fails_no_call(words):
    server = words(SERVING_DEADLINE_MS=4000, SERVING_STOP_TIMEOUT_S=5)
    (before,) = masters(server, 1)
    with load(server):
        assert reload(server, "--all")[::2] == (0, "")
    assert masters(server, 1) != [before]


def test_a_port_that_is_set_later_is_there_after_a_reload_and_gone_after_the_next(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    port = free_port()
    server = start(MODEL=model, INI=write_ini(tmp_path, mules=1)).wait_ready()
    write_ini(tmp_path, mules=1, grpc_port=port)
    assert reload(server)[::2] == (0, "")
    server.settings["GRPC_PORT"] = port
    with channel(server) as opened:
        # nginx takes its new configuration a moment later
        assert slept(infer(opened, 0.0, wait_for_ready=True, timeout=10).result()) == [0.0]
    write_ini(tmp_path, mules=1, grpc_port=server.port)
    status, _, said = reload(server)
    assert status == 1 and f"grpc_port = {server.port} is the port for HTTP too" in said
    write_ini(tmp_path, mules=1)
    assert reload(server)[::2] == (0, "")

    def refused():
        with channel(server) as opened:
            return infer(opened, 0.0, timeout=5).code() is grpc.StatusCode.UNAVAILABLE

    wait_until(refused, "nobody listens there", 10)
    assert server.predict({"seconds": 0}).status == 200


def test_kills_of_mules_and_workers_fail_no_call(words):
    server = words(SERVING_DEADLINE_MS=4000, SERVING_STOP_TIMEOUT_S=5)
    with load(server):
        for turn in range(8):
            time.sleep(0.4)
            wait_until(lambda: server.ready()["ready_replicas"], "it is ready")
            victims = server.processes()["worker"] if turn % 2 else [server.ready()["replicas"][0]["pid"]]
            os.kill(victims[turn // 2 % len(victims)], signal.SIGKILL)


def test_a_stop_answers_what_is_in_flight(slow):
    server = slow(MULES=2)
    with channel(server) as opened:
        calls = [infer(opened, 1.0 + number / 1000) for number in range(2)]
        wait_until(lambda: len(busy(server)) == 2, "both are busy", 10)
        server.process.send_signal(signal.SIGTERM)
        assert [slept(call.result()) for call in calls] == [[1.0], [1.001]]
    assert server.stop() == 0
