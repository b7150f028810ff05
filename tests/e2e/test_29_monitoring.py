"""What the server tells a real Prometheus: the files of deploy/monitoring, the counts, exemplars, panels and alerts."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Server, free_port, wait_until, write_model

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
SLOW = """
import time


class Model:
    inputs = {"s": "float32"}
    outputs = {"done": "bool"}
    batched = False

    def __init__(self, path): ...

    def predict(self, inputs):
        time.sleep(float(inputs["s"]))
        return {"done": True}
"""
BROKEN = "raise RuntimeError('no weights')"


def promtool(*arguments, **options):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """One that runs by the files of deploy/monitoring, but for whom it asks, and how often."""

    def __init__(self, port, tmp_path):
        self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(MONITORING / "rules.yml", self.folder)
        command = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]["prometheus"]["command"]
        self.port = free_port()
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    *(option for option in command if "=/" not in option),
                    *("--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def get(self, path, **asked):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression):
        return self.get("query", query=expression)["result"]

    def number(self, expression):
        """Of the only series that there is, or None."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def wait(self):
        """Until it has read what there is now."""
        now = time.time()

        def read():
            assert self.process.poll() is None, (self.folder / "out").read_text()
            with suppress(OSError):
                # of a selector alone; of what is made of one it is the time of the question
                return self.number("up") == 1 and self.number("timestamp(up)") > now
            return False

        wait_until(read, "a scrape that begins now")
        return self

    def close(self):
        self.process.terminate()
        self.process.wait(30)


class Plain(http.server.BaseHTTPRequestHandler):
    """Asks the server behind it as a Prometheus would that knows no OpenMetrics."""

    def do_GET(self):
        url = f"http://127.0.0.1:{self.server.behind}{self.path}"
        asked = urllib.request.Request(url, headers={"Accept": "text/plain;version=0.0.4"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...


@contextmanager
def plain(port):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as relay:
        relay.behind = port
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield relay.server_port
        finally:
            relay.shutdown()
            thread.join()


class Story:
    """A server of two replicas, two Prometheus that watch it, each in one text format, and what it was asked."""

    def __init__(self, tmp_path, server, openmetrics, text):
        self.server, self.prometheus = server, {"openmetrics": openmetrics, "text": text}
        self.model = tmp_path / "model"
        self.asked = Counter()
        self.ids = []

    def ask(self, value, count=1, at_once=1, **headers):
        """Predict the value so often: the statuses of the answers."""
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(lambda _: self.server.predict(value, **headers), range(count)))
        self.asked += Counter((str(answer.status), answer.json.get("code", "")) for answer in answers)
        self.ids += [answer.headers["x-request-id"] for answer in answers if answer.status == 200]
        return {answer.status for answer in answers}

    def replicas(self):
        """The processes that are ready."""
        return {replica["pid"] for replica in self.server.ready()["replicas"] if replica["ready"]}

    def wait(self):
        for prometheus in self.prometheus.values():
            prometheus.wait()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("monitoring")
    server = Server(MODEL=write_model(tmp_path / "model", SLOW), MULES=2, WORKERS=2, THREADS=4)
    running = [server]
    try:
        server.wait_ready()
        with plain(server.port) as port:
            running += [openmetrics := Prometheus(server.port, tmp_path), text := Prometheus(port, tmp_path)]
            story = Story(tmp_path, server, openmetrics, text)
            story.wait()
            assert story.ask({"s": 0}, 20) == {200}
            assert story.ask({"t": 0}, 3) == {400}
            assert story.ask({"s": 1}, X_Request_Timeout_Ms="200") == {504}
            wait_until(lambda: 503 in story.ask({"s": 0.3}, 8, at_once=8), "there are more requests than threads")
            # what follows is a change of what has been seen; what nginx refuses by itself is counted a little later
            for prometheus in (openmetrics, text):
                wait_until(lambda: prometheus.query('muleteer_requests_total{status="503"}'), "it is counted")  # noqa: B023
            story.wait()
            killed = server.ready()["replicas"][0]["pid"]
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: len(story.replicas() - {killed}) == 2, "two are ready again")
            assert story.ask({"s": 0.01}, 10) == {200}
            story.wait()
            yield story
    finally:
        for process in reversed(running):
            process.close()


