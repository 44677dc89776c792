"""Self-contained HTML pages: their template, their style, and the parts that several of them have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import rldistill
from rldistill import plots


def fill_page(
    generator: str,
    *,
    title: str,
    about: str,
    headline: str,
    lead: str,
    cards: str,
    sections: Sequence[str],
    style: str = "",
    script: str = "",
) -> str:
    """A page out of its parts; cards, sections, style and script are HTML and CSS, the rest is plain text."""
    values = {
        "generator": f"{generator} {rldistill.__version__}",
        "title": escape(title),
        "eyebrow": escape(about),
        "headline": escape(headline),
        "lead": escape(lead),
        "cards": cards,
        "sections": "\n".join(filter(None, sections)),
        "footer": escape(f"Written by rldistill {rldistill.__version__}. This page loads nothing from elsewhere."),
        "style": style,
        "script": script,
    }
    template = Path(__file__).with_name("pages.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def note_lines(notes: Sequence[str]) -> str:
    """A paragraph a note."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def cards_html(cards: Sequence[tuple[str, str, str]]) -> str:
    """Figures to read first: what it is, the figure, and a remark."""
    if not cards:
        return ""
    items = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in cards
    )
    return f'<dl class="cards">{items}</dl>'


def section(title: str, body: str) -> str:
    """A part of the page under a title; nothing where its body is empty."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def table_html(rows: Sequence[Mapping[str, str]], tints: Mapping[tuple[int, str], float] | None = None) -> str:
    """Rows of equal keys as a table; the first column names the row, and an interval stands below its figure.

    Args:
        rows: the texts.
        tints: how strongly cells are coloured, by row number and column: from -1 to 1, each sign a colour of its own.
    """
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    body = ""
    for number, row in enumerate(rows):
        (_, first), *rest = row.items()
        cells = "".join(
            f"<td{_tinted((tints or {}).get((number, name), 0.0))}>{cell_html(text)}</td>" for name, text in rest
        )
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _tinted(tint: float) -> str:
    if not tint:
        return ""
    colour = "--student" if tint > 0 else "--teacher"
    return f' style="background: color-mix(in srgb, var({colour}) {40 * min(abs(tint), 1):.0f}%, transparent)"'


def cell_html(text: str) -> str:
    """A figure; what stands behind it in brackets goes below it."""
    value, _, interval = text.partition(" [")
    return escape(value) + (f"<small>[{escape(interval)}</small>" if interval else "")


def meanings_html(meanings: Mapping[str, str]) -> str:
    """What the columns of a table mean, folded away."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return f"<details><summary>What the columns mean</summary><dl>{rows}</dl></details>"


def inline_svg(svg: bytes, label: str, prefix: str) -> str:
    """An SVG file as an element of the page, with the page's colours, ids of its own and a label for screen readers."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    colours = {
        plots.PALETTE[0]: "--student",
        plots.TEACHER: "--teacher",
        plots.PALETTE[2]: "--agree",
        plots.RANDOM: "--soft",
        plots.INK: "--ink",
        plots.GRID: "--rule",
    }
    for colour, variable in colours.items():
        text = re.sub(colour, f"var({variable})", text, flags=re.IGNORECASE)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)
