"""The page in a browser: an image is dropped on it, and what is found appears; needs chromium."""

import base64
import re
import shutil
import subprocess
import threading
import time

import pytest
import uvicorn

from detect.service import app
from tests.detect.service.fakes import PHOTO, fake
from tools.serve import bind

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "virtual-time-budget=5000", "dump-dom")  # fmt: skip
PATIENCE = 120.0
DROP = """<script>
addEventListener("load", () => {
  const bytes = Uint8Array.from(atob("CONTENT"), character => character.charCodeAt(0)), drop = new DataTransfer();
  drop.items.add(new File([bytes], "photo.png"));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: drop, bubbles: true, cancelable: true }));
});
</script>
</body>"""


def page_after_drop(content, folder, monkeypatch):
    """What the page has become, as HTML, when a file with this content has been dropped on it."""
    text = app.PAGE.read_text("utf-8").replace("</body>", DROP.replace("CONTENT", base64.b64encode(content).decode()))
    (folder / "page.html").write_text(text, "utf-8")
    monkeypatch.setattr(app, "PAGE", folder / "page.html")
    server = uvicorn.Server(uvicorn.Config(fake().app(), log_config=None))
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            end = time.monotonic() + PATIENCE
            while not server.started:
                assert time.monotonic() < end
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            flags = [f"--{flag}" for flag in (*FLAGS, f"user-data-dir={folder / 'profile'}")]
            done = subprocess.run([BROWSER, *flags, address], capture_output=True, check=True, timeout=PATIENCE)
        finally:
            server.should_exit = True
            thread.join()
    return done.stdout.decode("utf-8")


def of(html, name):
    """The text of the element with an id, and its attributes."""
    found = re.search(rf'<(\w+)([^>]*\bid="{name}"[^>]*)>(.*?)</\1>', html, re.DOTALL)
    return re.sub(r"<[^>]*>", " ", found[3]), found[2]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_dropped_image_is_answered_by_a_table(tmp_path, monkeypatch):
    html = page_after_drop(PHOTO, tmp_path, monkeypatch)
    assert of(html, "about")[0] == "m: n, e; finds red, grün, blue"
    assert of(html, "status")[0].startswith("photo.png: 60 × 40 pixels, answered in")
    assert "hidden" in of(html, "error")[1]
    assert "hidden" not in of(html, "result")[1]
    assert html.count('<tr tabindex="0"') == 1  # the other one is below 0.5
    assert re.split(r"\s+", of(html, "rows")[0].strip())[1:] == ["0.75", "1", "2", "29", "38"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_file_that_is_no_image_is_answered_by_a_sentence(tmp_path, monkeypatch):
    html = page_after_drop(b"no image", tmp_path, monkeypatch)
    text, attributes = of(html, "error")
    assert text == "This is no image that can be read; send JPEG, PNG, BMP, WEBP, TIFF."
    assert "hidden" not in attributes
    assert "hidden" in of(html, "result")[1]
