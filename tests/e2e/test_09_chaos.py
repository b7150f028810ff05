"""Faults under load: the rows of `make chaos`, a few faults each; and the instrument sees what it has to."""

import socket
import threading
import time
from contextlib import suppress

import pytest

from bench import chaos
from bench.load import PATIENCE_S, Load
from bench.work import Fancy


@pytest.fixture(scope="module")
def capacities():
    """What each model can do, measured once."""
    return {}


@pytest.mark.parametrize("row", chaos.rows(), ids=lambda row: row.name)
def test_nothing_is_wrong_lost_or_hung_under(row, capacities):
    result = chaos.run(row, short=True, seed=7, capacities=capacities)
    told = chaos.render([result], seed=7)
    assert result.failures == [], told
    assert (result.tally.wrong, result.tally.lost, result.tally.hung) == (0, 0, 0), told
    assert result.done >= row.short and result.tally.right > 100, told
    assert result.ok


class Other(Fancy):
    """It asks what fancy is asked, and thinks that each third answer should be another."""

    def is_right(self, number, answer):
        return super().is_right(number + (number % 3 == 0), answer)


def test_the_client_sees_a_wrong_answer(fancy):
    load = Load(fancy.port, Other("other"), connections=4, rate=None, deadline_s=5).start()
    time.sleep(0.5)
    tally = load.stop()
    assert tally.sent == tally.right + tally.wrong and tally.wrong == -(-tally.sent // 3)
    assert {(loss.kind, int(loss.request_id.removeprefix("load-")) % 3) for loss in tally.losses} == {("wrong", 0)}


@pytest.mark.parametrize(
    ("answer", "kind", "detail"),
    [
        (b"", "lost", "connection cut: end of file"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
            "lost",
            "connection cut: end of file in the answer",
        ),
        (b'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 22\r\n\r\n{"code":"bad_gateway"}', "lost", "502 bad_gateway"),
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", "lost", "503 "),
        (None, "hung", "no answer for "),
    ],
)
def test_the_client_sees_what_is_lost(answer, kind, detail):
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    if answer is None:
                        over.wait()
                    else:
                        connection.sendall(answer)

    server = threading.Thread(target=serve)
    server.start()
    load = Load(listener.getsockname()[1], Fancy("lost"), connections=1, rate=2, deadline_s=0, refusals={"503"}).start()
    time.sleep(PATIENCE_S + 0.5 if answer is None else 0.3)
    over.set()
    tally = load.stop()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join()
    assert tally.sent >= 1 and tally.right == 0
    assert getattr(tally, kind) >= 1, tally
    assert tally.losses[0].detail.startswith(detail)


def test_the_client_counts_refusals_apart():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for refusals in ((), (chaos.REFUSED,)):
        load = Load(port, Fancy("refused"), connections=1, rate=None, deadline_s=1, refusals=refusals).start()
        time.sleep(0.1)
        tally = load.stop()
        assert (tally.lost > 0, tally.refused[chaos.REFUSED] > 0) == (not refusals, bool(refusals))
