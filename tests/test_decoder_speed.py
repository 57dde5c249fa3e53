"""The decoder's speed run: made outputs look as described, both decoders agree, and the fast one is faster."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks.harness import Plan
from edge_seg.decoders.maskconver import MaskConverDecoder
from edge_seg.decoders.square_merge import merge
from edge_seg.errors import InputError
from edge_seg.studies.decoder_speed import PROPOSALS, SIDES_PX, made_case, main, measured_case
from edge_seg.studies.results.page import results_markdown

SHORT = Plan(min_runs=3, min_time_s=0.0, max_time_s=0.3, target_ci_pct=5.0, block_runs=1, max_warmup_runs=3)


@pytest.mark.parametrize("proposals", [0, 20, 100])
def test_made_outputs_have_the_centres_asked_for_and_masks_that_are_soft_at_borders(proposals):
    case = made_case(256, proposals, pictures=1)
    decoder = MaskConverDecoder(case.contract, case.constants)
    found = decoder.propose(case.raws[0])
    assert len(found.cell) == len(set(found.cell.tolist())) == proposals
    if proposals:
        probability = 1 / (1 + np.exp(-decoder.mask_logits(case.raws[0], found)))
        soft = (probability > 0.05) & (probability < 0.95)
        assert 0.005 < soft.mean() < 0.2
        assert (probability.reshape(proposals, -1).max(axis=1) > 0.5).mean() > 0.8


def test_made_outputs_are_the_same_every_time():
    first, second = (made_case(256, 20, pictures=1).raws[0] for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("input_px", SIDES_PX)
def test_the_decoder_takes_less_than_half_of_the_straightforward_time_and_gives_the_same(input_px):
    row = measured_case(made_case(input_px, 50, pictures=1), SHORT)
    assert row["segments_mean"] > 20
    assert row["differing_px"] <= 1
    assert row["fast"]["min_ms"] < 0.5 * row["straightforward"]["min_ms"]


def wrong_merge(logits_khw, weight, grid, rules):
    return merge(-logits_khw, weight, grid, rules)


def test_decoders_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr("edge_seg.decoders.maskconver.merge", wrong_merge)
    with pytest.raises(InputError, match="differ"):
        measured_case(made_case(256, 5, pictures=1), SHORT)


def test_a_short_run_writes_the_document_and_the_results_table_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.decoder_speed.SIDES_PX", (256,))
    monkeypatch.setattr("edge_seg.studies.decoder_speed._PICTURES", 1)
    file = tmp_path / "speed" / "decoder.json"
    file.parent.mkdir()
    result = CliRunner().invoke(main, ["--json", str(file), "--max-time", "0.1"])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["input_px"], row["proposals"]) for row in rows] == [(256, count) for count in PROPOSALS]
    for row in rows:
        assert row["fast"]["ci95_median_ms"][0] <= row["fast"]["median_ms"] <= row["fast"]["ci95_median_ms"][1]
    table = results_markdown(tmp_path)
    assert "straightforward" in table
    assert all(f"| 256 | {count} |" in table for count in PROPOSALS)


def test_a_network_without_data_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["--model", str(tmp_path / "x.tflite")])
    assert result.exit_code == 2
    assert "--data" in result.output
