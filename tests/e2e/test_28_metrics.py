"""The counts that /metrics tells are those of the client, to the request, whoever dies meanwhile."""

import os
import signal
import threading
import time
from collections import Counter
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import DIGITS, FANCY, ROOT, ask, reload, wait_until, write_model
from .test_08_crash import TRAP

CLIENTS = 8


def scrape(server):
    answer = server.request("GET", "/metrics")
    assert answer.status == 200, answer.body
    families = text_string_to_metric_families(answer.body.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def requests(samples, route="/predict"):
    """How many ended in which status, on a route."""
    found = Counter()
    for (name, labels), count in samples.items():
        labels = dict(labels)
        if name == "muleteer_requests_total" and labels["route"] == route:
            found[int(labels["status"])] += int(count)
    return found


def total(samples, name, **labels):
    return sum(
        count
        for (found, has), count in samples.items()
        if found == f"muleteer_{name}" and labels.items() <= dict(has).items()
    )


def is_gone(server, role, pid):
    return pid not in server.processes()[role]


def has_buried(server, count):
    return total(scrape(server), "replica_deaths_total") == count


class Load:
    """Clients that ask one after the other, and count the statuses; closes: connections may end before a request."""

    def __init__(self, server, body=b'{"text": "metrics"}', closes=False):
        self.statuses = Counter()
        self._server, self._body, self._closes = server, body, closes
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        connection = self._server.connect()
        while not self._over.is_set() and self._server.process.poll() is None:
            try:
                self.statuses[ask(connection, "POST", "/predict", self._body).status] += 1
            except ConnectionError:
                if not self._closes:
                    raise
                connection.close()
        connection.close()

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.statuses


def test_the_counts_are_those_of_the_client(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    load = Load(server)
    time.sleep(2)
    sent = load.stop()
    refused = [server.request("POST", "/predict", body).status for body in (b"", b"{}", b'{"text": 3}')]
    assert refused == [400] * 3
    samples = scrape(server)
    assert requests(samples) == {200: sent[200], 400: 3} and set(sent) == {200}
    assert total(samples, "rows_total") == total(samples, "batch_rows_sum") == sent[200]
    assert total(samples, "batch_tasks_sum") == sent[200]
    for stage in ("accept", "decode", "queue", "predict", "encode"):
        assert total(samples, "stage_duration_seconds_count", stage=stage) == sent[200]
    assert total(samples, "request_duration_seconds_count", route="/predict") == sent[200] + 3


def test_what_nginx_answers_by_itself_is_counted(start):
    server = start(MODEL=FANCY, MULES=1, WORKERS=2, THREADS=1, SERVING_MAX_BODY_BYTES=1000).wait_ready()
    assert server.request("POST", "/predict", b"x" * 2000).status == 413
    load = Load(server)
    wait_until(lambda: load.statuses[503] > 20 and load.statuses[200] > 20, "some are refused, and some are not")
    sent = load.stop()
    # nginx writes them once a second
    wait_until(lambda: requests(scrape(server)) == sent + Counter({413: 1}), "all are counted")
    samples = scrape(server)
    assert total(samples, "requests_total", code="queue_full", status="503") > 0
    assert total(samples, "requests_total", code="too_large", status="413") == 1


@pytest.mark.parametrize("role", ["mule", "worker"])
def test_no_count_is_lost_when_somebody_is_killed(start, role):
    server = start(MODEL=FANCY, MULES=3, WORKERS=3).wait_ready()
    load = Load(server)
    before = 0
    for kill in range(4):
        time.sleep(0.5)
        victim = server.processes()["mule"][0] if role == "mule" else server.prediction_workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(partial(is_gone, server, role, victim), "it is gone")
        wait_until(lambda: server.ready()["ready_replicas"] == 3, "its successor is there")
        count = sum(requests(scrape(server)).values())
        assert count > before
        before = count
        if role == "mule":
            wait_until(partial(has_buried, server, kill + 1), "it is buried")
    sent = load.stop()
    assert set(sent) == {200}
    counted = requests(scrape(server))
    # a worker may die between the count and the answer, and another one answers then
    assert sent[200] <= counted[200] <= sent[200] + (4 * CLIENTS if role == "worker" else 0)
    assert set(counted) == {200}


def test_who_may_see_it_is_a_setting(start):
    server = start(MODEL=FANCY, MULES=1, SERVING_MONITOR_FROM="192.0.2.0/24, ::1").wait_ready()
    answer = server.request("GET", "/metrics")
    assert answer.status == 403 and answer.json["code"] == "forbidden"
    assert "monitor_from in uwsgi.ini" in answer.json["detail"]


def test_a_reload_takes_no_count_away(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    for _ in range(5):
        assert server.predict({"text": "a"}).status == 200
    assert reload(server)[0] == 0
    assert server.predict({"text": "a"}).status == 200
    samples = scrape(server)
    assert requests(samples)[200] == 6
    assert total(samples, "replica_loads_total", result="ready") == 2


class Scrapes:
    """Scrapes one after the other, until it is told to stop: no count steps back, and none goes."""

    KINDS = ("_total", "_count", "_sum", "_bucket")

    def __init__(self, server):
        self.count = 0
        self._server = server
        self._back = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        before = {}
        while not self._over.is_set():
            samples = scrape(self._server)
            now = {key: value for key, value in samples.items() if key[0].endswith(self.KINDS)}
            self._back += [(key, value, now.get(key)) for key, value in before.items() if now.get(key, -1) < value]
            before = now
            self.count += 1

    def stop(self):
        self._over.set()
        self._thread.join()
        return self._back


def test_counts_go_on_in_another_uwsgi(start, tmp_path):
    ini = tmp_path / "uwsgi.ini"
    shipped = (ROOT / "uwsgi.ini").read_text()
    ini.write_text(shipped)
    server = start(MODEL=FANCY, INI=ini, SERVING_MAX_BODY_BYTES=1000).wait_ready()
    assert server.request("POST", "/predict", b"x" * 2000).status == 413
    # nginx, when it reloads too, closes those on which it has read no request
    load, scrapes = Load(server, closes=True), Scrapes(server)
    others = [
        shipped.replace("\nprocesses = 3", "\nprocesses = 4").replace("mules = 2", "mules = 4"),
        shipped.replace("\nthreads = 64", "\nthreads = 16").replace("mules = 2", "mules = 1"),
        shipped,
    ]
    for reloads, other in enumerate(others, start=1):
        assert ini.read_text() != other
        ini.write_text(other)
        done = reload(server)
        assert done[0] == 0 and "uWSGI anew" in done[1], done
        wait_until(lambda before=load.statuses[200]: load.statuses[200] > before + 200, "it serves")
        assert scrapes.count > 20 * reloads
    assert reload(server, "--all")[0] == 0
    sent = load.stop()
    assert set(sent) == {200}
    wait_until(lambda: requests(scrape(server)) == sent + Counter({413: 1}), "all are counted")
    assert scrapes.stop() == []
    samples = scrape(server)
    assert total(samples, "rows_total") == total(samples, "batch_rows_sum") == sent[200]
    assert total(samples, "stage_duration_seconds_count", stage="predict") == sent[200]
    assert total(samples, "replica_loads_total", result="ready") == 2 + 4 + 1 + 2 + 2
    assert total(samples, "replica_deaths_total") == 0
    told = server.request("GET", "/v2/models/fancy/stats").json["model_stats"][0]
    assert told["inference_count"] == sent[200]


def test_a_reload_that_fails_takes_no_count_away_and_another_model_has_its_own(start, tmp_path):
    ini, model = tmp_path / "uwsgi.ini", tmp_path / "other"
    shipped = (ROOT / "uwsgi.ini").read_text()
    ini.write_text(shipped.replace("model = models/digits", f"model = {FANCY}"))
    server = start(INI=ini, SERVING_LOAD_ATTEMPTS=1).wait_ready()
    assert server.predict({"text": "a"}).status == 200
    write_model(model, "raise RuntimeError('it does not load')")
    ini.write_text(shipped.replace("model = models/digits", f"model = {model}"))
    assert reload(server)[0] == 1
    assert server.predict({"text": "a"}).status == 200
    assert requests(scrape(server)) == {200: 2}
    write_model(model, (FANCY / "model.py").read_text())
    assert reload(server)[0] == 0
    assert server.predict({"text": "a"}).status == 200
    samples = scrape(server)
    assert requests(samples) == {200: 1}
    assert total(samples, "requests_total", model="other", route="/predict") == 1


def test_a_uwsgi_that_is_told_to_start_itself_anew_counts_on(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    before = server.processes()
    assert [server.predict({"text": "a"}).status for _ in range(3)] == [200] * 3
    os.kill(before["master"][0], signal.SIGHUP)
    gone = {*before["worker"], *before["mule"]}
    wait_until(lambda: not gone & {pid for some in server.processes().values() for pid in some}, "they have gone")
    wait_until(lambda: server.request("GET", "/readyz").status == 200, "it serves again")
    assert server.predict({"text": "a"}).status == 200
    assert requests(scrape(server))[200] == 4


def test_versions_are_told_apart(start, tmp_path):
    server = start(MODEL=DIGITS, MULES=1).wait_ready()
    assert server.request("POST", "/v2/models/digits/versions/7/infer", b"{}").status == 404
    image = {"image": [[0] * 8] * 8}
    assert server.predict(image).status == 200
    samples = scrape(server)
    assert total(samples, "requests_total", version="1", status="200") == 1
    assert total(samples, "requests_total", route="/v2/models/{model}/infer", status="404") == 1
    assert total(samples, "info", model="digits", engine="tensorflow") == 1


def test_the_cache_tells_of_how_many_inputs_it_takes_notes(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "trap", TRAP), MULES=2, SERVING_QUARANTINE_S=30).wait_ready()
    samples = scrape(server)
    assert total(samples, "cache_items") == 0
    assert total(samples, "cache_capacity") == 1023
    for _ in range(2):
        answer = server.predict({"do": "exit"})
        assert (answer.status, answer.json["code"]) == (500, "replica_crashed")
    assert total(scrape(server), "cache_items") == 1
