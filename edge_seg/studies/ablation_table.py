"""What `ablation` compares, the documents it leaves, and the table made from documents alone (no torch).

A document holds the statistics of every picture, so that differences are paired and the table needs no run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import read_json, write_bytes
from edge_seg.errors import InputError
from edge_seg.evaluation.bootstrap import Interval

FORMAT = "edge_seg.studies.ablation.1"
BASE = "base"
MAIN = "main"
SMALLEST_DIFFERENCE_PQ = 2.0
MISSING = "missing"
_COLUMNS = ("iou_sum", "tp", "fp", "fn")
_SAME = ("experiment_sha256", "data", "data_sha256", "train_data_sha256", "images", "classes")
_KEYS = ("name", "seed", "config", "epochs", "macs_graph", *_SAME)
_RESAMPLES = 1000
_RESAMPLING_SEED = 0


@dataclass(frozen=True)
class Variation:
    """One choice that differs from the recipe.

    Attributes:
        name: Name of the row, and with the seed of the run's folder.
        change: What is different, for the table.
        overrides: `section.key=value` texts for the training.
        decoder: `key=value` texts for the decoder alone.
        weights_of: The variation whose training is scored; empty is its own.
        group: Which variations are run together.
    """

    name: str
    change: str
    overrides: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()
    weights_of: str = ""
    group: str = MAIN


# The lite network was found from this one, one budget at a time.
_FIRST_LITE = {
    "backbone": "mobilenet_v2_160",
    "aspp": "full",
    "shared_trunk": "none",
    "head_kernel": "5",
    "width": "128",
}


def _lite(name: str, change: str, **options: str) -> Variation:
    chosen = tuple(f"model.options.{key}={value}" for key, value in {**_FIRST_LITE, **options}.items())
    return Variation(f"lite_{name}", change, ("model.name=maskconver_lite_256", *chosen), group="lite")


VARIATIONS = (
    Variation(BASE, "the recipe as it is"),
    Variation("k5", "5x5 instead of 7x7 heads", ("model.name=maskconver_mnv2_256_k5",)),
    Variation(
        "no_position", "kernels without relative position (published)", ("model.options.relative_position=false",)
    ),
    Variation("lite", "the lite network", ("model.name=maskconver_lite_256",)),
    Variation("blob_stuff", "one blob per stuff class (published)", ("criterion.dense_stuff=false",)),
    Variation("added", "class embedding added (the paper's text)", ("model.options.class_embedding=add",)),
    Variation("mask_centers", "centres of mass instead of boxes", ("criterion.centers=mask",)),
    Variation("live_norm", "BatchNorm of the backbone live", ("optim.freeze_batchnorm=none",)),
    Variation(
        "reassign", "decoder: pixels of rejected segments re-assigned", (), ("reassign_rejected=true",), weights_of=BASE
    ),
    Variation("exponent1", "decoder: score exponent 1 (published)", (), ("score_exponent=1.0",), weights_of=BASE),
    _lite("first", "first lite: 160 channels, ASPP, three trunks"),
    _lite("whole_backbone", "first lite, whole backbone", backbone="mobilenet_v2"),
    _lite("none_aspp", "first lite, no ASPP", aspp="none"),
    _lite("shared", "first lite, one shared trunk", shared_trunk="conv"),
    _lite("width256", "first lite, width 256", width="256"),
    _lite(
        "short",
        "first lite, 96 channels, no ASPP, 3x3",
        backbone="mobilenet_v2_96",
        aspp="none",
        head_kernel="3",
    ),
)


def groups() -> tuple[str, ...]:
    """Returns the names of the groups in order."""
    return tuple(dict.fromkeys(v.group for v in VARIATIONS))


def document_name(name: str, seed: int) -> str:
    """Returns the name of a run's folder and, with a suffix, of its document."""
    return f"{name}_s{seed}"


def write_document(path: Path, about: Mapping[str, Any], statistics: NDArray[np.float64]) -> dict[str, Any]:
    """Writes a result document, one line per key, and returns it.

    Args:
        path: `NAME_sSEED.json`.
        about: Everything but the statistics.
        statistics: IoU sum, tp, fp, fn, [pictures, classes, 4]; kept to the last digit.
    """
    columns = {k: (statistics[..., i] if i == 0 else statistics[..., i].astype(int)) for i, k in enumerate(_COLUMNS)}
    document = {"format": FORMAT, **about, "statistics": {k: v.tolist() for k, v in columns.items()}}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in document.items())
    write_bytes(path, f"{{\n{lines}\n}}\n".encode())
    return document


