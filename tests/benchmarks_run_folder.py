"""A made-up run folder for the report's tests: invented figures, tiny pictures, every kind of file."""

import json

import numpy as np
from PIL import Image

from edge_seg.benchmarks.result import Record, Samples

SCHEMES = ("fp32", "fp16", "w8_dynamic", "w8a8")
CLASSES = (("person", True), ("dog", True), ("chair", True), ("wall", False), ("sky", False), ("grass", False))
_PQ = {"torch": 41.3, "fp32": 41.3, "fp16": 41.2, "w8_dynamic": 41.0, "w8a8": 39.4}
_MS = {"fp32": 36.1, "fp16": 36.4, "w8_dynamic": 21.9, "w8a8": 16.1}
_BYTES = {"fp32": 13_100_000, "fp16": 6_600_000, "w8_dynamic": 4_200_000, "w8a8": 4_000_000}


def _write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def sha(name):
    return (name.encode().hex() * 64)[:64]


def evaluation(name, pq, rng):
    rows = [
        {
            "name": label,
            "isthing": thing,
            "pq": float(np.clip(pq + rng.normal(0, 12), 0, 99)),
            "sq": 78.0,
            "rq": 51.0,
            "tp": 40,
            "fp": 11,
            "fn": 17,
        }
        for label, thing in CLASSES
    ]
    return {
        "name": name,
        "metric": "pq",
        "pq": pq,
        "sq": 78.2,
        "rq": 52.1,
        "pq_th": pq + 2.1,
        "pq_st": pq - 3.0,
        "pq_ci95": [pq - 1.9, pq + 1.8],
        "pq_teacher_forced": 63.5,
        "per_class": rows,
        "images": 200,
        "data": "synthetic:easy",
        "file_sha256": None if name == "torch" else sha(name),
    }


def record(scheme, threads, rng, **changes):
    """Returns a record and its samples."""
    n, scale = 400, 1.0 if threads == 1 else 0.53
    run_ms = (_MS[scheme] * scale * (1 + np.abs(rng.normal(0, 0.012, n)))).astype(np.float32)
    run_ms[rng.integers(0, n, 6)] *= 1.5
    samples = Samples(
        t_s=np.cumsum(run_ms / 1e3).astype(np.float32),
        pre_ms=np.full(n, 1.2, np.float32),
        run_ms=run_ms,
        post_ms=np.full(n, 6.3, np.float32),
        image_index=np.arange(n, dtype=np.int32) % 8,
    )
    middle = float(np.median(run_ms))
    fields = {
        "model": "maskconver_small",
        "sha256": sha(scheme),
        "size_bytes": _BYTES[scheme],
        "scheme": scheme,
        "profile": f"host_cpu_{threads}t",
        "runner": "host",
        "device": {"name": "host", "soc": None, "os": "Linux", "cpu": "A made-up CPU", "cores": 2},
        "runtime": {"name": "ai-edge-litert", "version": "2.3.0"},
        "delegate_requested": "xnnpack",
        "delegate_actual": "xnnpack",
        "nodes_delegated": 141,
        "nodes_total": 143,
        "precision": "file",
        "threads": threads,
        "cpu_mask": "",
        "session": 1,
        "n": n,
        "warmup_n": 24,
        "accuracy": None,
        "median_ms": middle,
        "p90_ms": float(np.percentile(run_ms, 90)),
        "p95_ms": float(np.percentile(run_ms, 95)),
        "p99_ms": float(np.percentile(run_ms, 99)),
        "min_ms": float(run_ms.min()),
        "mad_ms": 0.2,
        "ci95_median_ms": [middle * 0.995, middle * 1.006],
        "early_stopping_p90_ms": middle * 1.03,
        "init_ms": 31.0,
        "first_ms": middle * 1.8,
        "stages": {"pre_ms": 1.2, "run_ms": middle, "post_ms": 6.3},
        "peak_memory_mb": None,
        "drift": {"slope_pct_per_min": 1.4, "throttled": None},
        "outliers": {"mild": 4, "severe": 6},
        "environment": {"governor": None, "load": 0.4, "temperature_c": None, "foreign_cpu_pct": 3.1},
        "kind": "measured",
        "valid": True,
        "warnings": [],
        "samples_file": f"samples/{scheme}_{threads}t.npz",
        "started_utc": "2026-01-02T00:00:00+00:00",
        "protocol": {
            "stopped_by": "target",
            "target_ci_pct": 2.0,
            "min_runs": 64,
            "min_time_s": 1.0,
            "max_time_s": 20.0,
            "order": "A-B-B-A",
            "percentiles": "linear",
        },
        "unknown": {"peak_memory_mb": "several files share one process"},
    }
    return Record(**{**fields, **changes}), samples


