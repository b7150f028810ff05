"""A tiny real HTTP server: it answers each body as it is told to, and counts what it answered."""

import socket
import threading
from collections import Counter
from contextlib import suppress


class TinyServer:
    """answer(body, number) gives the pieces of an answer, and what to count it as.

    A piece is bytes, a pause in seconds, or None to close the connection.
    """

    def __init__(self, answer):
        self.counts = Counter()
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._connections = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            while lines.readline():
                length = 0
                while (line := lines.readline().strip()) and line:
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = lines.read(length)
                with self._lock:
                    number = self.counts.total()
                    pieces, kind = self._answer(body, number)
                    self.counts[kind] += 1
                for piece in pieces:
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        self._closed.wait(piece)
                    else:
                        connection.sendall(piece)

    def close(self):
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def sized(body, status="200 OK", *headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*parts):
    """Head, chunks and end, each on its own."""
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]
