"""The checking client: constant load over many connections, each answer compared with the right one for its input.

One thread and one epoll loop over raw sockets, for it shares its cores with the server.  What a request can come to:

right      200 with the answer to this very input
refused    an answer that the row expects: 503 with Retry-After under overload, a connection refused after a stop
wrong      200 with anything else
lost       no answer, or one that the row does not expect: a cut connection, 502, 500, 504
hung       nothing at the deadline and PATIENCE_S later

A keep-alive connection that the server closes before a request was written to it is opened again, and counts for
nothing.  One that it cuts after that, before or in the answer, has lost the request.

Units: seconds.
"""

import errno
import heapq
import http.client
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

PATIENCE_S = 3.0
BURST = 8
# a connection that was refused is tried again after so long
REFUSED_PAUSE_S = 0.02
REFUSED = "connection refused"
CUT = "connection cut"
KEPT_LOSSES = 200

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n")
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n")
_CODE = re.compile(rb'"code": ?"(\w+)"')


class Work(Protocol):
    """Inputs and their right answers, by number."""

    def body(self, number: int) -> bytes: ...

    def is_right(self, number: int, answer: bytes) -> bool: ...


@dataclass
class Loss:
    """One request that was answered wrongly or not at all."""

    kind: str
    request_id: str
    sent_at: float
    ended_at: float
    detail: str


