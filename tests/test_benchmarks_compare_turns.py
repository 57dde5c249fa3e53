"""Two files of one results file: chosen by their fields, and compared turn by turn where they took turns."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_benchmarks_compare import PROTOCOL, _record

from edge_seg.benchmarks.compare import compare_files
from edge_seg.benchmarks.harness import Plan
from edge_seg.benchmarks.result import Samples, load_records, save_records
from edge_seg.commands.compare import compare

BLOCKS = 24
IN_TURNS = {**PROTOCOL, **Plan(64, 1.0, 20.0, 2.0).rule()}
FP32, W8A8 = {"scheme": "fp32", "sha256": "a" * 64}, {"scheme": "w8a8", "sha256": "b" * 64}


def _run_ms(level_ms, session, *, seed, blocks):
    """Latencies of a file on a machine whose speed changes by a third and more from block to block."""
    machine = np.exp(0.3 * np.random.default_rng(session).normal(size=BLOCKS))[:blocks]
    noise = 0.01 * np.random.default_rng(seed).normal(size=8 * blocks)
    return (level_ms * np.repeat(machine, 8) * np.exp(noise)).astype(np.float32)


def _write(folder, rows, name="r"):
    """Writes results and samples; each row is `(latency, blocks, changes)`. Returns the results file."""
    records = []
    for k, (level_ms, blocks, changes) in enumerate(rows):
        run_ms = _run_ms(level_ms, changes.get("session", 1), seed=100 + k, blocks=blocks)
        columns = [np.arange(run_ms.size), np.ones(run_ms.size), run_ms, np.ones(run_ms.size)]
        pictures = np.zeros(run_ms.size, np.int32)
        Samples(*(c.astype(np.float32) for c in columns), pictures).save(folder / f"samples/{name}_{k}.npz")
        records.append(_record(run_ms, samples_file=f"samples/{name}_{k}.npz", **{"protocol": IN_TURNS, **changes}))
    save_records(folder / f"{name}.json", records)
    return folder / f"{name}.json"


def _schemes(results, **more):
    return compare_files(results, results, of={"scheme": "w8a8"}, against={"scheme": "fp32"}, **more)


def _both(folder, *, changes=None, blocks=BLOCKS):
    return _write(folder, [(10.0, BLOCKS, FP32), (4.0, blocks, {**W8A8, **(changes or {})})])


def test_files_of_one_session_are_compared_turn_by_turn(tmp_path):
    results = _both(tmp_path, blocks=20)
    (pair,) = _schemes(results).pairs
    told = pair.to_json()
    assert (told["paired"], told["blocks"]) == (True, [20])
    assert told["ratio"] == pytest.approx(0.4, rel=0.01)
    assert told["verdict"] == "faster"
    assert pair.comparison.ratio.width_pct < 2.0
    assert pair.name == "net host_cpu_1t xnnpack scheme=w8a8 against scheme=fp32"
    assert told["candidate"]["chosen"] == {"scheme": "w8a8"}
    assert "they took turns: the ratio is of 20 common blocks; 4 without a counterpart are left out" in pair.notes()


@pytest.mark.parametrize(
    "changes",
    [
        {"started_utc": "2026-01-02T00:09:00+00:00"},
        {"protocol": {**IN_TURNS, "order": "one after the other"}},
        {"protocol": {**IN_TURNS, "block_runs": 4}},
        {"protocol": PROTOCOL},
        {"session": 2},
    ],
)
def test_files_that_did_not_take_turns_are_compared_by_their_medians(tmp_path, changes):
    (pair,) = _schemes(_both(tmp_path, changes=changes), allow=["protocol"]).pairs
    told = pair.to_json()
    assert (told["paired"], told["blocks"]) == (False, None)
    assert pair.comparison.ratio.width_pct > 10.0


def test_two_results_files_never_took_turns_although_their_records_say_the_same(tmp_path):
    a, b = (_write(tmp_path, [(10.0, BLOCKS, FP32)], name) for name in ("a", "b"))
    assert not compare_files(a, b).pairs[0].to_json()["paired"]


def test_too_few_common_turns_are_compared_as_if_apart_and_it_says_so(tmp_path):
    (pair,) = _schemes(_both(tmp_path, blocks=7)).pairs
    assert not pair.to_json()["paired"]
    assert any("7 common blocks of the 8" in note for note in pair.notes())


def test_sessions_are_paired_each_with_its_own_whatever_their_order(tmp_path):
    starts = {1: "2026-01-02T00:00:00+00:00", 2: "2026-01-02T01:00:00+00:00", 10: "2026-01-02T02:00:00+00:00"}
    of = {s: {"session": s, "started_utc": start} for s, start in starts.items()}
    rows = [(10.0, BLOCKS, {**FP32, **of[s]}) for s in (1, 2, 10)]
    rows += [(4.0 * faster, BLOCKS, {**W8A8, **of[s]}) for s, faster in ((10, 1.0), (1, 1.01), (2, 0.99))]
    (pair,) = _schemes(_write(tmp_path, rows)).pairs
    assert pair.comparison.sessions == (3, 3)
    assert pair.comparison.ratio.value == pytest.approx(0.4, rel=0.005)
    assert 0.5 < pair.comparison.between_pct < 1.5
    assert pair.comparison.ratio.width_pct < 10.0


def test_fields_that_are_not_chosen_by_are_still_matched(tmp_path):
    rows = [(level, BLOCKS, {**scheme, "model": model}) for model, by in (("m", 1), ("n", 2)) for level, scheme in (
        (10.0 * by, FP32), (4.0 * by, W8A8))]  # fmt: skip
    results = _write(tmp_path, rows)
    assert [pair.key["model"] for pair in _schemes(results).pairs] == ["m", "n"]
    networks = compare_files(results, results, of={"model": "n"}, against={"model": "m"}).pairs
    assert [pair.key["scheme"] for pair in networks] == ["fp32", "w8a8"]
    assert all(pair.comparison.ratio.value == pytest.approx(2.0, rel=0.01) for pair in networks)
    both = {"model": "n", "scheme": "w8a8"}
    (one,) = compare_files(results, results, of=both, against={"model": "m", "scheme": "fp32"}).pairs
    assert one.comparison.ratio.value == pytest.approx(0.8, rel=0.01)


def test_two_files_of_one_name_are_told_apart_by_the_beginning_of_their_hashes(tmp_path):
    results = _write(tmp_path, [(10.0, BLOCKS, {"sha256": c * 64}) for c in "ab"])
    (pair,) = compare_files(results, results, of={"sha256": "bbb"}, against={"sha256": "aaa"}).pairs
    assert pair.comparison.verdict == "no difference seen"


def _run(*arguments):
    return CliRunner().invoke(compare, [str(a) for a in arguments])


def test_the_verb_compares_within_one_file(tmp_path):
    results = _both(tmp_path)
    told = _run(results, "--of", "scheme=w8a8", "--against", "scheme=fp32", "--json")
    assert told.exception is None
    (pair,) = json.loads(told.stdout)["pairs"]
    assert pair["paired"]
    text = _run(results, "--of", "scheme=w8a8", "--against", "scheme=fp32").stdout
    assert "scheme=w8a8 against scheme=fp32: faster, 0." in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "nothing to tell"),
        (["--of", "scheme=w8a8"], "nothing to tell"),
        (["--of", "scheme", "--against", "scheme=fp32"], "FIELD=VALUE"),
        (["--of", "scheme=w8a8", "--of", "scheme=fp32", "--against", "scheme=fp32"], "each field once"),
        (["--of", "schema=w8a8", "--against", "scheme=fp32"], "scheme"),
        (["--of", "scheme=fp16", "--against", "scheme=fp32"], "net w8a8"),
        (["--of", "scheme=fp32", "--against", "scheme=fp32"], "with itself"),
        (["--of", "sha256=", "--against", "scheme=fp32"], "FIELD=VALUE"),
    ],
)
def test_a_choice_that_is_not_clear_is_bad_input(tmp_path, arguments, word):
    failed = _run(_both(tmp_path), *arguments).exception
    assert failed.exit_code == 2
    assert word in str(failed)


def test_records_from_before_the_order_was_written_down_are_still_read(tmp_path):
    results = _both(tmp_path)
    old = [dataclasses.replace(record, protocol={}) for record in load_records(results)]
    save_records(results, old)
    assert not _schemes(results).pairs[0].to_json()["paired"]
