"""PREFIX-live.html: one file with the curves inside it, renewed while a run goes on; it needs no network."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

REFRESH_SECONDS = 20
ROWS = 20  # newest epochs in the table
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:75em;color:#222}svg{width:100%;height:auto}"
    "div{overflow-x:auto}table{border-collapse:collapse;margin-top:1em}"
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
)


def live_page(
    title: str, svg: str, state: Mapping[str, str], records: Sequence[Mapping[str, Any]], *, is_over: bool
) -> str:
    """The page.

    svg: the curves, "" before there are any. state: what is told above them, by name. records: lines of metrics.jsonl,
    of which the newest are listed. is_over: the page no longer reloads itself.
    """
    refresh = "" if is_over else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    told = " &middot; ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in state.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{refresh}<title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n<p>{told}</p>\n{svg}\n{_table(records)}\n"
        "</body></html>\n"
    )


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest epochs, the newest first."""
    rows = [{"epoch": r["epoch"], **r["train"], "lr": r["learning_rate"], **r["validation"]} for r in records[-ROWS:]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ["".join(f"<td>{_cell(row.get(name))}</td>" for name in names) for row in reversed(rows)]
    return f"<div><table><tr>{heads}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
