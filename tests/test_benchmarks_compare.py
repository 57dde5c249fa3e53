"""Compare and gate on results files made here: what is refused, what is said, and the exit codes."""

import dataclasses
import json
from statistics import NormalDist

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks.compare import compare_files
from edge_seg.benchmarks.gate import Rules, gate_files
from edge_seg.benchmarks.result import Record, Samples, save_records
from edge_seg.commands.compare import compare
from edge_seg.commands.gate import gate, percent
from edge_seg.errors import ArtifactError, CheckFailed, InputError

DEVICE = {"name": "host", "soc": None, "os": "Linux 6", "cpu": "a chip"}
RUNTIME = {"name": "tflite", "version": "2.3.0"}
PROTOCOL = {"version": 2, "latency_of": "run_ms", "images_n": 4, "images_sha256": "1" * 64}
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 150) for i in range(150)])  # the same median in any order
ACCURACY = {"metric": "pq", "value": 30.0, "fp32_value": 30.1, "data_sha256": None}


def _record(run_ms, **changes):
    """A record with the samples' own figures; `changes` replace fields."""
    values = {
        **dict(model="net", sha256="a" * 64, size_bytes=1, scheme="fp32", profile="host_cpu_1t", runner="host"),
        **dict(device=DEVICE, runtime=RUNTIME, delegate_requested="xnnpack", delegate_actual="xnnpack"),
        **dict(nodes_delegated=9, nodes_total=9, precision="file", threads=1, cpu_mask="", session=1),
        **dict(n=run_ms.size, warmup_n=10, accuracy=ACCURACY, median_ms=round(float(np.median(run_ms)), 4)),
        **dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "min_ms", "mad_ms", "early_stopping_p90_ms"), 1.0),
        **dict(ci95_median_ms=[1.0, 1.0], init_ms=1.0, first_ms=1.0, stages={}, peak_memory_mb=None),
        **dict(drift={"slope_pct_per_min": 0.0, "throttled": False}, outliers={"mild": 0, "severe": 0}),
        **dict(environment={"governor": None}, kind="measured", valid=True, warnings=[], samples_file=""),
        **dict(started_utc="2026-01-02T00:00:00+00:00", protocol=PROTOCOL),
    }
    return Record(**{**values, **changes})


def _write(folder, name, rows):
    """Writes results and samples; each row is `(latency, changes)`. Returns the results file."""
    records = []
    for k, (level_ms, changes) in enumerate(rows):
        order = np.random.default_rng(len(name) * 100 + k).permutation(150)
        run_ms = (level_ms * np.exp(0.02 * NORMAL[order])).astype(np.float32)
        file = f"samples/{name}_{k}.npz"
        columns = [np.arange(150), np.ones(150), run_ms, np.ones(150)]
        Samples(*(c.astype(np.float32) for c in columns), np.zeros(150, np.int32)).save(folder / file)
        records.append(_record(run_ms, samples_file=file, **changes))
    save_records(folder / f"{name}.json", records)
    return folder / f"{name}.json"


def _two(folder, slower=1.0, before=(), after=()):
    return _write(folder, "a", [(10.0, dict(before))]), _write(folder, "bb", [(10.0 * slower, dict(after))])


def test_processors_of_one_name_with_other_int8_instructions_are_not_compared(tmp_path):
    """Seen: the same int8 convolution took 26.6 and 6.1 ms on two virtual machines whose processor has one name."""
    devices = [{**DEVICE, "int8_features": names} for names in (["avx512_vnni"], ["avx512_vnni", "amx_int8"])]
    (pair,) = compare_files(*_two(tmp_path, before={"device": devices[0]}, after={"device": devices[1]})).pairs
    assert not pair.comparable
    assert pair.differing == ["device.int8_features"]


