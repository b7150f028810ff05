"""Notes in the memory of one process, where no uWSGI runs."""

import time


class MemoryNotes:
    """What uwsgi_transport.Notes does with uWSGI's cache."""

    def __init__(self):
        self._notes = {}

    def put(self, key, value, seconds):
        self._notes[key] = (value, time.monotonic() + seconds)

    def get(self, key):
        value, until = self._notes.get(key, (None, 0.0))
        return value if time.monotonic() < until else None

    def delete(self, key):
        self._notes.pop(key, None)

    def count(self):
        return sum(time.monotonic() < until for _, until in self._notes.values())
