"""The live page, as an operator has it: in Chromium, with real clicks, under real load."""

import io
import json
import os
import re
import signal
import socket

import pytest
from PIL import Image

from ..browser import browser
from .conftest import FANCY, reload, wait_until
from .pen import DIGITS as PENNED
from .pen import draw
from .test_28_metrics import Load, requests, scrape, total
from .test_29_monitoring import SLOW

SIZES = [(1440, 900), (768, 1024), (360, 800)]
THEMES = ("light", "dark")
LONG_MS = 60_000
RAISES = """
class Model:
    inputs = {"instances": "int64", "flag": "bool", "word": "string"}
    outputs = {"twice": "int64", "said": "string"}

    def __init__(self, path): ...

    def predict(self, inputs):
        if (inputs["instances"] == 13).any():
            raise ValueError("thirteen")
        return {"twice": inputs["instances"] * 2, "said": inputs["word"]}
"""


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def opened(chromium):
    """Opens the page; at the end nothing must have gone wrong on it."""
    contexts, faults = [], []

    def opened(server, size=SIZES[0], theme="light", **options):
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        context.set_default_timeout(LONG_MS)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = (server.url, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
        page.goto(f"{server.url}/console")
        page.wait_for_selector("#live[data-kind=good]")
        return page

    opened.faults = faults
    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def state(server):
    answer = server.request("GET", "/console/state.json")
    assert answer.status == 200, answer.body
    return answer.json


def shows(page, selector, text):
    page.locator(selector).filter(has_text=text).first.wait_for()


def fits(page, size):
    return page.evaluate("document.documentElement.scrollWidth") == size[0]


@pytest.mark.parametrize("size", SIZES, ids=[str(width) for width, _ in SIZES])
@pytest.mark.parametrize("theme", THEMES)
def test_a_seven_that_is_drawn_is_read_as_a_seven(digits, opened, size, theme):
    page = opened(digits, size, theme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(246, 245, 241)"
    assert dark == (theme == "dark")
    draw(page, 7)
    shows(page, "output.big", "7")
    assert page.locator(".answer .chip").inner_text() == "200 OK"
    assert page.locator(".classes li").count() == 10
    assert page.locator(".classes .best b").inner_text() == "7"
    # where the time went, and the id under which the logs have it
    assert [part.get_attribute("class") for part in page.locator(".timing i").all()][:3] == [
        "decode",
        "queue",
        "predict",
    ]
    line = digits.access(page.locator(".request").inner_text())
    assert (line["path"], line["status"]) == ("/predict", 200)
    assert fits(page, size)


def test_each_digit_is_read_as_it_is_written_large_or_small(digits, opened):
    page = opened(digits)
    for digit in PENNED:
        for size in (1.0, 0.5):
            with page.expect_response("**/predict") as answer:
                draw(page, digit, size)
            told = answer.value.json()
            assert told["digit"] == digit, (size, answer.value.request.post_data, told)


def test_a_mule_that_is_killed_is_seen_to_die_and_its_successor_to_come(start, opened):
    server = start(MODEL=FANCY, MULES=3).wait_ready()
    load = Load(server)
    page = opened(server)
    shows(page, ".mule .facts", "task")
    wait_until(lambda: page.locator(".mule[data-kind=good]").count() == 3, "three serve")
    victim = next(mule for mule in state(server)["mules"] if mule["ready"])
    os.kill(victim["pid"], signal.SIGKILL)
    shows(
        page,
        "#events [data-kind=bad]",
        f"mule {victim['id']}, process {victim['pid']}, was killed by signal 9 (SIGKILL)",
    )
    spare = len(state(server)["mules"])
    shows(page, "#events", f"mule {spare}, which was the spare, takes a post")
    shows(page, "#events [data-kind=good]", f"mule {spare} is ready with version 1")
    shows(page, "#events", f"mule {victim['id']} is the spare now")
    died = page.locator(f".mule[aria-label^='mule {victim['id']},']")
    assert "1 killed" in died.inner_text() and "was killed by signal 9" in died.inner_text()
    wait_until(lambda: page.locator(".mule[data-kind=good]").count() == 3, "three serve again")
    assert set(load.stop()) == {200}


def test_what_is_refused_is_seen_with_its_reason_and_its_id(digits, opened):
    page = opened(digits)
    digits.request("POST", "/predict", b'{"image": 3}', {"X-Request-ID": "seen-1"})
    digits.request("POST", "/predict", b"{", {"X-Request-ID": "seen-2"})
    digits.request("GET", "/no/such/path", headers={"X-Request-ID": "seen-3"})
    shows(page, "#refused tr", "The input does not fit the model")
    for id, code in [("seen-1", "400 signature"), ("seen-2", "400 bad_body"), ("seen-3", "404 not_found")]:
        shows(page, "#failed tr", id)
        assert code in page.locator("#failed tr", has_text=id).inner_text()
    page.fill("#filter", "SEEN-2")
    wait_until(lambda: page.locator("#failed tbody tr").count() == 1, "the others are left out")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#failed .id").click()
    shows(page, "#copied", "seen-2 is copied")
    assert page.evaluate("navigator.clipboard.readText()") == "seen-2"


def test_what_nginx_refuses_is_seen_too_and_a_full_queue(start, opened):
    server = start(MODEL=FANCY, MULES=1, WORKERS=2, THREADS=2).wait_ready()
    page = opened(server)
    load = Load(server)
    wait_until(lambda: load.statuses[503] > 20 and load.statuses[200] > 20, "some are refused, and some are not")
    shows(page, "#refused tr", "queue_full")
    shows(page, "#failed tr", "queue_full")
    page.locator(".tank[data-full]").wait_for()
    load.stop()
    page.locator(".tank:not([data-full])").wait_for()


def test_the_state_tells_what_the_metrics_tell(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    load = Load(server)
    wait_until(lambda: load.statuses[200] > 200, "it is asked")
    sent = load.stop()
    for body in (b"", b"{}", b"[]"):
        assert server.request("POST", "/predict", body).status == 400
    told, samples = state(server), scrape(server)
    assert told["answered"] == sent[200] == requests(samples)[200]
    assert told["requests"] == sum(requests(samples).values()) == sent[200] + 3
    assert sum(one["count"] for one in told["refused"]) == 3 == len(told["failures"])
    assert {one["code"] for one in told["failures"]} == {one["code"] for one in told["refused"]}
    assert told["rows"] == total(samples, "rows_total") == sum(mule["rows"] for mule in told["mules"])
    assert sum(mule["batches"] for mule in told["mules"]) == total(samples, "batch_rows_count")
    assert sum(mule["tasks"] for mule in told["mules"]) == sent[200]
    assert told["queue"]["capacity"] == total(samples, "queue_capacity") == 128
    assert told["nginx"]["accepted"] > 0 and told["cache"] == {"notes": 0, "capacity": 1023}
    assert [mule["state"] for mule in told["mules"]].count("ready") == 2
    # what asks about the server is no prediction
    assert state(server)["requests"] == told["requests"]


def test_a_task_that_is_predicted_is_held_and_its_mule_busy(start, tmp_path):
    (tmp_path / "model.py").write_text(SLOW)
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    load = Load(server, b'{"s": 1}')
    holds = wait_until(lambda: next((mule for mule in state(server)["mules"] if mule["held"]["predicting"]), None), "")
    assert holds["held"]["tasks"] >= 1 and holds["held"]["rows"] >= 1
    told = wait_until(lambda: (one := state(server))["queue"]["queued"] and one, "others wait")
    assert sum(worker["waiting"] for worker in told["workers"]) > 0 and told["queue"]["oldest_s"] > 0
    load.stop()


def test_the_last_minutes_are_there_when_the_page_is_opened(start, opened):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    load = Load(server)

    def points():
        return server.request("GET", "/console/history.json").json["points"]

    wait_until(lambda: len([point for point in points() if point["answered"] > 0]) >= 2, "two points of load")
    load.stop()
    known = [point for point in points() if point["answered"]][-1]
    assert 1 < known["latency_ms"]["predict"]["p50"] <= known["latency_ms"]["total"]["p99"]
    page = opened(server)
    for chart in page.locator(".chart").all()[:2]:
        assert "L" in chart.locator("path.line").first.get_attribute("d")
    chart = page.locator(".chart", has_text="Predict")
    chart.locator("path.p50").first.wait_for(state="attached")
    chart.focus()
    for _ in points():
        page.keyboard.press("ArrowLeft")
    wait_until(lambda: re.search(r"\d+ s ago: p50 ", chart.get_attribute("aria-label")), "the cursor tells")


def test_all_can_be_done_by_keys(digits, opened):
    page = opened(digits)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "pool"
    page.locator(".seen").focus()
    page.keyboard.press("ArrowRight")
    # a seven: the first line, and one that goes down from its end
    for column in range(7):
        page.keyboard.press("ArrowRight" if column else "Shift")
        page.keyboard.press("Space")
    for row in range(7):
        page.keyboard.press("ArrowDown")
        if row % 2:
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("Space")
    shows(page, ".gets", "row 8")
    page.locator(".seen").press("Tab")
    page.get_by_role("button", name="Predict").press("Enter")
    shows(page, "output.big", re.compile(r"^\d$"))
    page.locator("input[value=draw]").focus()
    page.keyboard.press("ArrowLeft")
    # what was drawn is there to be changed by hand
    drawn = json.loads(page.locator("#json").input_value())["image"]
    assert drawn[0] == [16] * 7 + [0] and sum(map(sum, drawn)) == 16 * 14
    page.fill("#json", '{"image": [1, 2')
    page.get_by_role("button", name="Predict").press("Enter")
    shows(page, ".problem", "This is not JSON")
    page.fill("#json", json.dumps({"image": [[0] * 7] * 8}))
    page.get_by_role("button", name="Predict").press("Enter")
    shows(page, ".problem", "The input does not fit the model")
    shows(page, ".answer", "one row has shape")
    # that the browser tells of a refusal is no fault
    opened.faults[:] = [fault for fault in opened.faults if "status of 400" not in fault]


def test_an_image_can_be_sent(digits, opened):
    page = opened(digits)
    page.get_by_text("Image", exact=True).click()
    file = io.BytesIO()
    Image.new("L", (20, 20), 9).save(file, "PNG")
    page.set_input_files("#file", {"name": "grey.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.locator("img.shown").wait_for()
    page.get_by_role("button", name="Predict").click()
    shows(page, ".answer .chip", "200")
    assert page.locator(".classes li").count() == 10


def test_a_text_is_typed_and_answered(fancy, opened):
    page = opened(fancy, SIZES[2])
    page.locator("#field-text").fill('hello "you"\n')
    page.get_by_role("button", name="Predict").click()
    shows(page, "output", 'Can\'t tell anything smart about: hello "you"')
    assert fits(page, SIZES[2])


def test_fields_are_exact_and_an_error_of_the_model_is_told_in_words(start, tmp_path, opened):
    (tmp_path / "model.py").write_text(RAISES)
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    page = opened(server)
    page.fill("#field-instances", str(2**60 + 1))
    page.fill("#field-word", "<b>bold</b>")
    page.locator("#field-flag").check()
    page.get_by_role("button", name="Predict").click()
    shows(page, "output", "<b>bold</b>")
    # which JavaScript would round
    shows(page, "output", str(2 * (2**60 + 1)))
    page.locator("summary").click()
    assert json.loads(page.locator("pre").inner_text())["predictions"][0]["twice"] == 2 * (2**60 + 1)
    page.fill("#field-instances", "13")
    page.get_by_role("button", name="Predict").click()
    shows(page, ".problem", "engine")
    page.fill("#field-instances", "many")
    page.get_by_role("button", name="Predict").click()
    shows(page, ".problem", 'instances is "many"; expected a number (int64)')
    opened.faults[:] = [fault for fault in opened.faults if "status of 500" not in fault]


def test_the_theme_that_is_chosen_is_kept(digits, opened):
    page = opened(digits, theme="light")
    button = page.locator("#theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: dark"
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert button.inner_text() == "Theme: dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour == "rgb(19, 22, 20)"


def test_a_hidden_page_asks_nothing_and_goes_on_when_it_is_seen(digits, opened):
    page = opened(digits)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    hide = "hidden => {Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))}"
    page.evaluate(hide, True)
    # one may be on its way
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate(hide, False)
    wait_until(lambda: page.wait_for_timeout(100) or asked, "it asks again")


def test_the_page_says_when_the_server_is_gone(start, opened):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    page = opened(server)
    server.stop()
    shows(page, "#live[data-kind=bad]", "asking again in")
    assert page.locator("body[data-stale]").count() == 1
    again = start(MODEL=FANCY, MULES=1, PORT=server.port).wait_ready()
    page.wait_for_selector("#live[data-kind=good]")
    assert again.process.poll() is None
    opened.faults[:] = [fault for fault in opened.faults if "ERR_" not in fault]


def test_another_uwsgi_is_told_of_and_its_counts_go_on(start, opened):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    assert server.predict({"text": "before"}).status == 200
    page = opened(server)
    assert reload(server, "--all")[0] == 0
    shows(page, "#events", "another uWSGI serves now")
    assert "anew" not in page.locator("#events").inner_text()
    shows(page, "#now", "1 in all")
    assert state(server)["answered"] == 1


def test_who_may_see_it_is_a_setting(start):
    server = start(MODEL=FANCY, MULES=1, SERVING_MONITOR_FROM="192.0.2.0/24, ::1").wait_ready()
    for path in ("/console", "/console/console.js", "/console/state.json", "/console/history.json"):
        answer = server.request("GET", path)
        assert answer.status == 403 and answer.json["code"] == "forbidden"
        assert "monitor_from in uwsgi.ini" in answer.json["detail"]
        # who tries it all the same is in the log
        assert server.access(answer.headers["x-request-id"])["path"] == path


@pytest.mark.parametrize("path", ["/console", "/console/state.json", "/metrics"])
def test_another_name_that_leads_to_this_machine_may_not_see_it(digits, path):
    own = ("localhost", "127.0.0.1:8080", "[::1]:8080", "digits.localhost", "muleteer", socket.gethostname())
    for name in own:
        assert digits.request("GET", path, headers={"Host": name}).status == 200, name
    for name in ("page.example", "page.example:8080", "127.0.0.1.page.example", "localhost.page.example"):
        answer = digits.request("GET", path, headers={"Host": name})
        assert (answer.status, answer.json["code"]) == (403, "forbidden") and "localhost" in answer.json["detail"], name
    # what anybody may ask for has any name
    assert digits.request("GET", "/readyz", headers={"Host": "page.example"}).status == 200


def test_the_page_alone_may_run_scripts_and_only_its_own(digits):
    policy = digits.request("GET", "/console").headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe" not in policy and "http" not in policy
    page = digits.request("GET", "/console").body.decode()
    assert not re.search(r"<script(?! src)|<style|style=|\son\w+=|https?:", page)
    for name in set(re.findall(r'"console/([\w.]+)"', page)) | {"pool.js", "ask.js"}:
        first = digits.request("GET", f"/console/{name}", headers={"Accept-Encoding": "gzip"})
        assert (first.status, first.headers["cache-control"]) == (200, "no-cache")
        again = digits.request("GET", f"/console/{name}", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    for path in ("/console/state.json", "/console/none.js", "/consoles", "/console/index.html"):
        answer = digits.request("GET", path)
        assert answer.status == (200 if path.endswith("json") else 404)
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["cache-control"] == ("no-cache" if path.endswith(".js") else "no-store")


def test_what_an_open_page_asks_for_is_not_in_the_access_log(digits):
    for path in ("/console/state.json", "/console/history.json", "/console"):
        assert digits.request("GET", path, headers={"X-Request-ID": f"log{path.replace('/', ':')}"}).status == 200
    digits.access("log:console")
    assert "log:console:" not in (digits.run_dir / "access.log").read_text()