def test_equal_runs_show_no_difference_and_slower_and_faster_ones_do(tmp_path):
    for slower, verdict in ((1.0, "no difference seen"), (1.1, "slower"), (0.9, "faster")):
        (pair,) = compare_files(*_two(tmp_path, slower)).pairs
        assert pair.comparison.verdict == verdict
        assert pair.comparison.ratio.value == pytest.approx(slower, rel=0.02)
        assert pair.comparable


def test_the_files_may_differ_since_that_is_what_is_compared(tmp_path):
    document = compare_files(*_two(tmp_path, after={"sha256": "b" * 64})).to_json()["pairs"][0]
    assert document["comparable"]
    assert document["differing"] == []
    assert not document["same_file"]
    assert {"ratio", "ci95", "mde_pct", "verdict"} <= document.keys()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"device": {**DEVICE, "cpu": "another"}}, "device.cpu"),
        ({"device": {**DEVICE, "abi": "arm64"}}, "device.abi"),
        ({"runtime": {**RUNTIME, "version": "2.4.0"}}, "runtime.version"),
        ({"threads": 2}, "threads"),
        ({"cpu_mask": "0x1"}, "cpu_mask"),
        ({"precision": "fp16"}, "precision"),
        ({"kind": "emulated"}, "kind"),
        ({"delegate_actual": "none"}, "delegate_actual"),
        ({"delegate_actual": None}, "delegate_actual"),
        ({"runner": "ssh"}, "runner"),
        ({"protocol": {**PROTOCOL, "version": 1}}, "protocol.version"),
        ({"protocol": {**PROTOCOL, "images_sha256": "2" * 64}}, "protocol.images_sha256"),
        ({"protocol": {**PROTOCOL, "mode": "sustained"}}, "protocol.mode"),
        ({"environment": {"governor": "powersave"}}, "environment.governor"),
    ],
)
def test_what_is_not_comparable_is_refused_by_field_and_can_be_allowed(tmp_path, changes, field):
    files = _two(tmp_path, after=changes)
    (pair,) = compare_files(*files).pairs
    assert (pair.comparable, pair.differing, pair.comparison) == (False, [field], None)
    (allowed,) = compare_files(*files, allow=[field]).pairs
    assert allowed.comparison is not None
    assert f"{field} differs and was allowed" in allowed.notes()


def test_a_whole_group_can_be_allowed_and_an_unknown_field_names_the_nearest(tmp_path):
    files = _two(tmp_path, after={"device": {**DEVICE, "cpu": "another", "os": "Linux 7"}})
    assert compare_files(*files, allow=["device"]).pairs[0].comparable
    with pytest.raises(InputError, match="threads"):
        compare_files(*files, allow=["thread"])


def test_sessions_are_pooled_and_must_be_alike(tmp_path):
    sessions = [(10.0 + 0.1 * s, {"session": s}) for s in (1, 2, 3)]
    a = _write(tmp_path, "a", sessions)
    b = _write(tmp_path, "b", [(level * 1.2, changes) for level, changes in sessions])
    (pair,) = compare_files(a, b).pairs
    assert pair.comparison.sessions == (3, 3)
    assert pair.comparison.between_pct > 0
    mixed = _write(tmp_path, "mixed", [(10.0, {}), (10.0, {"session": 2, "threads": 2})])
    assert compare_files(a, mixed).pairs[0].differing == ["threads"]


def test_schemes_are_compared_with_each_other_only_on_request(tmp_path):
    files = _two(tmp_path, after={"scheme": "w8a8", "sha256": "b" * 64})
    with pytest.raises(InputError, match="no record in common"):
        compare_files(*files)
    (pair,) = compare_files(*files, allow=["scheme"]).pairs
    assert list(pair.key) == ["model", "profile", "delegate_requested", "device.id"]


def test_two_phones_of_one_profile_are_kept_apart(tmp_path):
    phones = [(level, {"device": {**DEVICE, "id": name}}) for name, level in (("p1", 10.0), ("p2", 20.0))]
    compared = compare_files(_write(tmp_path, "a", phones), _write(tmp_path, "bb", phones[::-1]))
    assert [pair.key["device.id"] for pair in compared.pairs] == ["p1", "p2"]
    assert all(pair.comparison.ratio.value == pytest.approx(1.0, rel=0.02) for pair in compared.pairs)


