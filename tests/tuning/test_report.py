"""The report is read by people, on whatever they have: Chromium at three widths, light and dark."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from serving.model import ModelFolder
from serving.settings import Settings
from tuning import ini, record, report
from tuning.calibration import corrected, costs
from tuning.chart import Chart, Series
from tuning.promise import Promise, PromiseError
from tuning.rationale import agreement, choice, rationale, unknown

from ..browser import browser
from .conftest import LINE, SHIPPED, measurement

FANCY = ModelFolder.find(Path(__file__).parents[2] / "examples" / "fancy")
SIZES = [(1280, 900), (768, 1024), (360, 800)]


@pytest.fixture
def page(found, tmp_path):
    text = SHIPPED.read_text()
    difference = ini.difference(text, ini.rewritten(text, record.changes(found)), "uwsgi.ini")
    file = tmp_path / "tune.html"
    record.write(file, report.html(found, FANCY, difference, "uwsgi.ini"))
    return file


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=[str(width) for width, _ in SIZES])
def test_the_report_fits_the_screen_and_needs_nothing(chromium, page, size, scheme):
    shown = chromium.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    faults = []
    shown.on("console", lambda message: faults.append(message.text))
    shown.on("request", lambda request: request.url == page.as_uri() or faults.append(request.url))
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == size[0]
    assert shown.locator("figure").count() == 2 and shown.locator("script").count() == 0
    # what is drawn is there, and its letters can be read
    heights = "all => all.map(one => one.getBoundingClientRect().height)"
    assert min(shown.eval_on_selector_all("figure > svg text", heights)) >= 9
    drawing = shown.locator("figure > svg")
    assert drawing.locator("circle.dots").count() >= 5 and drawing.locator("path.line").count() == 1
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light")
    assert faults == []
    shown.close()


def test_the_report_says_what_the_record_says(page, found):
    told = page.read_text()
    for reason in list(rationale(found)):
        assert reason.answer.partition("&")[0][:40].replace("'", "&#x27;") in told
    assert "-mules = 2\n+mules = 5" in told and "p99 ≤ 25 ms at 700 requests a second" in told


def test_what_comes_from_elsewhere_is_no_html(found, tmp_path):
    model = tmp_path / "<script>x"
    model.mkdir()
    shutil.copy(FANCY.path / "model.py", model)
    told = report.html(found, ModelFolder.find(model), "-a <b>\n", "<i>.ini")
    assert "<script" not in told and "<b>" not in told and "<i>" not in told

    class Reader(HTMLParser):
        open_tags = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "path", "circle", "html"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("path", "circle", "html"):
                assert self.open_tags.pop() == tag

    Reader().feed(told)
    assert Reader.open_tags == []


def test_the_reasons_have_the_numbers_that_they_follow_from(found):
    told = {reason.question: reason.answer for reason in rationale(found)}
    assert told["What is recommended?"].startswith("5 mules, 1 + 1 workers")
    assert "The present settings (2 mules" in told["What is recommended?"]
    mules = told["Why that many mules?"]
    assert "5 ms, 4 % of it work for a core" in mules and "4 mules would be enough on average" in mules
    assert "p99 = 40 ms" in mules
    seats = told["Why that many threads, and that queue?"]
    # a thousand in two seconds
    assert seats.startswith("500 requests a second are drained at the most, so 12 in 25 ms")
    assert "30 % are refused at once" in told["What does it do at twice the rate?"]
    assert told["Was the machine quiet?"].startswith("Yes")
    found.low = measurement(found.low.setting, 40.0, 0.0055, others=0.5)
    assert list(rationale(found))[-1].answer.startswith("No: other programs took up to 50 %")
    found.low = measurement(found.low.setting, 40.0, 0.0055, late=400)
    told = list(rationale(found))[-1].answer
    assert told.startswith(
        "No: the load generator could not keep up and sent up to 40 % of the requests of a run too late"
    )
    # that one is full, and its connections with it
    found.low = measurement(found.low.setting, 40.0, 0.0055, refused=400, late=400)
    assert list(rationale(found))[-1].answer.startswith("Yes")


def test_where_nothing_holds_it_says_what_came_nearest_and_what_is_needed(found):
    found.chosen = None
    told = choice(found)
    assert told.startswith("Nothing that was tried holds p99 ≤ 25 ms at 700 requests a second. The nearest was 5 mules")
    found.evidence.alone[1].line.__dict__["overhead_s"] = 0.03
    assert "a faster model, or a longer promise, is needed" in choice(found)
    found.evidence.alone[1].line.__dict__["overhead_s"] = 0.005


def test_what_the_simulation_expects_was_tried_or_was_not(found):
    found.chosen = None
    found.wanted = found.ranked[-1]
    told = choice(found)
    assert told.endswith(f"expects it of {found.wanted.pool.setting.told()}, on a machine that is quieter.")
    found.trials = [trial for trial in found.trials if trial.setting != found.wanted.pool.setting]
    assert choice(found).endswith("which there was no time to try: --minutes gives more.")


def test_the_record_is_read_again(found, tmp_path):
    file = tmp_path / "tune.json"
    record.write(file, json.dumps(record.as_dict(found, FANCY)))
    settings = Settings.read(SHIPPED, {})
    again = record.read(file, FANCY, settings, found.promise)
    assert again.lines == found.evidence.lines and again.costs == found.evidence.costs
    assert again.present.highest_rate(found.promise) == found.evidence.present.highest_rate(found.promise)
    for change, reason in (
        ({"form": 0}, "another version"),
        ({"model": {"identity": "x"}}, "another model"),
        ({"machine": {"processor": "6502", "cores": 1}}, "another machine"),
        ({"costs": 1}, "no record"),
        ({"batch_wait_ms": 5}, "measured with batch_wait_ms = 5"),
    ):
        record.write(file, json.dumps(record.as_dict(found, FANCY) | change))
        with pytest.raises(record.Unfit, match=reason):
            record.read(file, FANCY, settings, found.promise)
    record.write(file, json.dumps(record.as_dict(found, FANCY)))
    with pytest.raises(record.Unfit, match="measured with batch_wait_ms = 0"):
        record.read(file, FANCY, replace(settings, batch_wait_ms=5), found.promise)
    with pytest.raises(record.Unfit, match="there is no"):
        record.read(tmp_path / "none.json", FANCY, settings, found.promise)


def test_what_the_simulation_does_not_know_is_told(found):
    assert "batch_wait_ms" not in agreement(found)
    found.evidence = replace(found.evidence, settings=replace(found.evidence.settings, batch_wait_ms=5))
    # one row at a time has no batch to wait for
    assert unknown(found.evidence) == ""
    found.evidence = replace(found.evidence, lines={1: replace(LINE, most_rows=None)})
    assert "knows nothing of batch_wait_ms = 5" in agreement(found)


def test_the_record_is_for_this_user_and_group(tmp_path):
    record.write(tmp_path / "new" / "tune.html", "x")
    assert (tmp_path / "new" / "tune.html").stat().st_mode & 0o777 == 0o640


def test_a_chart_without_points_is_none_and_infinity_is_not_drawn():
    assert Chart("a", "x", "y", [Series("s", "dots", [(1, float("inf"))])]).svg() == ""
    drawn = Chart("a", "x", "y", [Series("s", "dots", [(1, 2.0), (2, float("inf"))])], logarithmic=True).svg()
    # and one in the legend
    assert drawn.count("<circle") == 2 and "nan" not in drawn and "inf" not in drawn


@pytest.mark.parametrize(
    ("text", "percent", "limit_s"), [("p99=50ms", 99, 0.05), ("p99.9=0.2s", 99.9, 0.2), ("p50=800us", 50, 0.0008)]
)
def test_a_promise_is_read(text, percent, limit_s):
    promise = Promise.parse(text)
    assert promise.percent == percent and promise.limit_s == pytest.approx(limit_s)


@pytest.mark.parametrize("text", ["", "p99", "p99=50", "p100=1ms", "99=50ms", "p0=1ms", "p99=0ms", "p99=-1ms"])
def test_what_is_no_promise_is_told(text):
    with pytest.raises(PromiseError, match="p99=50ms"):
        Promise.parse(text)


def test_a_refusal_breaks_a_promise_as_lateness_does():
    promise = Promise(99, 0.05)
    latencies = np.concatenate([np.full(989, 0.01), np.full(11, np.inf)])
    assert promise.of(latencies) == np.inf
    latencies[989:] = [0.02] * 1 + [np.inf] * 10
    assert promise.of(latencies) == 0.02


def test_the_costs_of_a_request_come_from_two_runs(evidence):
    setting = evidence.present.setting
    low, full = measurement(setting, 40.0, 0.0058), measurement(setting, 0.0, 0.1)
    found = costs(low, full, LINE, (1,))
    assert (found.nginx_s, found.worker_s, found.generator_s) == pytest.approx((50e-6, 120e-6, 30e-6))
    # 240 µs of the mule, of which the model alone takes 4 % of 5 ms
    assert found.turn_s == pytest.approx(40e-6) and found.task_s == 0
    # all of what a lone request takes: 5.8 ms, of which 5 are the predict's
    assert np.mean(found.floor) + found.nginx_s + found.worker_s + found.turn_s == pytest.approx(0.0008)
    batched = costs(low, measurement(setting, 0.0, 0.1, batches=4.0), LINE, (1,))
    assert batched.task_s > 0 and batched.turn_s >= 0
    assert set(corrected(LINE, low, (1,)).spread) == {1.0}
