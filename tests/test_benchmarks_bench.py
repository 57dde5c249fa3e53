"""Records and results files, with a runner that is registered only here."""

import contextlib
import dataclasses
import io
import json
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest

from edge_seg.artifact import sha256_of
from edge_seg.benchmarks import bench
from edge_seg.benchmarks.profile import load_profile, profile_names
from edge_seg.benchmarks.report_latency import _definitions
from edge_seg.benchmarks.result import Record, Samples, load_records, samples_path, save_records
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.errors import ArtifactError, ConfigError, InputError, MissingHere

IMAGES = [np.zeros((8, 8, 3), np.uint8)]
# the keys of the benchmark record, as the command line promises them
PROMISED = set(
    [
        "model",
        "sha256",
        "size_bytes",
        "scheme",
        "profile",
        "runner",
        "device",
        "runtime",
        "delegate_requested",
        "delegate_actual",
        "nodes_delegated",
        "nodes_total",
        "precision",
        "threads",
        "cpu_mask",
        "session",
        "n",
        "warmup_n",
        "accuracy",
        "median_ms",
        "p90_ms",
        "p95_ms",
        "p99_ms",
        "min_ms",
        "mad_ms",
        "ci95_median_ms",
        "early_stopping_p90_ms",
        "init_ms",
        "first_ms",
        "stages",
        "peak_memory_mb",
        "drift",
        "outliers",
        "environment",
        "kind",
        "valid",
        "warnings",
        "samples_file",
        "started_utc",
    ]
)
PROFILE = """
name = "fake"
title = "A device that is not there"
soc = "none"
runner = "fake"
delegates = ["xnnpack", "none"]
threads = 1
cpu_mask = ""
precision = "file"
sessions = 2
min_runs = 64
min_time_s = 0.1
max_time_s = 2.0
target_ci_pct = 2.0
cool_down_s = 30.0

[[hardware]]
name = "memory_gb_per_s"
value = 51.2
source = "the vendor's data sheet"
confidence = "vendor"
"""


class Time:
    """A clock that only executors move, and a sleep that only counts."""

    def __init__(self):
        self.now, self.slept_s = 0.0, []

    def clocks(self):
        return bench.Clocks(
            now_s=lambda: self.now,
            sleep_s=self.slept_s.append,
            utc=lambda: datetime(2026, 1, 2, tzinfo=UTC),
        )


TIME = Time()


class FakeExecutor:
    def __init__(self, path, delegate):
        self.run_ms = float(path.read_text()) * (3.0 if delegate == "none" else 1.0)
        self.facts = Opened(
            model="net",
            scheme=path.stem,
            init_ms=12.0,
            runtime={"name": "fake", "version": "1"},
            delegate_actual=delegate,
            nodes_total=9,
            unknown={"nodes_delegated": "a fake does not tell"},
        )
        self.count = 0

    def step(self, image_hwc_u8):
        self.count += 1
        times = StageTimes(1.0, self.run_ms + 0.01 * (self.count % 5), 2.0)
        TIME.now += times.total_ms / 1e3
        return times

    def close(self):
        pass


class FakeRunner:
    name = "fake"
    kind = "measured"

    def session(self, profile):
        return contextlib.nullcontext()

    def open(self, path, profile, delegate):
        return FakeExecutor(path, delegate)

    def device(self):
        return {"name": "fake", "soc": None, "os": None, "cpu": None}

    def watch(self):
        return lambda: {"governor": None, "load": 0.1, "temperature_c": 30.0, "foreign_cpu_pct": 42.0}


if "fake" not in RUNNERS.names():
    RUNNERS.register("fake")(FakeRunner)


@pytest.fixture
def two_files(tmp_path):
    paths = [tmp_path / "fp32.tflite", tmp_path / "w8a8.tflite"]
    for path, run_ms in zip(paths, ("10.0", "4.0"), strict=True):
        path.write_text(run_ms)
    return paths


@pytest.fixture
def profile_path(tmp_path):
    path = tmp_path / "fake.toml"
    path.write_text(PROFILE)
    return path


def _run(files, profile_path, out, **kwargs):
    return bench.benchmark(files, [profile_path], images=IMAGES, out=out, clocks=TIME.clocks(), **kwargs)


