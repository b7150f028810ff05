"""The pictures in the README, made anew: the live page of a server under load, a drawn 7, and a mule that is killed.

python -m tests.e2e.screenshots
python -m tests.e2e.screenshots REPORT      instead the one of a report of `muleteer tune`
"""

import os
import signal
import sys
from pathlib import Path

from PIL import Image

from ..browser import browser
from .conftest import DIGITS, ROOT, Server, wait_until
from .pen import draw
from .test_28_metrics import Load

FOLDER = ROOT / "docs"
# theme, and whether it shows the page from its head or the form
SHOTS = {"console": ("light", "#pool"), "console-dark": ("dark", "#try")}
SIZE = {"width": 1440, "height": 1010}
REPORT_SIZE = {"width": 1000, "height": 620}
# of load before a picture is taken
MINUTES_MS = 90_000
# on a machine that has other things to do
PATIENCE_S = 300


def shoot(page, server, name, part):
    """One picture, small enough for a page of text."""
    draw(page, 7)
    page.locator("output.big").filter(has_text="7").wait_for()
    if part == "#pool":
        mule = next(mule for mule in server.request("GET", "/console/state.json").json["mules"] if mule["ready"])
        os.kill(mule["pid"], signal.SIGKILL)
        page.locator("#events").filter(has_text="takes a post").wait_for()
        page.evaluate("scrollTo(0, 0)")
    else:
        page.locator(part).evaluate("part => scrollTo(0, part.offsetTop - 330)")
    page.wait_for_timeout(300)
    keep(page, name)


def keep(page, name):
    """What is seen now."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.png"
    page.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").save(file, optimize=True)
    print(file, file.stat().st_size, "bytes")


def report(file):
    """The head of a report, and its first charts."""
    with browser() as chromium:
        page = chromium.new_page(viewport=REPORT_SIZE, color_scheme="light")
        page.goto(file.absolute().as_uri())
        keep(page, "tune")


def console():
    """Both of the live page."""
    server = Server(MODEL=DIGITS, MULES=3)
    load = None
    try:
        wait_until(lambda: "  try " in server.output, "it is ready", PATIENCE_S)
        load = Load(server, (DIGITS / "sample.json").read_bytes())
        for body in (b"{}", b'{"image": [1]}', b"{"):
            server.request("POST", "/predict", body)
        with browser() as chromium:
            for name, (theme, part) in SHOTS.items():
                page = chromium.new_page(viewport=SIZE, color_scheme=theme, reduced_motion="reduce")
                page.goto(f"{server.url}/console")
                wait_until(lambda: server.ready()["ready_replicas"] == 3, "all serve", PATIENCE_S)
                page.wait_for_timeout(MINUTES_MS)
                shoot(page, server, name, part)
                page.close()
    finally:
        if load:
            load.stop()
        server.close()


if __name__ == "__main__":
    if sys.argv[1:]:
        report(Path(sys.argv[1]))
    else:
        console()