@dataclass
class Tally:
    """What came of the requests."""

    sent: int = 0
    right: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    hung: int = 0
    # between two right answers, of whichever connections
    longest_gap_s: float = 0.0
    # of all that the server took on: not of refusals
    slowest_s: float = 0.0
    losses: list[Loss] = field(default_factory=list)

    def lose(self, loss: Loss) -> None:
        """Count a request that is wrong, lost or hung."""
        setattr(self, loss.kind, getattr(self, loss.kind) + 1)
        if len(self.losses) < KEPT_LOSSES:
            self.losses.append(loss)

    def excuse(self, loss: Loss, refusal: str) -> None:
        """What was counted as lost turned out to be a refusal."""
        self.losses.remove(loss)
        self.lost -= 1
        self.refused[refusal] += 1

    def add(self, other: "Tally") -> None:
        for name in ("sent", "right", "wrong", "lost", "hung"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        self.longest_gap_s = max(self.longest_gap_s, other.longest_gap_s)
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.losses += other.losses


@dataclass
class Answer:
    """The answer to a single request, read to its end."""

    status: int
    code: str
    retry_after: str | None
    body: bytes


def ask(port: int, body: bytes, request_id: str, timeout_s: float) -> Answer:
    """One request beside the load, on a connection of its own.  OSError and HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", "/predict", body, {"X-Request-ID": request_id})
        response = connection.getresponse()
        answer = response.read()
        return Answer(response.status, _code(answer), response.getheader("Retry-After"), answer)
    finally:
        connection.close()


class _Connection:
    """One client: at most one request at a time."""

    __slots__ = (
        "busy",
        "connecting",
        "due",
        "number",
        "place",
        "received",
        "request_id",
        "sent_at",
        "socket",
        "unsent",
    )

    def __init__(self, place: int, due: float) -> None:
        self.place = place
        self.due = due
        self.socket: socket.socket | None = None
        self.connecting = False
        # a request was written, and its answer is not complete
        self.busy = False
        self.number = 0
        self.request_id = b""
        self.sent_at = 0.0
        self.received = b""
        self.unsent = b""


class Load:
    """Clients that ask and check, from start() to stop()."""

    def __init__(
        self,
        port: int,
        work: Work,
        *,
        connections: int,
        rate: float | None,
        deadline_s: float,
        name: str = "load",
        refusals: Collection[str] = (),
        fresh: bool = False,
        burst: bool = False,
    ) -> None:
        """rate: requests a second over all connections, None for as many as are answered.  refusals: what is expected,
        of "503", "504" and REFUSED.  fresh: a connection for each request.  burst: BURST connections ask at a time.
        """
        self.tally = Tally()
        self._address = ("127.0.0.1", port)
        self._work = work
        self._period_s = connections / rate if rate else 0.0
        self._limit_s = deadline_s + PATIENCE_S
        self._name = name.encode()
        self._refusals = refusals
        self._fresh = fresh
        self._head = b"POST /predict HTTP/1.1\r\nHost: bench\r\n" + (b"Connection: close\r\n" if fresh else b"")
        now = time.monotonic()
        group = BURST if burst else 1
        offset_s = self._period_s / connections * group
        self._connections = [_Connection(place, now + place // group * offset_s) for place in range(connections)]
        self._epoll = select.epoll()
        self._by_file: dict[int, _Connection] = {}
        # a place in the heap for each connection that has no request
        self._due = [(connection.due, connection.place) for connection in self._connections]
        self._next_number = 0
        self._last_right = 0.0
        self._last_sent = 0.0
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")

    def start(self) -> "Load":
        self._thread.start()
        return self

    def stop(self) -> Tally:
        """Ask nothing more, wait for what is asked, and give the tally."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.tally

    def _run(self) -> None:
        try:
            look_at = time.monotonic()
            while not self._stopping.is_set() or any(connection.busy for connection in self._connections):
                now = time.monotonic()
                if now >= look_at:
                    self._give_up(now)
                    look_at = now + 0.25
                self._turn(now, look_at)
        except BaseException as error:
            self._error = error
        finally:
            for connection in self._connections:
                self._close(connection)
            self._epoll.close()

    def _turn(self, now: float, until: float) -> None:
        if self._due and not self._stopping.is_set():
            until = min(until, self._due[0][0])
        for file, events in self._epoll.poll(max(0.0, until - now)):
            if connection := self._by_file.get(file):
                self._handle(connection, events)
        if self._stopping.is_set():
            return
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, place = heapq.heappop(self._due)
            self._ask(self._connections[place])

    def _ask(self, connection: _Connection) -> None:
        number = self._next_number
        self._next_number += 1
        connection.number = number
        connection.request_id = b"%s-%d" % (self._name, number)
        connection.received = b""
        connection.sent_at = time.monotonic()
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        if connection.socket is None:
            self._connect(connection)
            return
        body = self._work.body(connection.number)
        request = b"%sX-Request-ID: %s\r\nContent-Length: %d\r\n\r\n%s" % (
            self._head,
            connection.request_id,
            len(body),
            body,
        )
        try:
            sent = connection.socket.send(request)
        except (BrokenPipeError, ConnectionResetError):
            # the server had closed before anything was written
            self._close(connection)
            if self._fresh:
                self._refused(connection)
            else:
                self._connect(connection)
            return
        connection.busy = True
        self.tally.sent += 1
        if sent < len(request):
            connection.unsent = request[sent:]
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _connect(self, connection: _Connection) -> None:
        connection.socket = opened = socket.socket()
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = opened.connect_ex(self._address)
        self._by_file[opened.fileno()] = connection
        if status not in (0, errno.EINPROGRESS):
            self._refused(connection)
            return
        connection.connecting = True
        self._epoll.register(opened, select.EPOLLIN | select.EPOLLOUT)

    def _handle(self, connection: _Connection, events: int) -> None:
        opened = connection.socket
        if opened is None:
            return
        if connection.connecting:
            if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._refused(connection)
                return
            connection.connecting = False
            self._epoll.modify(opened, select.EPOLLIN)
            self._write(connection)
            return
        if connection.unsent and events & select.EPOLLOUT:
            self._write_rest(connection, opened)
        if not events & ~select.EPOLLOUT:
            return
        try:
            received = opened.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._cut(connection, error.strerror or "error")
            return
        if received:
            connection.received += received
            self._read(connection)
        else:
            self._cut(connection, "end of file")

    def _write_rest(self, connection: _Connection, opened: socket.socket) -> None:
        try:
            connection.unsent = connection.unsent[opened.send(connection.unsent) :]
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            # what the server has answered before it closed is still to be read
            return
        if not connection.unsent:
            self._epoll.modify(opened, select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        received = connection.received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        # with the empty line's first half, so that each header ends alike
        head = received[: end + 2].lower()
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without Content-Length: {head!r}")
        body = received[end + 4 :]
        if len(body) < int(length[1]):
            return
        if not connection.busy:
            raise ValueError(f"an answer to nothing: {received!r}")
        self._judge(connection, int(head[9:12]), head, body)
        if self._fresh or b"\r\nconnection: close\r\n" in head:
            self._close(connection)
        self._done(connection)

    def _judge(self, connection: _Connection, status: int, head: bytes, body: bytes) -> None:
        now = time.monotonic()
        tally = self.tally
        if status == 503 and "503" in self._refusals and _RETRY_AFTER.search(head):
            tally.refused["503"] += 1
            return
        if status == 504 and "504" in self._refusals:
            tally.refused["504"] += 1
            return
        tally.slowest_s = max(tally.slowest_s, now - connection.sent_at)
        if status == 200 and self._work.is_right(connection.number, body):
            tally.right += 1
            if self._last_right:
                tally.longest_gap_s = max(tally.longest_gap_s, now - self._last_right)
            self._last_right = now
        elif status == 200:
            self._lose(connection, "wrong", body[:200].decode(errors="replace"))
        else:
            self._lose(connection, "lost", f"{status} {_code(body)}")

    def _cut(self, connection: _Connection, how: str) -> None:
        busy, begun = connection.busy, bool(connection.received)
        self._close(connection)
        if busy:
            self._lose(connection, "lost", f"{CUT}: {how}{' in the answer' if begun else ''}")
            self._done(connection)

    def _refused(self, connection: _Connection) -> None:
        self._close(connection)
        if REFUSED in self._refusals:
            self.tally.refused[REFUSED] += 1
        else:
            self._lose(connection, "lost", REFUSED)
        self._done(connection, REFUSED_PAUSE_S)

    def _give_up(self, now: float) -> None:
        for connection in self._connections:
            waits = connection.busy or connection.connecting
            if waits and now - connection.sent_at > self._limit_s:
                self._close(connection)
                self._lose(connection, "hung", f"no answer for {now - connection.sent_at:.1f} s")
                self._done(connection)

    def _lose(self, connection: _Connection, kind: str, detail: str) -> None:
        id = connection.request_id.decode()
        self.tally.lose(Loss(kind, id, connection.sent_at, time.monotonic(), detail))

    def _done(self, connection: _Connection, pause_s: float = 0.0) -> None:
        connection.busy = False
        now = time.monotonic()
        # a client that is late does not catch up
        connection.due = max(connection.due + self._period_s, now + pause_s)
        heapq.heappush(self._due, (connection.due, connection.place))

    def _close(self, connection: _Connection) -> None:
        if connection.socket is not None:
            self._by_file.pop(connection.socket.fileno(), None)
            connection.socket.close()
        connection.socket = None
        connection.connecting = False
        connection.unsent = b""


def _code(body: bytes) -> str:
    found = _CODE.search(body)
    return found[1].decode() if found else ""
