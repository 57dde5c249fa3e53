"""Tables of latency, speed and training speed for the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_seg.benchmarks.machine import chip_name
from edge_seg.studies.results.markdown import number, table


def latency(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per device and runtime; a record that broke its protocol says so."""
    tables = []
    for key in dict.fromkeys(_machine(r) for r in records):
        rows = [r for r in records if _machine(r) == key]
        tables.append(f"**Latency** of one picture on {key}: write the input, run, read every output.")
        columns = ("network", "scheme", "MB", "profile", "median ms", "p90 ms", "runs", "kind", "sha256")
        tables.append(table(columns, [_record_row(r) for r in rows]))
    return tables


def _machine(record: Mapping[str, Any]) -> str:
    device, runtime = record.get("device", {}), record.get("runtime", {})
    return f"{_cpu(device)}, {runtime.get('name', 'runtime')} {runtime.get('version', 'of unknown version')}"


def _cpu(device: Mapping[str, Any]) -> str:
    return chip_name(device) or str(device.get("name") or "an unnamed CPU")


def _record_row(record: Mapping[str, Any]) -> list[str]:
    median, ends = number(record.get("median_ms"), 2), record.get("ci95_median_ms")
    kind = record["kind"] if record.get("valid") else f"{record['kind']}, not valid"
    return [
        str(record["model"]),
        f"`{record['scheme']}`",
        number(record["size_bytes"] / 1e6, 2),
        f"`{record['profile']}`",
        f"{median} [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else median,
        number(record.get("p90_ms"), 2),
        str(record.get("n", "")),
        kind,
        f"`{str(record.get('sha256', ''))[:12]}`",
    ]