def read_document(path: Path) -> dict[str, Any]:
    """Reads and checks a result document; its `statistics` become one array [pictures, classes, 4] float64.

    Raises:
        InputError: It is no such document, or its statistics do not fit its classes and pictures.
    """
    document = read_json(path, "document of edge_seg.studies.ablation")
    try:
        missing = [k for k in _KEYS if k not in document] or document["format"] != FORMAT
        shape = (document["images"], len(document["classes"]), 4)
        statistics = np.stack([np.asarray(document["statistics"][k], np.float64) for k in _COLUMNS], -1)
        fits = statistics.shape == shape and bool((np.isfinite(statistics) & (statistics >= 0)).all())
        known = document["name"] in [v.name for v in VARIATIONS] and all("isthing" in c for c in document["classes"])
        named = path.stem == document_name(document["name"], document["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_document(path, f"{type(error).__name__}: {error}") from error
    if missing or not (fits and known and named):
        got = f"{document['name']!r}, seed {document['seed']}, statistics {list(statistics.shape)}"
        raise _not_a_document(path, f"keys missing: {missing}" if missing else got)
    return {**document, "statistics": statistics}


def _not_a_document(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} is not a result of an ablation.",
        expected="NAME_sSEED.json of a known variation, with statistics of every picture and class",
        got=got[:200],
        todo="delete it and run python -m edge_seg.studies.ablation again",
    )


def read_documents(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the documents of a folder by variation and seed.

    Raises:
        InputError: One is no such document, or two are not of the same experiment and pictures.
    """
    paths = sorted(folder.glob("*.json"))
    documents = [read_document(path) for path in paths]
    for path, document in zip(paths, documents, strict=True):
        if other := [k for k in _SAME if document[k] != documents[0][k]]:
            raise InputError(
                f"{path} and {paths[0]} cannot be compared.",
                expected=f"the same {', '.join(other)}",
                got=f"{str(documents[0][other[0]])[:60]} and {str(document[other[0]])[:60]}",
                todo="keep the documents of each recipe and data set in a folder of their own",
            )
    return {(d["name"], d["seed"]): d for d in documents}


def pq(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns PQ in percent of statistics [..., classes, 4], the mean over classes that occur; nan without any."""
    iou_sum, tp, fp, fn = np.moveaxis(totals, -1, 0)
    weight = tp + 0.5 * fp + 0.5 * fn
    count = (weight > 0).sum(-1)
    total = (iou_sum / np.where(weight > 0, weight, 1.0)).sum(-1)
    return np.where(count > 0, 100.0 * total / np.maximum(count, 1), math.nan)


def paired_difference(base: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> Interval:
    """Returns PQ(other) - PQ(base), the mean over seeds, with its 95 % bootstrap interval over pictures.

    Each resample takes the same pictures for every training and averages the differences of the seeds. How
    trainings differ from one another is not in the interval.

    Args:
        base: Statistics of the reference, [pictures, classes, 4] per seed.
        other: Statistics of the variation, same seeds in the same order, same pictures.
    """
    pictures = len(base[0])
    rng = np.random.default_rng(_RESAMPLING_SEED)
    weights = rng.multinomial(pictures, np.full(pictures, 1.0 / pictures), size=_RESAMPLES).astype(np.float64)
    pairs = list(zip(base, other, strict=True))
    value = np.mean([pq(b.sum(0)) - pq(a.sum(0)) for a, b in pairs])
    samples = np.mean([pq(np.tensordot(weights, b, 1)) - pq(np.tensordot(weights, a, 1)) for a, b in pairs], axis=0)
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def verdict(difference: Interval) -> str:
    """Returns "noise" unless the interval leaves out 0 and the difference is 2 PQ or more."""
    if difference.low <= 0 <= difference.high or abs(difference.value) < SMALLEST_DIFFERENCE_PQ:
        return "noise"
    return "better" if difference.value > 0 else "worse"


def table(documents: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the comparison as plain JSON types.

    A group has rows as soon as one of its variations has a document, the main group always; what is not there is None.

    Args:
        documents: By variation and seed (see `read_documents`).

    Raises:
        InputError: There is no document.
    """
    if not documents:
        raise InputError("There is nothing to compare.", expected="documents of edge_seg.studies.ablation", got="none")
    seeds = sorted({seed for _, seed in documents})
    begun = {MAIN, *(v.group for v in VARIATIONS for s in seeds if (v.name, s) in documents)}
    first = next(iter(documents.values()))
    return {
        **{k: first[k] for k in ("config", "epochs", *_SAME)},
        "seeds": seeds,
        "rows": [_row(v, seeds, documents) for v in VARIATIONS if v.group in begun],
    }


def _row(
    variation: Variation, seeds: Sequence[int], documents: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    own = {s: documents.get((variation.name, s)) for s in seeds}
    found = [d for d in own.values() if d is not None]
    row: dict[str, Any] = {
        "name": variation.name,
        "change": variation.change,
        "group": variation.group,
        "macs_graph": found[0]["macs_graph"] if found else None,
        "scores": [d and _scores(d) for d in own.values()],
        "difference": None,
        "differences": [None] * len(seeds),
        "verdict": None if found else MISSING,
    }
    paired = [s for s in seeds if own[s] and (BASE, s) in documents]
    if variation.name == BASE or not paired:
        return row
    base, other = ([documents[name, s]["statistics"] for s in paired] for name in (BASE, variation.name))
    difference = paired_difference(base, other)
    each = {s: float(pq(b.sum(0)) - pq(a.sum(0))) for s, a, b in zip(paired, base, other, strict=True)}
    row["difference"] = {"value": difference.value, "ci95": [difference.low, difference.high], "seeds": paired}
    row["differences"] = [each.get(s) for s in seeds]
    row["verdict"] = verdict(difference)
    return row


def _scores(document: Mapping[str, Any]) -> dict[str, float | None]:
    totals = document["statistics"].sum(0)
    isthing = np.array([c["isthing"] for c in document["classes"]], np.bool_)
    values = {"pq": pq(totals), "pq_th": pq(totals[isthing]), "pq_st": pq(totals[~isthing])}
    return {k: float(v) if np.isfinite(v) else None for k, v in values.items()}


def markdown(comparison: Mapping[str, Any]) -> str:
    """Returns a comparison (see `table`) as a caption and a Markdown table."""
    columns = ("variation", "change", "GMAC", "PQ", "PQ things", "PQ stuff", "difference", "by seed", "verdict")
    lines = [columns, ["---"] * len(columns), *(_cells(row, len(comparison["seeds"])) for row in comparison["rows"])]
    return "\n".join([caption(comparison), "", *(f"| {' | '.join(line)} |" for line in lines)])


def caption(comparison: Mapping[str, Any]) -> str:
    """Returns what a reader must know of the table: data, schedule, rule of the verdict, what the interval is not."""
    seeds = " / ".join(map(str, comparison["seeds"]))
    base = next(row for row in comparison["rows"] if row["name"] == BASE)
    spread = [s["pq"] for s in base["scores"] if s is not None and s["pq"] is not None]
    trainings = ""
    if len(spread) > 1:
        trainings = f": the {len(spread)} of `{BASE}` differ by up to {max(spread) - min(spread):.2f} PQ"
    return (
        f"**Choices, one at a time**, `{comparison['config']}` ({comparison['epochs']:g} epochs) on "
        f"`{comparison['data']}` (`val`, {comparison['images']} pictures, data sha256 "
        f"`{comparison['data_sha256'][:12]}`), PyTorch, in percent, seed {seeds}. The difference to `{BASE}` is the "
        f"mean over seeds with its 95 % interval (paired bootstrap over pictures). The interval does not contain the "
        f"spread between trainings{trainings}. Verdict: `noise` where the interval contains 0 or the difference is "
        f"below {SMALLEST_DIFFERENCE_PQ:g} PQ."
    )


def _cells(row: Mapping[str, Any], seeds: int) -> list[str]:
    difference, missing = row["difference"], row["verdict"] == MISSING
    low, high = difference["ci95"] if difference else (0.0, 0.0)
    scores = [_strokes([s and s[k] for s in row["scores"]], "{:.2f}") for k in ("pq", "pq_th", "pq_st")]
    partly = (
        f" ({len(difference['seeds'])} of {seeds} seeds)" if difference and len(difference["seeds"]) < seeds else ""
    )
    no_difference = "" if row["name"] == BASE or missing else f"{BASE} is {MISSING}"
    return [
        row["name"],
        row["change"],
        f"{row['macs_graph'] / 1e9:.2f}" if row["macs_graph"] else "",
        *([MISSING] * 3 if missing else scores),
        f"{difference['value']:+.2f} [{low:+.1f}, {high:+.1f}]" if difference else no_difference,
        _strokes(row["differences"], "{:+.2f}") if difference else "",
        f"{row['verdict']}{partly}" if row["verdict"] else "",
    ]


def _strokes(values: Sequence[float | None], form: str) -> str:
    return " / ".join(MISSING if v is None else form.format(v) for v in values)
