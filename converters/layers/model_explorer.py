"""The layers of a file as an overlay for Google's Model Explorer: colours over the graph of the .tflite.

Source:
    Model Explorer, `node_data_builder.py` (github.com/google-ai-edge/model-explorer, Apache-2.0): `ModelNodeData` is
    an object from graph id to `GraphNodeData`, whose `results` go by the name of an output tensor of a node; a
    threshold colours the values up to it that no smaller one has taken. Only the format is used.
"""

from __future__ import annotations

import math
from typing import Any

from edge_seg.converters.layers.figures import MapFigures
from edge_seg.converters.layers.report import LayersReport

GRAPH_ID = "main"  # what Model Explorer's TFLite adapter calls the first subgraph
DIVERGED = {"bgColor": "#b3261e", "textColor": "#ffffff"}
# Noise in percent of the signal (root mean squares): 1 % is 40 dB, 10 % is 20 dB, 100 % is 0 dB.
THRESHOLDS = (
    {"value": 0.1, "bgColor": "#c9ead6"},
    {"value": 1, "bgColor": "#e8f3c4"},
    {"value": 10, "bgColor": "#fdeecf"},
    {"value": 100, "bgColor": "#f7c6a3"},
    {"value": 1e12, "bgColor": "#ee9c8e"},
)


def node_data(report: LayersReport) -> dict[str, Any]:
    """Returns the noise that has gathered at each layer of the file with XNNPACK, in percent of the signal.

    Layers that diverge are red whatever their noise is. A layer without a finite ratio is left out.

    Args:
        report: The comparison.

    Returns:
        Plain JSON types; `edge_seg.artifact.write_json` makes the file that Model Explorer loads as node data.
    """
    results: dict[str, Any] = {}
    for row in report.layers:
        noise = _noise_percent(row.cumulative.get("xnnpack"))
        if noise is not None:
            results[row.tensor] = {"value": noise, **(DIVERGED if row.findings else {})}
    return {GRAPH_ID: {"results": results, "thresholds": [dict(t) for t in THRESHOLDS]}}


def _noise_percent(figures: MapFigures | None) -> float | None:
    if figures is None or math.isnan(figures.snr_db) or figures.snr_db == -math.inf:
        return None
    return 0.0 if figures.snr_db == math.inf else float(f"{100.0 * 10.0 ** (-figures.snr_db / 20.0):.6g}")
