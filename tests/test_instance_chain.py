"""Instance networks through the program as users run it: train, resume, evaluate, predict, golden, export."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from edge_seg.artifact import sha256_of
from edge_seg.data.source import open_dataset

RECIPE = """
seed = 3
[data]
train = "synthetic:easy"
cache_mb = 0
[model]
name = "{name}"
input_px = 64
[optim]
steps = 4
batch_size = 2
batchnorm_images = 2
[run]
eval_limit = 2
save_every = {save_every}
threads = 1
[decoder]
score_threshold = 0.005
"""
NETWORKS = ("blendmask_mobile_256", "solov2_mobile_256")


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, tmp_path_factory):
    """A network after four steps, trained in one go."""
    from edge_seg.training.loop import train
    from edge_seg.training.settings import load_settings

    folder = tmp_path_factory.mktemp(request.param)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(name=request.param, save_every=0))
    done = train(load_settings(recipe), folder / "run")
    return recipe, done


def test_a_resumed_training_ends_with_the_same_file(trained, tmp_path, monkeypatch):
    from edge_seg.training.loop import Trainer
    from edge_seg.training.settings import load_settings

    recipe, done = trained
    step = Trainer._step

    def stop_after_two(self, items):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            Trainer(load_settings(recipe), tmp_path / "run").run()
    Trainer(load_settings(recipe), tmp_path / "run", resume=True).run()
    assert sha256_of(tmp_path / "run" / "model.safetensors") == sha256_of(done.checkpoint)


def test_the_metrics_are_those_of_instances(trained):
    _, done = trained
    assert done.metrics["metric"] == "ap"
    assert {"ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "boundary_ap", "ap_ci95"} <= set(done.metrics)
    things = [c.name for c in open_dataset("synthetic:easy", split="val").classes if c.isthing]
    assert [row["name"] for row in done.metrics["per_class"]] == things


def test_evaluate_tells_ap_or_pq(trained, edge_seg):
    _, done = trained
    ap = edge_seg("evaluate", done.checkpoint, "--data", "synthetic:easy", "--limit", 2, "--controls", "--json")
    assert ap.code == 0
    document = ap.json()
    assert (document["metric"], document["images"]) == ("ap", 2)
    assert set(document["controls"]) == {"shift by 8 px", next(k for k in document["controls"] if "swap" in k)}
    pq = edge_seg("evaluate", done.checkpoint, "--data", "synthetic:easy", "--limit", 2, "--metric", "pq", "--json")
    assert pq.json()["metric"] == "pq"
    assert pq.json()["pq_st"] is None
    assert edge_seg("evaluate", done.checkpoint, "--data", "synthetic:easy", "--limit", 2).out.startswith("AP ")


def test_predictions_and_golden_files_hold_every_object(trained, edge_seg, tmp_path):
    _, done = trained
    sample = open_dataset("synthetic:easy", split="val")[0]
    Image.fromarray(sample.image_hwc_u8).save(tmp_path / "a.png")
    told = edge_seg("predict", done.checkpoint, tmp_path / "a.png", "--out", tmp_path / "p", "--json")
    assert told.code == 0
    document = json.loads((tmp_path / "p" / "a.segments.json").read_text())
    assert document["instances"], "a threshold of 0.005 lets something through"
    scores = [i["score"] for i in document["instances"]]
    assert scores == sorted(scores, reverse=True)
    for instance in document["instances"]:
        rle = instance["segmentation"]
        assert rle["size"] == list(sample.image_hwc_u8.shape[:2])
        assert instance["area_px"] == int(coco_mask.area({**rle, "counts": rle["counts"].encode()}))
    assert (tmp_path / "p" / "a.overlay.png").is_file()
    golden = edge_seg("golden", done.checkpoint, tmp_path / "a.png", "--out", tmp_path / "g")
    assert golden.code == 0
    picture = json.loads((tmp_path / "g" / "index.json").read_text())["pictures"][0]
    assert [round(i["score"], 4) for i in picture["instances"]] == scores
    ids = np.fromfile(tmp_path / "g" / "a.id_map.bin", "<i4")
    assert set(np.unique(ids)) - {0} == {s["id"] for s in picture["segments"]}


def test_the_exported_folder_describes_every_output(trained, edge_seg, tmp_path):
    _, done = trained
    assert edge_seg("export", done.checkpoint, "--out", tmp_path / "e").code == 0
    contract = json.loads((tmp_path / "e" / "contract.json").read_text())
    assert contract["model"]["task"] == "instance"
    assert all(c["isthing"] for c in contract["classes"])
    with np.load(tmp_path / "e" / "reference.npz") as reference:
        shapes = {k.removeprefix("output_"): reference[k].shape for k in reference.files}
    for output in contract["outputs"]:
        assert shapes[output["name"]][1:] == tuple(output["shape"][1:]), output["name"]
