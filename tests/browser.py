"""Chromium, as readers have it."""

import os
import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright


@contextmanager
def browser():
    """Chromium, and what its consoles have said."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: apt-get install chromium"
    # its sandbox is not for root
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield chromium
        finally:
            chromium.close()