def speed(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per interleaved run of `edge_seg.studies.network_speed`; a median that missed its interval says so."""
    tables = []
    for run in runs:
        if run.get("what") in _OTHERS:
            tables += _OTHERS[run["what"]](run)
            continue
        cpu, threads = _cpu(run["device"]), run["threads"]
        tables.append(
            f"**Speed** with random weights, all files in turns, {threads} thread, {cpu} (`{run['command']}`). Ratios "
            f"are to the published form and to others' networks in the same scheme, turn by turn, with intervals; the "
            f"last column is work per second beside 3x3 convolutions."
        )
        peers = [f"of {title}" for title in run["rows"][0]["of_peer"]]
        columns = ("network", "scheme", "GMAC", "median ms", "of published", "of own fp32", *peers, "of 3x3")
        tables.append(table(columns, [_speed_row(row) for row in run["rows"]]))
    return tables


def _speed_row(row: Mapping[str, Any]) -> list[str]:
    low, high = row["ci95_median_ms"]
    missed = "" if row["interval_met"] else ", wider than asked"
    ratios = [row["of_published"], row["of_own_fp32"], *row["of_peer"].values()]
    return [
        row["network"],
        f"`{row['scheme']}`",
        number(row["macs_graph"] and row["macs_graph"] / 1e9, 2),
        f"{row['median_ms']:.2f} [{low:.2f}, {high:.2f}]{missed}",
        *map(_ratio, ratios),
        number(row["share_of_3x3"], 2),
    ]


def _ratio(ends: Sequence[float] | None) -> str:
    """A ratio with its interval; to itself it is 1."""
    if not ends:
        return ""
    return "1" if list(ends) == [1.0] * 3 else f"{ends[1]:.2f} [{ends[0]:.2f}, {ends[2]:.2f}]"


def _decoder(run: Mapping[str, Any]) -> list[str]:
    """A table of `edge_seg.studies.decoder_speed`: the decoder beside the straightforward merge."""
    cpu = _cpu(run["device"])
    priority = ", real-time priority" if run["real_time_priority"] else ""
    columns = ("input px", "proposals", "segments", "median ms", "straightforward ms", "ratio")
    return [
        f"**Decoder** of MaskConver from raw arrays to id map and segments at network size, on {run['source']}, in "
        f"turns with the straightforward merge, {run['threads']} thread{priority}, {cpu} (`{run['command']}`).",
        table(columns, [_decoder_row(row) for row in run["rows"]]),
    ]


def _decoder_row(row: Mapping[str, Any]) -> list[str]:
    ratio_low, ratio, ratio_high = row["ratio"]
    medians = []
    for timing in (row["fast"], row["straightforward"]):
        low, high = timing["ci95_median_ms"]
        missed = "" if timing["interval_met"] else ", wider than asked"
        medians.append(f"{timing['median_ms']:.2f} [{low:.2f}, {high:.2f}]{missed}")
    return [
        str(row["input_px"]),
        str(row["proposals"]),
        number(row["segments_mean"], 1),
        *medians,
        f"{ratio:.3f} [{ratio_low:.3f}, {ratio_high:.3f}]",
    ]


def _instance_decoders(run: Mapping[str, Any]) -> list[str]:
    """A table of `edge_seg.studies.instance_decoder_speed`."""
    cpu = _cpu(run["device"])
    priority = ", real-time priority" if run["real_time_priority"] else ""
    columns = ("decoder", "input px", "objects", "median ms", "least ms", "peak memory, MB")
    rows = []
    for row in run["rows"]:
        low, high = row["ci95_median_ms"]
        missed = "" if row["interval_met"] else ", wider than asked"
        median_ms = f"{row['median_ms']:.2f} [{low:.2f}, {high:.2f}]{missed}"
        least_ms, peak_mb = number(row["min_ms"], 2), number(row["peak_bytes"] / 1e6, 1)
        rows.append([row["family"], str(row["input_px"]), str(row["instances"]), median_ms, least_ms, peak_mb])
    head = (
        f"**Decoders of instance networks** from raw arrays to run lengths at network size, on {run['source']}, "
        f"{run['threads']} thread{priority}, {cpu} (`{run['command']}`)."
    )
    return [head, table(columns, rows)]


def _operations(run: Mapping[str, Any]) -> list[str]:
    """A table of `edge_seg.studies.operation_speed`: milliseconds by kind of operator, files side by side."""
    cpu = _cpu(run["device"])
    profiles = run["profiles"]
    kinds = dict.fromkeys(kind for profile in profiles for kind in profile["by_kind"])
    rows = [[kind, *(_of_kind(profile["by_kind"].get(kind)) for profile in profiles)] for kind in kinds]
    rows.append(["all alone", *(f"{p['sum_ms']:.2f}" for p in profiles)])
    rows.append(["the whole network", *(f"{p['whole_ms']:.2f}" for p in profiles)])
    head = (
        f"**Where the time goes**: every operator run alone by the same kernels, median milliseconds (number of "
        f"operators), {profiles[0]['threads']} thread, {cpu} (`{run['command']}`)."
    )
    return [head, table(("operator", *(f"`{p['file'].removesuffix('.tflite')}`" for p in profiles)), rows)]


def _of_kind(found: Mapping[str, Any] | None) -> str:
    return f"{found['ms']:.2f} ({found['operators']:.0f})" if found else ""


def _kernels(run: Mapping[str, Any]) -> list[str]:
    """What a step of training takes with PyTorch's kernels and with ours."""
    title = (
        "**A step of training on a CPU**, seconds with PyTorch's kernels and with those of "
        "`edge_seg.training.kernels`, in turns on batches in memory; ratio of neighbouring steps with its 95 % "
        "interval. Retraining still observes ranges."
    )
    columns = ("step", "batch", "CPU", "PyTorch's kernels", "ours", "ratio", "command")
    return [title, table(columns, [_kernel_row(row) for row in run["rows"]])]


def _kernel_row(row: Mapping[str, Any]) -> list[str]:
    kind = "quantisation-aware retraining" if row["retraining"] else "training"
    seconds = [number(row[name], 3) for name in ("pytorch_s", "ours_s")]
    return [
        f"{kind} of {row['network']}",
        str(row["batch_size"]),
        _cpu(row["device"]),
        *seconds,
        _ratio(row["ratio"]),
        f"`{row['command']}`",
    ]


_OTHERS = {
    "decoder": _decoder,
    "instance_decoder": _instance_decoders,
    "operations": _operations,
    "kernels": _kernels,
}


def training(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per training speed: pictures per second and where the time goes, per number of processes."""
    tables = []
    for run in runs:
        cpu = _cpu(run["device"])
        tables.append(
            f"**Training speed** of `{run['network']}`, batch {run['batch_size']} over all processes, {run['cores']} "
            f"cores, {cpu} (`{run['command']}`); decoded pictures in memory. Shares of the time in percent; exchange "
            f"includes waiting for the other process."
        )
        shares = list(run["processes"][0]["share"])
        columns = (
            "processes",
            "threads each",
            "pictures per s",
            "of each round",
            *(s.replace("_", " ") for s in shares),
        )
        tables.append(table(columns, [_training_row(row) for row in run["processes"]]))
    return tables


def _training_row(row: Mapping[str, Any]) -> list[str]:
    rounds = " / ".join(number(rate, 2) for rate in row["images_per_s_of_rounds"])
    shares = [number(100 * share, 1) for share in row["share"].values()]
    return [str(row["count"]), str(row["threads"]), number(row["images_per_s"], 2), rounds, *shares]