def write_benchmark(folder, records_and_samples):
    _write(folder / "benchmark" / "results.json", [r.to_json() for r, _ in records_and_samples])
    for item, samples in records_and_samples:
        samples.save(folder / "benchmark" / item.samples_file)


def write_run_folder(folder, *, side_px=24):
    """Writes every file a report reads; invented figures."""
    rng = np.random.default_rng(0)
    _write(
        folder / "quickstart.json",
        {
            "title": "Quickstart: maskconver_small on synthetic:easy",
            "command": "edge-seg quickstart --data synthetic:easy",
            "data": "synthetic:easy",
            "model": "maskconver_small, 256 px",
            "created_utc": "2026-01-02T00:00:00+00:00",
            "device": "made up",
            "notes": ["All figures of this folder are invented for a test."],
        },
    )
    lines = []
    for step in range(1, 401):
        fade = float(np.exp(-step / 120))
        parts = {"loss_center": 2 * fade + 0.4, "loss_bce": fade + 0.2, "loss_dice": 0.8 * fade + 0.25}
        noise = float(rng.normal(1, 0.05))
        parts = {k: v * noise for k, v in parts.items()}
        lines.append({"step": step, "images": 16 * step, "loss": sum(parts.values()), **parts, "images_per_s": 21.0})
        if step % 50 == 0:
            pq = 41.3 * (1 - fade)
            lines.append({"step": step, "images": 16 * step, "pq": pq, "pq_th": pq + 2, "pq_st": pq - 3})
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for name, pq in _PQ.items():
        _write(folder / "evaluate" / f"{name}.json", evaluation(name, pq, rng))
    _write(folder / "evaluate" / "torch_published_decoder.json", evaluation("torch_published_decoder", 40.1, rng))
    _write(
        folder / "controls.json",
        {"reference_pq": 41.3, "shift_8px": {"pq": 12.4}, "swap_a_b": {"pq": 24.8}},
    )
    for scheme in SCHEMES:
        quantized = {"QUANTIZE": 2, "DEQUANTIZE": 4} if scheme == "w8a8" else {}
        _write(
            folder / "convert" / f"{scheme}.json",
            {
                "file": f"/somewhere/maskconver_small_{scheme}.tflite",
                "scheme": scheme,
                "size_bytes": _BYTES[scheme],
                "sha256": sha(scheme),
                "seconds": 14.2,
                "ops": {"CONV_2D": 71, "DEPTHWISE_CONV_2D": 38, "ADD": 18, "RESIZE_BILINEAR": 6, **quantized},
                "transposes": 0,
            },
        )
        refused = [
            {
                "op": "RESIZE_BILINEAR",
                "index": 97,
                "tensor": "decoder/up/resize",
                "source": "maskconver.py:210",
                "reason": "the GPU delegate takes half-pixel centers only without align_corners",
                "rewrite": "use edge_seg.layers.Resize with half-pixel centers",
            }
        ]
        _write(
            folder / "check" / f"{scheme}_xnnpack.json",
            {
                "delegate": "xnnpack",
                "rules_version": "2.3.0",
                "fully_delegable": True,
                "partitions": 1,
                "refused": [],
            },
        )
        _write(
            folder / "check" / f"{scheme}_gpu.json",
            {
                "file": f"/somewhere/maskconver_small_{scheme}.tflite",
                "delegate": "gpu",
                "rules_version": "2026.08",
                "fully_delegable": scheme != "w8a8",
                "partitions": 1 if scheme != "w8a8" else 3,
                "refused": refused if scheme == "w8a8" else [],
            },
        )
        _write(
            folder / "verify" / f"{scheme}.json",
            {
                "passed": True,
                "outputs": [
                    {"name": "center_logits", "max_abs": 1.2e-5, "snr_db": 98.1, "cosine": 0.999999},
                    {"name": "mask_features", "max_abs": 3.1e-5, "snr_db": 95.4, "cosine": 0.999998},
                ],
                "first_divergence": "neck.up2" if scheme == "w8a8" else None,
                "layers": [],
                "integer_mirror": {"equal": True, "max_lsb": 0} if scheme == "w8a8" else None,
            },
        )
    write_benchmark(folder, [record(s, t, rng) for t in (1, 2) for s in SCHEMES])
    (folder / "predict").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(2):
        row = {}
        for column in ("image", "truth", "torch", *SCHEMES):
            row[column] = f"{index}_{column}.png"
            pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((side_px * 4 // 3, side_px), Image.Resampling.BICUBIC)
            picture.save(folder / "predict" / row[column])
        rows.append(row)
    _write(folder / "predict" / "overlays.json", rows)
    return folder
