"""The page of `verify --layers`: the first divergence, SNR over depth, a table that sorts; it loads nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from edge_seg.benchmarks.report_html import MISSING, Html, bullets, esc, figure, join, number, paragraph, section
from edge_seg.benchmarks.report_style import CSS, SCRIPT
from edge_seg.converters.layers.figures import MapFigures
from edge_seg.converters.layers.report import COLUMNS, LayerRow, LayersReport

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
# Okabe and Ito's colours; the file itself and its layers alone stand out.
_COLORS = {
    "mirror": "#8a6fd1",
    "float_xnnpack": "#35b5e5",
    "float_reference": "#9aa6af",
    "half": "#e69f00",
    "xnnpack": "#d4572a",
    "reference": "#c76b9f",
}
_ALONE = "#0a9c74"
_EXTRA_CSS = """
main, header, footer, nav div { max-width: 1400px; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tr.bad td { background: var(--bad); } .scroll.tall { max-height: 44rem; }
.verdict { border-left: 5px solid var(--good-ink); padding: .3rem 1rem; background: var(--good); border-radius: 6px; }
.verdict.bad { border-color: var(--bad-ink); background: var(--bad); }
"""
_SORT = """
"use strict";
document.querySelectorAll("table.sort").forEach(function (table) {
  table.querySelectorAll("th button").forEach(function (button) {
    button.addEventListener("click", function () {
      var head = button.parentNode, column = head.cellIndex, body = table.tBodies[0];
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      function key(row) { return row.cells[column].dataset.v; }
      Array.prototype.slice.call(body.rows).sort(function (a, b) {
        var x = key(a), y = key(b);
        if (x === "" || y === "") { return (x === "") - (y === ""); }
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""
_Cell = tuple[str, str]  # what is shown, what is sorted by


def layers_page(report: LayersReport) -> str:
    """Returns the whole HTML document; it loads nothing, and its policy forbids it to.

    Args:
        report: The comparison.
    """
    from plotly.offline import get_plotlyjs

    title = f"Layers of {report.file.rsplit('/', 1)[-1]}"
    body = join(
        section("verdict", "First divergence", _verdict(report)),
        section("depth", "Signal-to-noise ratio over depth", figure("depth", depth_plot(report), _CAPTION)),
        section("layers", "Layers in the order they run", _table(report), lead=_lead(report)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{esc(title)}</title><style>{CSS}{_EXTRA_CSS}</style></head><body>"
        f"<header><h1>{esc(title)}</h1>{_facts(report)}</header><main>{body.text}</main>"
        "<footer>Written by edge-seg verify --layers. A dash is a figure that does not exist for this scheme.</footer>"
        f'<script id="plotly">{get_plotlyjs()}</script><script>{SCRIPT}</script><script>{_SORT}</script>'
        "</body></html>\n"
    )


_CAPTION = (
    "Every side against the program, all running by themselves: noise gathers from left to right. Diamonds: the layer "
    "alone, fed with what the file feeds it, so only its own rounding counts. Layers without any noise have no mark. "
    "Sides that are equal hide each other; a click on the legend takes one away. Point at a mark for its module."
)


def _lead(report: LayersReport) -> str:
    name = "the fake-quantised program" if report.reference == "fake_quant" else "PyTorch in float32"
    return (
        f"Ratios in dB against {name}; click a title to sort. “alone” is one layer by itself on the file's own inputs. "
        "“of allowed” is the largest error of its arithmetic as a share of what the rounding of its number format "
        "explains; above 1 the layer computes something else. Steps are those of the int8 grid, against the integer "
        "mirror."
    )


def _facts(report: LayersReport) -> str:
    facts = {
        "scheme": report.scheme,
        "layers": len(report.layers),
        "pictures": f"{report.pictures} (reference kernels: {report.slow_pictures})",
        "runtime": f"{report.runtime['name']} {report.runtime['version']}",
        "sha256": report.sha256[:12],
        "program": report.exported_sha256[:12],
    }
    return (
        '<div class="facts">' + "".join(f"<span>{esc(k)} <b>{esc(v)}</b></span>" for k, v in facts.items()) + "</div>"
    )


def _verdict(report: LayersReport) -> Html:
    first = report.first_divergence
    if first is None:
        text = "No layer diverges: constants, grids and arithmetic of each are what they should be."
        return join(Html(f'<p class="verdict">{esc(text)}</p>'), bullets(report.notes, "notes"))
    others = [r for r in report.layers if r.findings and r.index != first.index]
    lines = [
        Html(
            f'<p class="verdict bad"><b class="mono">{esc(first.module)}</b>: {esc(first.kind)}. {esc(first.text)}</p>'
        ),
        paragraph(f"{first.op}, operator {first.index}, tensor “{first.tensor}”.", "meta"),
    ]
    if others:
        names = ", ".join(r.module for r in others[:12])
        lines.append(paragraph(f"Not right by themselves either, {len(others)} in all: {names}", "meta"))
    return join(*lines, bullets(report.notes, "notes"))


def depth_plot(report: LayersReport) -> dict[str, Any]:
    """Returns the plot of signal-to-noise ratios over the order of execution, as a plain Plotly document.

    Args:
        report: The comparison.
    """
    data = [
        _trace(report, COLUMNS[c], [row.cumulative.get(c) for row in report.layers], _COLORS[c])
        for c in report.columns()
    ]
    alone = _trace(report, "this layer alone", [row.alone for row in report.layers], _ALONE)
    alone |= {"mode": "markers", "marker": {"color": _ALONE, "symbol": "diamond", "size": 6}}
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "layer, in the order they run"}},
        "yaxis": {"title": {"text": "signal-to-noise ratio, dB"}},
    }
    if report.first_divergence is not None:
        at = [row.index for row in report.layers].index(report.first_divergence.index)
        mark = {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [mark | {"line": {"color": "#b3261e", "width": 2, "dash": "dot"}}]
    return {"data": [*data, alone], "layout": layout, "height": 460}


def _trace(report: LayersReport, name: str, figures: Sequence[MapFigures | None], color: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(range(len(figures))),
        "y": [f.snr_db if f is not None and math.isfinite(f.snr_db) else None for f in figures],
        "text": [html.escape(f"{row.module} ({row.op} {row.index})") for row in report.layers],
        "hovertemplate": "%{text}<br>%{y:.1f} dB<extra>" + html.escape(name) + "</extra>",
        "line": {"color": color, "width": 1.5},
        "marker": {"color": color, "size": 4},
        "connectgaps": False,
    }


def _table(report: LayersReport) -> Html:
    columns = report.columns()
    mirrored = any(row.mirror for row in report.layers)
    head = ["#", "module", "operator", "alone, dB", *(f"{COLUMNS[c]}, dB" for c in columns), "alone, cosine"]
    head += ["alone, max of range", "of allowed", "of allowed, reference", "cosine, this file"]
    head += ["equal to the mirror", "within 1 step", "steps", "alone, steps"] if mirrored else []
    top = "".join(
        f'<th scope="col" class="{"l" if i in (1, 2) else "r"}"><button>{esc(h)}</button></th>'
        for i, h in enumerate(head)
    )
    rows = "".join(_row(row, columns, mirrored=mirrored) for row in report.layers)
    return Html(
        '<div class="scroll tall" role="region" tabindex="0" aria-label="layers"><table class="sort">'
        f"<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: LayerRow, columns: Sequence[str], *, mirrored: bool) -> str:
    cells: list[_Cell] = [(str(row.index), str(row.index)), (row.module, row.module)]
    cells += [(row.op, row.op), _db(row.alone), *(_db(row.cumulative.get(c)) for c in columns)]
    cells += [_value(row.alone.cosine, ".6f"), _value(row.alone.max_of_range, ".2g")] if row.alone else [("", "")] * 2
    cells += [_value(row.of_allowed.get(k), ".2f") for k in ("xnnpack", "reference")]
    cells.append(_value(here.cosine if (here := row.cumulative.get("xnnpack")) else None, ".6f"))
    if mirrored:
        own, alone = row.mirror, row.mirror_alone
        cells += [_value(v, ".4%") for v in ((own.exact, own.within_1_lsb) if own else (None, None))]
        cells += [_value(f.max_lsb if f else None, "d") for f in (own, alone)]
    about = f"{row.tensor} {row.dtype} {'×'.join(map(str, row.shape))}"
    hint = " ".join(f"{f.kind}: {f.text}" for f in row.findings)
    start = f'<tr class="bad" title="{esc(hint)}">' if row.findings else f'<tr title="{esc(about)}">'
    return start + "".join(_td(i, cell) for i, cell in enumerate(cells)) + "</tr>"


def _td(place: int, cell: _Cell) -> str:
    kind = "l mono" if place in (1, 2) else "r"
    return f'<td class="{kind}" data-v="{esc(cell[1])}">{esc(cell[0] or MISSING)}</td>'


def _db(figures: MapFigures | None) -> _Cell:
    if figures is None:
        return "", ""
    if math.isinf(figures.snr_db):
        return ("exact", "1e9") if figures.snr_db > 0 else ("no signal", "-1e9")
    return number(figures.snr_db, 1), f"{figures.snr_db:.4f}"


def _value(value: float | None, form: str) -> _Cell:
    if value is None:
        return "", ""
    return f"{value:{form}}", "1e99" if not math.isfinite(value) else repr(float(value))