def test_every_file_delegate_and_session_has_a_record_with_all_keys(two_files, profile_path, tmp_path):
    records = _run(two_files, profile_path, tmp_path / "out" / "results.json")
    assert len(records) == 2 * 2 * 2
    assert {(r.scheme, r.delegate_requested, r.session) for r in records} == {
        (s, d, n) for s in ("fp32", "w8a8") for d in ("xnnpack", "none") for n in (1, 2)
    }
    assert set(records[0].to_json()) >= PROMISED
    first = records[0]
    assert (first.median_ms, first.min_ms, first.stages["pre_ms"], first.stages["post_ms"]) == (
        pytest.approx(10.02, abs=1e-3),
        pytest.approx(10.0),
        1.0,
        2.0,
    )
    assert first.sha256 == sha256_of(two_files[0])
    assert first.size_bytes == two_files[0].stat().st_size
    assert (first.init_ms, first.first_ms) == (12.0, pytest.approx(10.01))
    assert first.valid
    assert first.started_utc == "2026-01-02T00:00:00+00:00"
    assert TIME.slept_s[-2:] == [30.0, 30.0]


def test_sessions_open_the_files_in_either_order_by_turns(two_files, profile_path, tmp_path, monkeypatch):
    opened = []
    honest = FakeRunner.open
    monkeypatch.setattr(FakeRunner, "open", lambda self, path, *of: opened.append(path.stem) or honest(self, path, *of))
    records = _run(two_files, profile_path, tmp_path / "results.json")
    assert opened == ["fp32", "w8a8", "w8a8", "fp32"] * 2  # two sessions of each delegate
    assert [r.scheme for r in records] == ["fp32", "w8a8"] * 4
    assert [round(r.median_ms) for r in records] == [10, 4, 10, 4, 30, 12, 30, 12], "times stay with their files"


def test_what_is_unknown_is_null_and_has_a_reason(two_files, profile_path, tmp_path):
    record = _run(two_files[:1], profile_path, tmp_path / "results.json")[0]
    document = record.to_json()
    nulls = [key for key, value in document.items() if value is None]
    assert "nodes_delegated" in nulls
    assert "accuracy" in nulls
    assert set(nulls) <= set(record.unknown)
    assert record.drift["throttled"] is None
    assert "drift.throttled" in record.unknown


def test_a_busy_machine_is_a_warning(two_files, profile_path, tmp_path):
    record = _run(two_files[:1], profile_path, tmp_path / "results.json")[0]
    assert any("42 %" in warning for warning in record.warnings)


def test_too_little_time_makes_a_record_invalid_and_early_stopping_null(two_files, profile_path, tmp_path):
    record = _run(two_files[:1], profile_path, tmp_path / "results.json", max_time_s=0.05)[0]
    assert not record.valid
    assert record.protocol["stopped_by"] == "max_time"
    assert record.early_stopping_p90_ms is None
    assert "at least 64" in record.unknown["early_stopping_p90_ms"]


