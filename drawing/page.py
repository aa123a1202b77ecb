"""Pages of HTML that stand alone: one file that opens from a disk and asks no network for anything.

Names and texts of a user go into a page as JSON or escaped. The browser is told to load nothing, and to run no script
but the page's own, which it knows by its digest: what slips through does nothing.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from drawing.figures import svg_of

# Of classes, one after the other: colours that everybody can tell apart (Okabe and Ito, Color universal design, 2008).
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
PICTURES = "pictures"  # style and script of pages that show pictures with boxes
STYLE = (Path(__file__).parent / "page.css").read_text("utf-8")


@dataclass(frozen=True)
class Template:
    """What a page has of its own: style, body and script; of a file NAME.html beside this one its <style>, the <script>
    at its end and what stands between them."""

    style: str
    body: str
    script: str = ""


def read_template(name: str, shared: str = "") -> Template:
    """The template of this name; shared: name of a style (.css) and script (.js) that go before its own."""
    folder = Path(__file__).parent
    text = (folder / f"{name}.html").read_text("utf-8")
    before = [(folder / f"{shared}.{kind}").read_text("utf-8") if shared else "" for kind in ("css", "js")]
    style, _, rest = text.partition("<style>")[2].partition("</style>")
    body, _, script = rest.rpartition("<script>")
    return Template(before[0] + style, body.strip(), before[1] + script.rpartition("</script>")[0])


def page(
    title: str,
    template: Template,
    data: Mapping[str, Any] = MappingProxyType({}),
    parts: Mapping[str, str] = MappingProxyType({}),
    refresh: int = 0,
) -> bytes:
    """A page of a template, in UTF-8.

    data: {name: value} of JSON, which the page's script reads by `JSON.parse(document.getElementById(name)
    .textContent)`. parts: {name: HTML} that takes the place of the template's `<!-- name -->`.
    refresh: seconds after which the page loads itself again, 0 = never.
    """
    body = template.body
    for name, html in parts.items():
        body = body.replace(f"<!-- {name} -->", html)
    scripts = [json_script(name, value) for name, value in data.items()]
    if template.script:
        scripts.append(f"<script>{template.script}</script>")
    lines = [*_head(title, template, refresh), "<body>", body, *scripts, "</body></html>\n"]
    return "\n".join(lines).encode("utf-8", "replace")


def _head(title: str, template: Template, refresh: int) -> list[str]:
    digest = base64.b64encode(hashlib.sha256(template.script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "",
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{template.style}</style></head>",
    ]


def json_script(name: str, value: Any) -> str:
    """A value as JSON in an element that is no program; no text in it can end the element.

    Names of files that are no UTF-8 keep their bytes (surrogates, as Python has them).
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def figure_html(figure: Figure, title: str, text: str) -> str:
    """A chart of matplotlib in a page, with a title above and a sentence below it."""
    caption = f"<figcaption>{escape(text)}</figcaption>"
    return f'<figure class="chart"><h3>{escape(title)}</h3>{svg_of(figure)}{caption}</figure>'
