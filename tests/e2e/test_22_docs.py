"""What the server tells of itself, as its readers take it: Schemathesis, and a browser."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..browser import browser
from .conftest import DIGITS, reload, write_model

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
MODEL = """
class Model:
    inputs = {{"{name}": "int64"}}
    outputs = {{"double": "int64"}}

    def __init__(self, path): ...

    def predict(self, inputs):
        return {{"double": inputs["{name}"] * 2}}
"""
SIZES = [(1280, 900), (768, 1024), (360, 800)]
OPERATION = "#operations-predict-post_predict"


@pytest.fixture(scope="module")
def shown(digits):
    """The digits example, whose sample may be shown."""
    server = type(digits)(MODEL=DIGITS, SERVING_PUBLIC_SAMPLE="true")
    try:
        yield server.wait_ready()
    finally:
        server.close()


def opened(chromium, server, size):
    """The page, and a list of whatever goes wrong on it."""
    page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
    faults = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("request", lambda request: request.url.startswith((server.url, "data:")) or faults.append(request.url))
    page.goto(f"{server.url}/docs")
    return page, faults


def run_schemathesis(server, folder, checks, *arguments, document=None):
    told = subprocess.run(
        [
            *(Path(sys.executable).parent / "st", "--no-color", "run", document or f"{server.url}/openapi.json"),
            *("--url", server.url),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "30", "--seed", "1"),
            *("--continue-on-failure", "--warnings", "off", "--checks", ",".join(checks)),
            # one that is too short is answered 504, as it should be
            *("-H", "X-Request-Timeout-Ms: 5000"),
            *arguments,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "No issues found" in told.stdout
    return told.stdout


def test_no_request_that_schemathesis_makes_is_answered_otherwise_than_told(digits, tmp_path):
    count = sum(map(len, digits.request("GET", "/openapi.json").json["paths"].values()))
    assert f"Tested: {count}" in run_schemathesis(digits, tmp_path, CHECKS)


def test_what_fits_the_schema_is_predicted(digits, tmp_path):
    told = digits.request("GET", "/openapi.json").json
    content = told["paths"]["/predict"]["post"]["requestBody"]["content"]
    # of bytes and of CSV a schema cannot say what fits
    for media_type in [*content]:
        if media_type != "application/json":
            del content[media_type]
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(told))
    checks = [*CHECKS, "positive_data_acceptance"]
    run_schemathesis(digits, tmp_path, checks, "--include-path", "/predict", document=document)


@pytest.mark.parametrize("size", SIZES, ids=[str(width) for width, _ in SIZES])
def test_the_page_predicts_the_sample_when_execute_is_pressed(shown, size):
    with browser() as chromium:
        page, faults = opened(chromium, shown, size)
        page.click(f"{OPERATION} .opblock-summary-control")
        page.click(f"{OPERATION} .try-out__btn")
        page.click(f"{OPERATION} .execute")
        answer = page.locator(f"{OPERATION} .live-responses-table .response")
        assert answer.locator(".response-col_status").inner_text().split()[0] == "200"
        told = answer.locator(".response-col_description").inner_text()
        assert '"digit": 4' in told and "x-model-version: 1" in told
        # nothing is cut off, and nothing needs to be scrolled sideways
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        assert faults == []


def test_the_page_shows_every_operation(digits):
    count = sum(map(len, digits.request("GET", "/openapi.json").json["paths"].values()))
    with browser() as chromium:
        page, faults = opened(chromium, digits, SIZES[0])
        page.wait_for_selector(OPERATION)
        assert page.locator(".opblock").count() == count
        assert page.locator(".errors-wrapper").count() == 0
        assert faults == []


def test_only_the_page_may_run_scripts_and_only_its_own(digits):
    strict = "default-src 'none'; frame-ancestors 'none'"
    page = digits.request("GET", "/docs").headers["content-security-policy"]
    assert "script-src 'self';" in page and "unsafe" not in page and "http" not in page
    for path in ("/docs/docs.js", "/openapi.json", "/readyz", "/docs/none", "/predict", "/v2"):
        assert digits.request("GET", path).headers["content-security-policy"] == strict, path


def test_what_has_not_changed_is_not_sent_again_and_what_is_large_is_packed(digits):
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui-bundle.js"):
        first = digits.request("GET", path, headers={"Accept-Encoding": "gzip"})
        assert first.status == 200 and first.headers["cache-control"] == "no-cache"
        assert (first.headers.get("content-encoding") == "gzip") == (path != "/docs")
        again = digits.request("GET", path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body) == (304, b"")


def test_the_document_is_of_the_model_that_is_loaded(start, tmp_path):
    server = start(MODEL=write_model(tmp_path, MODEL.format(name="old"))).wait_ready()
    before = server.request("GET", "/openapi.json")
    write_model(tmp_path, MODEL.format(name="new"))
    status, told, _ = reload(server, "--all")
    assert status == 0, told
    after = server.request("GET", "/openapi.json", headers={"If-None-Match": before.headers["etag"]})
    assert after.status == 200 and '"old"' not in after.body.decode()
    values = [example.get("value") for example in after.json["components"]["examples"].values()]
    assert {"new": 0} in values
    assert json.loads(server.request("POST", "/predict", b'{"new": 4}').body) == {"double": 8}
