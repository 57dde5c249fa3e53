"""The instance decoders' speed run: made outputs look as described, and the decoders are not slower than a bound."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks.harness import Plan
from edge_seg.studies.instance_decoder_speed import FAMILIES, Ellipses, made_case, main, measured, peak_bytes

SHORT = Plan(min_runs=3, min_time_s=0.0, max_time_s=0.3, target_ci_pct=5.0, block_runs=1, max_warmup_runs=3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("instances", [0, 1, 20])
def test_the_drawn_objects_are_found_where_they_are(family, instances):
    case = made_case(family, instances, pictures=1)
    found = case.decoder()(case.raws[0], case.box).instances
    objects = Ellipses.random(instances, 0)
    assert instances <= len(found) <= 1.3 * instances  # some doubles are left
    for centre, radius, class_index in zip(
        objects.centre_xy_px, objects.radius_xy_px, objects.class_index, strict=True
    ):
        truth = [*(centre - radius), *(centre + radius)]
        off_px = [np.abs(np.subtract(i.box_xyxy_px, truth)).max() for i in found if i.class_index == class_index]
        assert min(off_px) < 4


@pytest.mark.parametrize("family", FAMILIES)
def test_made_outputs_are_the_same_every_time(family):
    first, second = (made_case(family, 3, pictures=1).raws[0] for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_objects_take_a_few_megabytes(family):
    case = made_case(family, 100, pictures=1)
    assert 95 <= len(case.decoder()(case.raws[0], case.box).instances) <= 100
    assert peak_bytes(case) < 6e6


@pytest.mark.slow
def test_time_grows_with_the_objects_and_stays_far_from_a_loop_over_pixels():
    """A generous bound, because the machine may be busy; the measured values are in the results."""
    few, many = measured(1, SHORT), measured(100, SHORT)
    for one, hundred in zip(few, many, strict=True):
        assert one["min_ms"] < hundred["min_ms"] < 100


def test_a_short_run_writes_the_document(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.instance_decoder_speed.INSTANCES", (0, 2))
    file = tmp_path / "instances.json"
    result = CliRunner().invoke(main, ["--json", str(file), "--max-time", "0.1"])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["family"], row["instances"]) for row in rows] == [(f, n) for n in (0, 2) for f in FAMILIES]
    for row in rows:
        assert row["min_ms"] <= row["median_ms"]
        assert row["peak_bytes"] > 0
        assert row["found_mean"] >= row["instances"]
    assert "solov2" in result.output
