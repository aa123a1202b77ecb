"""Pages in a real browser: headless Chromium, where the machine has one, without further libraries."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1400, 390  # pixels
PATIENCE = 120.0  # seconds; a loaded machine must not fail a test
# The page stands in a frame, as Chromium's own window is never narrower than 500 pixels, and sends what it has found.
FRAME = """<!DOCTYPE html><body><iframe src="{name}" style="width:{width}px;height:900px"></iframe><pre></pre><script>
addEventListener("message", (event) => {{ document.querySelector("pre").textContent = event.data; }})</script>"""
SCRIPT = """<script>addEventListener("load", () => {{
const press = (key, at) => (at || document.activeElement).dispatchEvent(
  new KeyboardEvent("keydown", {{key, bubbles: true, cancelable: true}}));
parent.postMessage(JSON.stringify((() => {{ {script} }})()), "*");
}});</script>"""


def run_in_page(page: Path, script: str, width: int = WIDE) -> Any:
    """What a script, the body of a function, returns at the end of a copy of the page; press(key) presses a key in it.

    The copy allows more scripts than the page's own. Skips the test where there is no Chromium.
    """
    copy, frame = with_script(page, SCRIPT.format(script=script)), page.with_name("frame.html")
    frame.write_text(FRAME.format(name=copy.name, width=width), "utf-8")
    found = re.search(r"<pre>(.+?)</pre>", dom_of(frame), re.DOTALL)
    assert found, "the page sent nothing"
    return json.loads(html.unescape(found[1]))


def with_script(page: Path, script: str) -> Path:
    """A copy of a page that has `script`, an element, at its end and allows it."""
    allowed = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", page.read_text("utf-8"))
    copy = page.with_name("copy.html")
    copy.write_text(f"{script}</body>".join(allowed.rsplit("</body>", 1)), "utf-8")
    return copy


def dom_of(page: Path, real_time: bool = False) -> str:
    """A page as its scripts leave it, with real_time as it is when it has been loaded: clocks then tell the truth.

    Skips the test where there is no Chromium.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--window-size={WIDE},900"]
    words += [] if real_time else ["--virtual-time-budget=10000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [program, *words, profile, page.as_uri()], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