def test_a_name_that_means_two_files_and_a_session_given_twice_are_refused(tmp_path):
    a = _write(tmp_path, "a", [(10.0, {}), (11.0, {"sha256": "b" * 64, "session": 2})])
    twice = _write(tmp_path, "twice", [(10.0, {}), (11.0, {})])
    with pytest.raises(InputError, match="several files"):
        compare_files(a, a)
    with pytest.raises(InputError, match="same session"):
        compare_files(twice, twice)


def test_what_has_no_counterpart_is_named(tmp_path):
    a = _write(tmp_path, "a", [(10.0, {}), (5.0, {"scheme": "w8a8"})])
    b = _write(tmp_path, "bb", [(10.0, {}), (5.0, {"scheme": "fp16"})])
    compared = compare_files(a, b)
    assert compared.only_baseline == ("net w8a8 host_cpu_1t xnnpack",)
    assert compared.only_candidate == ("net fp16 host_cpu_1t xnnpack",)


def test_samples_of_another_record_are_refused(tmp_path):
    a, b = _two(tmp_path, 1.01)
    record = json.loads(b.read_text())[0]
    b.write_text(json.dumps([{**record, "samples_file": "samples/a_0.npz"}]))
    with pytest.raises(ArtifactError, match="does not belong"):
        compare_files(a, b)
    b.write_text(json.dumps([{**record, "device": "phone"}]))
    with pytest.raises(ArtifactError, match="device is not a table"):
        compare_files(a, b)


def test_a_record_without_samples_is_not_comparable_and_says_why(tmp_path):
    files = _two(tmp_path, after={"unknown": {"samples_file": "the tool prints none"}})
    record = json.loads(files[1].read_text())[0]
    files[1].write_text(json.dumps([{**record, "unknown": {"median_ms": "emulated"}, "median_ms": None}]))
    assert compare_files(*files).pairs[0].notes()[0] == "no latency: emulated"
    files[1].write_text(json.dumps([{**record, "samples_file": None, "median_ms": None}]))
    (pair,) = compare_files(*files).pairs
    assert not pair.comparable
    assert pair.notes()[0] == "no raw samples: the tool prints none"
    assert gate_files(files[1], files[0], Rules(5.0)).judgements[0].outcome == "not comparable"


RULES = Rules(max_slowdown_pct=5.0)


@pytest.mark.parametrize(
    ("slower", "outcome"),
    [(1.0, "passed"), (0.8, "passed"), (1.02, "passed"), (1.08, "slower"), (1.04, "passed"), (1.051, "undecided")],
)
def test_the_gate_fails_where_the_whole_interval_is_above_and_cannot_decide_at_the_limit(tmp_path, slower, outcome):
    a, b = _two(tmp_path, slower)
    (judgement,) = gate_files(b, a, RULES).judgements
    assert judgement.outcome == outcome


def test_a_noisy_measurement_is_undecided_although_its_ratio_is_within_the_limit(tmp_path):
    wide = [(level, {"session": s}) for s, level in ((1, 9.0), (2, 11.0))]
    gated = gate_files(_write(tmp_path, "bb", wide), _write(tmp_path, "a", wide), RULES)
    assert gated.judgements[0].outcome == "undecided"
    assert gated.judgements[0].pair.comparison.mde_pct > 5.0
    assert isinstance(gated.failure(), CheckFailed)
    assert dataclasses.replace(gated, rules=Rules(5.0, undecided_passes=True)).failure() is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"valid": False}, "invalid"),
        ({"drift": {"slope_pct_per_min": 9.0, "throttled": True}}, "throttled"),
        ({"kind": "emulated"}, "emulated"),
        ({"kind": "estimated"}, "estimated"),
    ],
)
def test_doubtful_rows_are_never_gated_silently(tmp_path, changes, word):
    a, b = _two(tmp_path, before=changes, after=changes)
    (judgement,) = gate_files(b, a, RULES).judgements
    assert judgement.outcome == "invalid"
    assert f"the baseline is {word}; the candidate is {word}" in judgement.reason
    (taken,) = gate_files(b, a, Rules(5.0, allow=(word,))).judgements
    assert taken.outcome == "passed"
    assert f"candidate: {word}" in taken.to_json()["notes"]


