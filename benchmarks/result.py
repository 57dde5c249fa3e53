"""One benchmark record: what was measured, on what, how well, and every raw sample beside it."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import atomic_path, read_json, write_json
from edge_seg.errors import ArtifactError, InputError, nearest

Kind = Literal["measured", "emulated", "estimated"]
SAMPLE_FIELDS = ("t_s", "pre_ms", "run_ms", "post_ms")
_MAX_SAMPLES_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Record:
    """One file on one profile in one session; None means unknown and `unknown` says why.

    `median_ms`, the percentiles, `mad_ms`, `ci95_median_ms`, `drift` and `outliers` are about `run_ms`: write
    the input, invoke, read every output. Preparing the picture and decoding are apart, in `stages` (medians).

    Attributes:
        model: Name from the contract.
        sha256: Hash of the file.
        size_bytes: Size of the file.
        scheme: Quantisation scheme from the contract.
        profile: Name of the profile.
        runner: Name of the runner.
        device: `name soc os cpu`.
        runtime: `name version`.
        delegate_requested: What the profile asked for.
        delegate_actual: What the runtime said it used.
        nodes_delegated: Nodes the delegate took.
        nodes_total: Nodes of the graph.
        precision: Arithmetic asked for ("file", "fp32", "fp16").
        threads: CPU threads.
        cpu_mask: Hexadecimal mask, or "" for no pinning.
        session: Number of the session, from 1.
        n: Counted runs.
        warmup_n: Runs before and between the counted ones that are not counted.
        accuracy: `metric value fp32_value data_sha256` of the same file, by hash.
        median_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        min_ms: Fastest run.
        mad_ms: Median absolute deviation.
        ci95_median_ms: Bootstrap interval of the median.
        early_stopping_p90_ms: MLPerf's early-stopping estimate of the 90th percentile.
        init_ms: Opening the file until it can run.
        first_ms: `run_ms` of the very first run.
        stages: Medians `pre_ms run_ms post_ms`; None where the runner cannot measure one.
        peak_memory_mb: Peak memory of the file alone.
        drift: `slope_pct_per_min throttled`.
        outliers: `mild severe`, counted and kept.
        environment: Governor, load, temperature and so on, before and after.
        kind: How the figures came about.
        valid: Whether the protocol was met by a measurement; what is emulated or estimated never is.
        warnings: What to know before quoting a figure.
        samples_file: Path of the raw samples relative to the results file; None where the runner has none.
        started_utc: ISO 8601.
        protocol: The stopping rule, what stopped the run, and the images used.
        unknown: Why a key is None, by key.
    """

    model: str
    sha256: str
    size_bytes: int
    scheme: str
    profile: str
    runner: str
    device: Mapping[str, Any]
    runtime: Mapping[str, Any]
    delegate_requested: str
    delegate_actual: str | None
    nodes_delegated: int | None
    nodes_total: int | None
    precision: str
    threads: int
    cpu_mask: str
    session: int
    n: int
    warmup_n: int
    accuracy: Mapping[str, Any] | None
    median_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    min_ms: float | None
    mad_ms: float | None
    ci95_median_ms: Sequence[float] | None
    early_stopping_p90_ms: float | None
    init_ms: float | None
    first_ms: float | None
    stages: Mapping[str, float | None]
    peak_memory_mb: float | None
    drift: Mapping[str, Any]
    outliers: Mapping[str, int] | None
    environment: Mapping[str, Any]
    kind: Kind
    valid: bool
    warnings: Sequence[str]
    samples_file: str | None
    started_utc: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types, keys in the order of the class."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, document: Any, *, source: str = "benchmark record") -> Record:
        """Reads a record strictly.

        Args:
            document: Parsed JSON.
            source: Where it came from, for messages.

        Raises:
            ArtifactError: Not an object, a missing or unknown key, or an unknown kind.
        """
        if not isinstance(document, dict):
            raise ArtifactError(f"{source} is not a benchmark record.", expected="a JSON object")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in document:
            if key not in known:
                raise ArtifactError(f"{source} has an unknown key.", got=key, todo=nearest(key, known))
        missing = [name for name in known if name not in document]
        if missing:
            raise ArtifactError(f"{source} is not complete.", expected=", ".join(missing), got="missing")
        if document["kind"] not in ("measured", "emulated", "estimated"):
            raise ArtifactError(f"{source} has an unknown kind.", got=str(document["kind"]))
        return cls(**document)


@dataclass(frozen=True)
class Samples:
    """Raw samples of one record, one entry per counted run.

    Attributes:
        t_s: Start of the run since the first counted one, seconds.
        pre_ms: Picture to network input.
        run_ms: Write, invoke, read.
        post_ms: Raw outputs to masks.
        image_index: Which of the given images it was.
    """

    t_s: NDArray[np.float32]
    pre_ms: NDArray[np.float32]
    run_ms: NDArray[np.float32]
    post_ms: NDArray[np.float32]
    image_index: NDArray[np.int32]

    def save(self, path: Path) -> None:
        """Writes a compressed npz atomically."""
        columns: dict[str, Any] = {name: np.asarray(getattr(self, name), np.float32) for name in SAMPLE_FIELDS}
        columns["image_index"] = np.asarray(self.image_index, np.int32)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **columns)

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Reads samples without unpickling anything.

        Raises:
            InputError: No such file.
            ArtifactError: Too large, not an npz of ours, or columns of different lengths.
        """
        _check_size(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name].reshape(-1) for name in (*SAMPLE_FIELDS, "image_index")}
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path} is not a samples file.", got=f"{type(error).__name__}: {error}") from error
        if len({column.size for column in columns.values()}) != 1:
            raise ArtifactError(f"{path} has columns of different lengths.")
        times = {name: columns[name].astype(np.float32) for name in SAMPLE_FIELDS}
        return cls(**times, image_index=columns["image_index"].astype(np.int32))


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"There is no file {path}.", expected="the raw samples of a record")
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ArtifactError(f"{path} is not a samples file.", got=str(error)) from error
    if size_bytes > _MAX_SAMPLES_FILE_BYTES:
        raise ArtifactError(
            f"{path} is too large.", expected=f"<= {_MAX_SAMPLES_FILE_BYTES} bytes", got=f"{size_bytes} bytes"
        )