def test_asked_for_ratios_files_stop_when_those_are_known_and_say_that_their_medians_are_not(
    two_files, profile_path, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    wander = iter(np.exp(np.cumsum(0.05 * rng.normal(size=20_000)) % 0.7))
    monkeypatch.setattr(FakeExecutor, "step", lambda self, _: StageTimes(1.0, self.run_ms * next(wander), 2.0))
    records = _run(two_files, profile_path, tmp_path / "r.json", max_time_s=1000.0, ratio_ci_pct=20.0)
    assert {record.protocol["stopped_by"] for record in records} == {"ratio"}
    assert {record.protocol["ratio_ci_pct"] for record in records} == {20.0}
    assert not any(record.valid for record in records)
    assert all("good for ratios only" in "; ".join(record.warnings) for record in records)
    assert "every file’s ratio to the first is at most 20.0 % wide" in str(_definitions(records[0]))
    hopeless = _run(two_files, profile_path, tmp_path / "h.json", max_time_s=1.0, ratio_ci_pct=0.01)
    assert {record.protocol["stopped_by"] for record in hopeless} == {"max_time"}
    assert all("before the ratios to the first file were known to 0.01 %" in r.warnings[0] for r in hopeless)
    assert "of its median is at most 2.0 % wide" in str(_definitions(_run(two_files, profile_path, tmp_path / "m")[0]))


def test_one_file_has_no_ratio_to_be_known(two_files, profile_path, tmp_path):
    with pytest.raises(InputError, match="no ratio"):
        _run(two_files[:1], profile_path, tmp_path / "r.json", ratio_ci_pct=2.0)
    with pytest.raises(InputError, match="no ratio"):
        _run(two_files, profile_path, tmp_path / "r.json", ratio_ci_pct=0.0)
    with pytest.raises(InputError, match="knows no ratios"):
        bench.benchmark(two_files, ["pixel_8"], images=IMAGES, out=tmp_path / "r.json", ratio_ci_pct=2.0)
    assert not (tmp_path / "r.json").exists()


def test_records_and_samples_survive_the_disk(two_files, profile_path, tmp_path):
    out = tmp_path / "deep" / "results.json"
    records = _run(two_files, profile_path, out)
    assert load_records(out) == records
    samples = Samples.load(samples_path(out, records[0]))
    assert samples.run_ms.size == records[0].n
    assert samples.run_ms.dtype == np.float32
    assert float(np.median(samples.run_ms)) == pytest.approx(records[0].median_ms, abs=1e-4)
    assert len({record.samples_file for record in records}) == len(records)


def test_results_are_on_disk_after_each_file(two_files, profile_path, tmp_path, monkeypatch):
    out, lengths = tmp_path / "results.json", []
    real = bench.save_records
    monkeypatch.setattr(bench, "save_records", lambda p, r: (real(p, r), lengths.append(len(load_records(p)))))
    _run(two_files, profile_path, out)
    assert lengths == list(range(1, 9))


def test_accuracy_is_matched_by_hash_and_never_by_name(two_files, profile_path, tmp_path):
    documents = [
        {"name": "fp32", "metric": "pq", "pq": 0.5, "file_sha256": sha256_of(two_files[0])},
        {"name": "w8a8", "metric": "pq", "pq": 0.4, "file_sha256": "0" * 64, "data_sha256": "d"},
    ]
    paths = []
    for document in documents:
        paths.append(tmp_path / f"{document['name']}.json")
        paths[-1].write_text(json.dumps(document))
    records = _run(two_files, profile_path, tmp_path / "results.json", accuracy=paths)
    by_scheme = {record.scheme: record.accuracy for record in records}
    assert by_scheme["fp32"] == {"metric": "pq", "value": 0.5, "fp32_value": 0.5, "data_sha256": None}
    assert by_scheme["w8a8"] is None


def test_a_file_is_held_to_the_fp32_file_of_its_own_network_and_data(tmp_path):
    def document(model, scheme, value, data):
        path = tmp_path / f"{model}_{scheme}_{data}.json"
        told = {"model": f"{model}_{scheme}.tflite", "scheme": scheme, "pq": value, "data_sha256": data}
        path.write_text(json.dumps({**told, "file_sha256": path.name}))
        return path

    paths = [document(m, s, v, "d") for m, s, v in (("a", "fp32", 30.0), ("a", "w8a8", 29.0), ("b", "fp32", 50.0))]
    paths += [document("b", "qat_w8a8", 51.0, "d"), document("c", "w8a8", 9.0, "d"), document("a", "w8a8", 8.0, "e")]
    found = bench.load_accuracy(paths)
    assert [found[path.name]["fp32_value"] for path in paths] == [30.0, 30.0, 50.0, 50.0, None, None]


def test_the_progress_bar_goes_to_the_given_stream_and_reaches_the_end(two_files, profile_path, tmp_path):
    stream = io.StringIO()
    _run(two_files, profile_path, tmp_path / "results.json", progress=stream)
    assert "100%" in stream.getvalue()


def test_the_same_file_twice_or_no_file_is_refused(two_files, profile_path, tmp_path):
    with pytest.raises(InputError, match="twice"):
        _run([two_files[0], two_files[0]], profile_path, tmp_path / "r.json")
    with pytest.raises(InputError, match="nothing to measure"):
        _run([], profile_path, tmp_path / "r.json")


def test_a_record_with_a_missing_or_unknown_key_is_refused(two_files, profile_path, tmp_path):
    document = _run(two_files[:1], profile_path, tmp_path / "r.json")[0].to_json()
    with pytest.raises(ArtifactError, match="unknown key"):
        Record.from_json({**document, "medain_ms": 1.0})
    with pytest.raises(ArtifactError, match="not complete"):
        Record.from_json({k: v for k, v in document.items() if k != "kind"})
    with pytest.raises(ArtifactError, match="kind"):
        Record.from_json({**document, "kind": "guessed"})


def test_a_samples_path_that_leaves_its_folder_is_refused(two_files, profile_path, tmp_path):
    out = tmp_path / "r.json"
    record = _run(two_files[:1], profile_path, out)[0]
    for path in ("../elsewhere.npz", "/etc/passwd"):
        with pytest.raises(ArtifactError, match="outside"):
            samples_path(out, dataclasses.replace(record, samples_file=path))


def test_a_pickled_truncated_or_lopsided_samples_file_is_refused(tmp_path):
    pickled, broken, lopsided = (tmp_path / f"{n}.npz" for n in ("pickled", "broken", "lopsided"))
    columns = {name: np.zeros(3, np.float32) for name in ("t_s", "pre_ms", "run_ms", "post_ms")}
    np.savez(pickled, **columns, image_index=np.array([{}, {}, {}], object))
    broken.write_bytes(pickled.read_bytes()[:100])
    np.savez(lopsided, **columns, image_index=np.zeros(4, np.int32))
    for path in (pickled, broken, lopsided):
        with pytest.raises(ArtifactError):
            Samples.load(path)
    with pytest.raises(InputError, match="no file"):
        Samples.load(tmp_path / "absent.npz")


def test_a_samples_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t_s.npy", bytes(100_000))
    monkeypatch.setattr("edge_seg.benchmarks.result._MAX_SAMPLES_FILE_BYTES", 10_000)
    with pytest.raises(ArtifactError, match="too large"):
        Samples.load(path)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_of_the_package_loads_and_names_a_runner(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.runner in RUNNERS.names()
    assert profile.min_runs >= 64


def test_there_are_host_profiles_for_one_and_two_threads():
    assert load_profile("host_cpu_1t").threads == 1
    assert load_profile("host_cpu_2t").threads == 2


def test_an_unknown_profile_or_key_names_its_neighbour(profile_path):
    with pytest.raises(ConfigError, match="host_cpu_2t"):
        load_profile("host_cpu_2")
    profile_path.write_text(PROFILE.replace("threads", "treads"))
    with pytest.raises(ConfigError, match="threads"):
        load_profile(profile_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"vendor"', '"rumour"', "confidence"),
        ('"the vendor\'s data sheet"', '""', "source"),
        ('cpu_mask = ""', 'cpu_mask = "f0"', "cpu_mask"),
        ("min_runs = 64", "min_runs = 1", "min_runs"),
        ("max_time_s = 2.0", "max_time_s = 0.05", "max_time_s"),
        ("cool_down_s", "ratio_ci_pct = 0.0\ncool_down_s", "ratio_ci_pct"),
        ('delegates = ["xnnpack", "none"]', "delegates = []", "delegates"),
        ('name = "fake"', 'name = "other"', "name"),
    ],
)
def test_a_profile_with_a_wrong_value_is_refused(profile_path, old, new, message):
    profile_path.write_text(PROFILE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_profile(profile_path)


def test_a_cpu_mask_names_cpus_from_the_lowest_bit(profile_path):
    profile_path.write_text(PROFILE.replace('cpu_mask = ""', 'cpu_mask = "0x0b"'))
    assert load_profile(profile_path).cpus == (0, 1, 3)


def test_the_host_runner_refuses_cpus_that_are_not_here_and_unknown_delegates(profile_path, tmp_path):
    profile_path.write_text(PROFILE.replace('cpu_mask = ""', f'cpu_mask = "0x{1 << 100:x}"'))
    profile, runner = load_profile(profile_path), RUNNERS["host"]()
    with pytest.raises(MissingHere, match="CPUs"), runner.session(profile):
        pass
    with pytest.raises(InputError, match="xnnpack"):
        runner.open(tmp_path / "x.tflite", profile, "xnnpak")


def test_the_host_says_what_it_is_and_how_busy_it_was():
    runner = RUNNERS["host"]()
    environment = runner.watch()()
    assert set(runner.device()) >= {"name", "soc", "os", "cpu"}
    assert set(environment) >= {"governor", "load", "temperature_c", "foreign_cpu_pct"}


def test_saving_records_is_valid_json_without_numpy_types(tmp_path, two_files, profile_path):
    record = _run(two_files[:1], profile_path, tmp_path / "r.json")[0]
    save_records(tmp_path / "again.json", [record])
    assert json.loads((tmp_path / "again.json").read_text())[0] == record.to_json()