@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [
        (None, "not known"),
        ({**ACCURACY, "value": 29.0}, "0.9635 of fp32"),
        ({**ACCURACY, "fp32_value": None}, "fp32 file"),
        ({**ACCURACY, "fp32_value": 0.0}, "fp32 file"),
        ({**ACCURACY, "value": "high"}, "not a number"),
        ("good", "not known"),
    ],
)
def test_a_latency_without_the_accuracy_of_its_file_does_not_count(tmp_path, accuracy, reason):
    a, b = _two(tmp_path, after={"accuracy": accuracy})
    (judgement,) = gate_files(b, a, RULES).judgements
    assert judgement.outcome == "invalid"
    assert reason in judgement.reason
    assert gate_files(b, a, Rules(5.0, min_accuracy=None)).passed
    assert gate_files(b, a, Rules(5.0, accuracy={"a" * 64: ACCURACY})).passed


def _run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_the_commands_print_one_document_and_raise_what_makes_the_exit_code(tmp_path):
    a, b = _two(tmp_path, 1.2)
    told = _run(compare, a, b, "--json")
    assert told.exception is None
    assert json.loads(told.stdout)["pairs"][0]["verdict"] == "slower"
    failed = _run(gate, b, "--baseline", a, "--max-slowdown", "5%", "--json")
    assert failed.exception.exit_code == 1
    document = json.loads(failed.stdout)
    assert (document["passed"], document["pairs"][0]["outcome"]) == (False, "slower")
    assert _run(gate, b, "--baseline", a, "--max-slowdown", "30%").exception is None


def test_the_gate_reads_accuracy_from_evaluations_of_the_same_file(tmp_path):
    a, b = _two(tmp_path, after={"accuracy": None})
    files = []
    for name, value, sha256 in (("fp32", 50.0, "c" * 64), ("w8a8", 49.9, "a" * 64)):
        files += ["--accuracy", tmp_path / f"{name}.json"]
        files[-1].write_text(json.dumps({"name": name, "pq": value, "file_sha256": sha256}))
    assert _run(gate, b, "--baseline", a, "--max-slowdown", "5%").exception.exit_code == 1
    assert _run(gate, b, "--baseline", a, "--max-slowdown", "5%", *files).exception is None
    assert _run(gate, b, "--baseline", a, "--max-slowdown", "5%", "--no-accuracy").exception is None


def test_what_cannot_be_compared_is_exit_code_1_of_compare_and_2_of_the_gate(tmp_path):
    a, b = _two(tmp_path, after={"threads": 4})
    told = _run(compare, a, b)
    assert told.exception.exit_code == 1
    assert "threads: 1 against 4" in told.stdout
    assert _run(gate, b, "--baseline", a, "--max-slowdown", "5%").exception.exit_code == 2


@pytest.mark.parametrize("text", ["5", "five%", "0.05", "", "5%%", "-3%", "nan%", "0%"])
def test_a_limit_that_could_mean_anything_is_refused(tmp_path, text):
    a, b = _two(tmp_path)
    assert _run(gate, b, "--baseline", a, f"--max-slowdown={text}").exception.exit_code == 2


def test_a_percentage_may_have_a_space_and_a_fraction():
    assert (percent("5%"), percent("2.5 %")) == (5.0, 2.5)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nothing"])
def test_broken_results_are_bad_input(tmp_path, text):
    good, _ = _two(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    for order in ((good, broken), (broken, good), (good, tmp_path / "missing.json")):
        assert _run(compare, *order).exception.exit_code == 2