def samples_name(record_key: Sequence[str | int]) -> str:
    """Returns a file name from the parts that identify a record, safe on every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(str(part) for part in record_key)) + ".npz"


def samples_path(results_path: Path, record: Record) -> Path:
    """Returns where a record's samples lie.

    Raises:
        InputError: The record has none.
        ArtifactError: They would lie outside the results file's folder.
    """
    if record.samples_file is None:
        raise InputError(
            f"There are no raw samples of {record.scheme} on {record.profile}.",
            got=record.unknown.get("samples_file", "the record names no file"),
        )
    folder = results_path.parent.resolve()
    path = (folder / record.samples_file).resolve()
    if not path.is_relative_to(folder):
        raise ArtifactError(
            "A samples file lies outside the folder of its results.",
            expected=f"a path below {folder}",
            got=record.samples_file,
        )
    return path


def save_records(path: Path, records: Sequence[Record]) -> None:
    """Writes records as a JSON list, atomically."""
    write_json(path, [record.to_json() for record in records])


def load_records(path: Path) -> list[Record]:
    """Reads a JSON list of records.

    Raises:
        InputError: Missing or not JSON.
        ArtifactError: Not a list of complete records.
    """
    document = read_json(path, "list of benchmark records")
    if not isinstance(document, list):
        raise ArtifactError(f"{path} is not a list of benchmark records.", got=type(document).__name__)
    return [Record.from_json(item, source=f"{path} record {i}") for i, item in enumerate(document)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