def test_promtool_finds_no_fault_in_the_files():
    told = promtool("check", "config", MONITORING / "prometheus.yml")
    assert "SUCCESS: 1 rule files found" in told
    assert f"SUCCESS: {sum(len(group['rules']) for group in RULES['groups'])} rules found" in told
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml", cwd=MONITORING)


def test_promtool_finds_no_fault_in_a_scrape(story):
    scrape = story.server.request("GET", "/metrics")
    assert scrape.headers["content-type"].startswith("text/plain")
    assert promtool("check", "metrics", input=scrape.body.decode()) == ""


@pytest.mark.parametrize("format", ["openmetrics", "text"])
def test_prometheus_counts_what_was_asked(story, format):
    prometheus = story.prometheus[format]
    found = prometheus.query('sum by (status, code) (muleteer_requests_total{route="/predict"})')
    counts = {(one["metric"]["status"], one["metric"].get("code", "")): int(one["value"][1]) for one in found}
    assert counts == story.asked
    answered = story.asked["200", ""]
    assert prometheus.number('sum(muleteer_rows_total{route="/predict", version="1"})') == answered
    assert prometheus.number('sum(muleteer_stage_duration_seconds_count{stage="predict"})') == answered
    whole = 'sum(muleteer_request_duration_seconds_bucket{route="/predict", le="+Inf"})'
    assert prometheus.number(whole) == sum(story.asked.values())


@pytest.mark.parametrize("format", ["openmetrics", "text"])
def test_prometheus_counts_the_replica_that_was_killed(story, format):
    prometheus = story.prometheus[format]
    assert prometheus.number('sum(muleteer_replica_deaths_total{reason="killed"})') == 1
    assert prometheus.number("sum(muleteer_replica_deaths_total)") == 1
    assert prometheus.number('sum(muleteer_replica_loads_total{result="ready"})') == 3
    assert prometheus.number("sum(muleteer_replica_ready)") == 2


def test_an_exemplar_leads_to_its_request(story):
    name = 'muleteer_request_duration_seconds_bucket{version="1"}'
    asked = {"query": name, "start": time.time() - 600, "end": time.time()}
    found = {format: one.get("query_exemplars", **asked) for format, one in story.prometheus.items()}
    ids = {exemplar["labels"]["request_id"] for one in found["openmetrics"] for exemplar in one["exemplars"]}
    assert ids and ids <= set(story.ids)
    # there it has none
    assert found["text"] == []
    assert story.server.access(ids.pop())["path"] == "/predict"


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title}, {each['refId']}" for title, each in TARGETS])
def test_each_panel_shows_something(story, title, target):
    expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
    assert "$" not in expression
    found = story.prometheus["openmetrics"].query(expression)
    assert any(one["value"][1] != "NaN" for one in found)


def test_every_metric_that_is_named_is_given(story):
    text = story.server.request("GET", "/metrics").body.decode()
    given = set(re.findall(r"^(muleteer_\w+)", text, re.MULTILINE))
    for name in ("dashboard.json", "rules.yml", "rules_test.yml"):
        named = set(re.findall(r"\bmuleteer_\w+", (MONITORING / name).read_text()))
        assert len(named) > 5 and named - given == set(), name


def test_every_rule_is_evaluated_and_a_model_that_cannot_be_loaded_raises_the_alarm(story):
    prometheus = story.prometheus["openmetrics"]
    names = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    (group,) = wait_until(lambda: prometheus.get("rules")["groups"], "the rules are read")
    assert [rule["name"] for rule in group["rules"]] == names
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    alarm = 'ALERTS{alertstate="firing", alertname="MuleteerLoadsFail"}'
    assert prometheus.query(alarm) == []
    write_model(story.model, BROKEN)
    os.kill(story.server.ready()["replicas"][1]["pid"], signal.SIGKILL)
    wait_until(lambda: prometheus.query(alarm), "the alarm")
