"""HTML pieces of the report: text goes in as text and comes out escaped, figures come out with their units."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

Tone = Literal["good", "warn", "bad", "plain"]
MISSING = "–"


@dataclass(frozen=True)
class Html:
    """Markup that is already safe; everything else is escaped where it is put in."""

    text: str


Cell = Html | str | int | float | None


def join(*parts: Html) -> Html:
    """Puts pieces one after the other."""
    return Html("".join(part.text for part in parts))


def esc(value: object) -> str:
    """Returns a value as escaped text; None is a dash."""
    if isinstance(value, Html):
        return value.text
    return html.escape(MISSING if value is None else str(value), quote=True)


def breakable(name: str) -> Html:
    """Returns a label that a narrow column may break between and inside the words of a model, never in a scheme."""
    model, _, scheme = name.rpartition(" ")
    if not model:
        return Html(esc(name))
    return Html(f'{esc(model).replace("_", "_<wbr>")} <span class="whole">{esc(scheme)}</span>')


def is_number(value: object) -> TypeGuard[float]:
    """Says whether a value from a document is a finite number; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, digits: int = 1, *, signed: bool = False, unit: str = "") -> str:
    """Formats a number with a fixed count of decimals; a dash for anything that is not a finite number.

    Args:
        value: The number.
        digits: Decimals.
        signed: Whether a plus is written, and the typographic minus.
        unit: Appended after a thin space.
    """
    if not is_number(value):
        return MISSING
    text = f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "\u2212").replace(",", "\u202f")
    return f"{text}\u202f{unit}" if unit else text


def milliseconds(value: object, *, unit: bool = False) -> str:
    """Formats a latency with three significant digits: 0.412, 4.12, 41.2, 412."""
    if not is_number(value):
        return MISSING
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return number(value, digits, unit="ms" if unit else "")


def size(value_bytes: object) -> str:
    """Formats a size in megabytes of 10^6 bytes, or kilobytes below one."""
    if isinstance(value_bytes, bool) or not isinstance(value_bytes, int | float):
        return MISSING
    if value_bytes < 1e6:
        return number(value_bytes / 1e3, 0 if value_bytes >= 1e4 else 1, unit="kB")
    return number(value_bytes / 1e6, 2, unit="MB")


def interval(low: object, high: object, formatted: Any = milliseconds) -> str:
    """Formats an interval as "[low, high]", or a dash where an end is missing."""
    ends = formatted(low), formatted(high)
    return MISSING if MISSING in ends else f"[{ends[0]}, {ends[1]}]"


def badge(text: str, tone: Tone = "plain", *, title: str = "") -> Html:
    """Returns a small label."""
    hint = f' title="{esc(title)}"' if title else ""
    return Html(f'<span class="badge {tone}"{hint}>{esc(text)}</span>')


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    left: Sequence[int] = (0,),
    tall: bool = False,
    label: str = "",
) -> Html:
    """Returns a table that scrolls sideways where the page is narrow.

    Args:
        head: Column titles.
        rows: Cells; a number is written as it is, so format it first.
        left: Columns of text, set flush left; the others are figures, flush right.
        tall: Whether it may scroll in a window of its own.
        label: What it shows, for screen readers.
    """
    align = ["l" if i in left else "r" for i in range(len(head))]
    top = "".join(f'<th class="{a}" scope="col">{esc(h)}</th>' for h, a in zip(head, align, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{a}">{esc(c)}</td>' for c, a in zip(row, align, strict=True)) + "</tr>"
        for row in rows
    )
    kind = "scroll tall" if tall else "scroll"
    return Html(
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{esc(label or head[0])}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str | Html, kind: str = "") -> Html:
    """Returns a paragraph."""
    return Html(f'<p class="{esc(kind)}">{esc(text)}</p>' if kind else f"<p>{esc(text)}</p>")


def bullets(items: Sequence[str | Html], kind: str = "") -> Html:
    """Returns a list, or nothing for no items."""
    if not items:
        return Html("")
    return Html(f'<ul class="{esc(kind)}">' + "".join(f"<li>{esc(item)}</li>" for item in items) + "</ul>")


def subtitle(text: str) -> Html:
    """Returns a heading inside a section."""
    return Html(f"<h3>{esc(text)}</h3>")


def code(text: str) -> Html:
    """Returns text as it was typed."""
    return Html(f"<pre><code>{esc(text)}</code></pre>")


def details(summary: str, inside: Html) -> Html:
    """Returns something that unfolds."""
    return Html(f"<details><summary>{esc(summary)}</summary>{inside.text}</details>")


def bar(share: float, color: str) -> Html:
    """Returns a bar of 0..1 of its column, in a colour of ours."""
    width = min(100.0, max(0.0, 100.0 * share))
    return Html(f'<span class="bar"><i style="width:{width:.1f}%;background:{esc(color)}"></i></span>')


def section(anchor: str, title: str, body: Html | None, *, lead: str = "", absent: str = "") -> Html:
    """Returns a section; without a body it says that this was not run, and where it would come from.

    Args:
        anchor: Target of links, letters only.
        title: Heading.
        body: Content, or None.
        lead: One or two sentences on how to read it.
        absent: Which file would have held it.
    """
    inside = (
        join(paragraph(lead, "lead") if lead else Html(""), body) if body else paragraph(f"Not run: {absent}", "absent")
    )
    return Html(f'<section id="{esc(anchor)}"><h2>{esc(title)}</h2>{inside.text}</section>')


def figure(name: str, spec: Mapping[str, Any], caption: str) -> Html:
    """Returns a plot with its data; the page's script draws it.

    Args:
        name: Unique name on the page, letters and digits.
        spec: `data`, `layout` and `height` of the plot.
        caption: What it shows and how.
    """
    text = json.dumps(_finite(spec), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    height = int(spec.get("height", 320))
    return Html(
        f'<figure><div class="plot" id="plot-{esc(name)}" style="height:{height}px" role="img" '
        f'aria-label="{esc(caption)}"></div><script type="application/json" class="spec" '
        f'data-for="plot-{esc(name)}">{text}</script><figcaption>{esc(caption)}</figcaption></figure>'
    )


def _finite(value: Any) -> Any:
    """Returns plain JSON types in which a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
