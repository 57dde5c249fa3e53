"""Other projects' checkpoints: read as weights only, mapped by names, their licence kept."""

import json
import pickle

import pytest
import torch
from cli_run import Program
from safetensors.torch import save_file

from edge_seg.commands.import_checkpoint import Wanted, import_checkpoint, read_tensors
from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.base import MODELS
from edge_seg.models.foreign import FOREIGN
from edge_seg.training.checkpoint import checkpoint_runner, load_checkpoint

PX = 64


def published_tensors(name: str, **options):
    """A network with random weights, and its tensors as the project would name them (its stem sees BGR)."""
    torch.manual_seed(1)
    network = MODELS[name](num_classes=3, input_px=PX, **options).eval()
    names = FOREIGN[f"adelaidet/{network.family}"].names(network)
    return network, names


@pytest.fixture(scope="module")
def blendmask():
    network, names = published_tensors("blendmask_rt_mnv2")
    own = network.state_dict()
    tensors = {theirs: own[ours].clone() for ours, theirs in names.items()}
    stem = names["body.backbone.conv_stem.weight"]
    tensors[stem] = tensors[stem].flip(1)
    return network, tensors


WANTED = Wanted("adelaidet", "blendmask_rt_mnv2", input_px=PX, num_classes=3)


@pytest.mark.parametrize("form", ["safetensors", "nested pth", "data parallel pth"])
def test_an_imported_network_computes_what_the_original_does(blendmask, form, tmp_path):
    network, tensors = blendmask
    if form == "safetensors":
        file = tmp_path / "theirs.safetensors"
        save_file(tensors, file)
    else:
        file = tmp_path / "theirs.pth"
        prefix = "module." if form == "data parallel pth" else ""
        torch.save({"model": {prefix + k: v for k, v in tensors.items()}, "iteration": 5}, file)
    out = tmp_path / "ours.safetensors"
    document = import_checkpoint(file, WANTED, out)
    assert document["mapped"] == len(tensors)
    assert document["unmapped"] == []
    found = load_checkpoint(out).network
    x = torch.rand(1, 3, PX, PX) * 255
    with torch.inference_mode():
        expected, got = network.body(x), found.body(x)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_the_licence_goes_along(blendmask, tmp_path):
    save_file(blendmask[1], tmp_path / "a.safetensors")
    import_checkpoint(tmp_path / "a.safetensors", WANTED, tmp_path / "b.safetensors")
    contract = checkpoint_runner(tmp_path / "b.safetensors").contract
    assert "non-commercial" in contract.model.licence
    assert contract.preprocess.mean == pytest.approx((123.675, 116.28, 103.53))
    assert contract.preprocess.fill_rgb == (124, 116, 104)
    manifest = json.loads((tmp_path / "b.safetensors.manifest.json").read_text())
    assert "non-commercial" in manifest["config"]["licence"]


def test_the_verb_prints_the_licence_and_names_what_was_left_out(blendmask, tmp_path, monkeypatch, capsys):
    tensors = blendmask[1] | {"pixel_mean": torch.zeros(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    arguments = ["import", tmp_path / "a.safetensors", "--from", "adelaidet", "--model", "blendmask_rt_mnv2"]
    arguments += ["--input", PX, "--num-classes", 3, "--out", tmp_path / "b.safetensors"]
    done = Program(monkeypatch, capsys)(*arguments)
    assert done.code == 0
    assert "non-commercial" in done.out
    assert "left out: pixel_mean (1)" in done.out


def test_classes_can_be_named(blendmask, tmp_path):
    categories = [{"id": n, "name": name} for n, name in ((4, "cat"), (7, "dog"), (9, "owl"))]
    images = [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    save_file(blendmask[1], tmp_path / "a.safetensors")
    wanted = Wanted("adelaidet", "blendmask_rt_mnv2", input_px=PX, classes=tmp_path / "c.json")
    import_checkpoint(tmp_path / "a.safetensors", wanted, tmp_path / "b.safetensors")
    names = [(c.id, c.name) for c in load_checkpoint(tmp_path / "b.safetensors").classes]
    assert names == [(4, "cat"), (7, "dog"), (9, "owl")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("top_layer.weight"), "missing"),
        (lambda t: t.update(surplus=torch.zeros(1)), "without a place"),
        (lambda t: t.update({"top_layer.bias": torch.zeros(5)}), "another shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(blendmask, change, message, tmp_path):
    tensors = dict(blendmask[1])
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match=message):
        import_checkpoint(tmp_path / "a.safetensors", WANTED, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


class Evil:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('ran')",))


def test_a_pickle_with_code_is_never_run(tmp_path):
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ArtifactError, match="weights only"):
        read_tensors(file)
    torch.save({"model": Evil()}, file)
    with pytest.raises(ArtifactError, match="weights only"):
        read_tensors(file)


def test_other_bad_input_is_refused(blendmask, tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        read_tensors(tmp_path / "nothing.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(ArtifactError, match="table of tensors"):
        read_tensors(tmp_path / "numbers.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(ArtifactError, match="not a safetensors"):
        read_tensors(tmp_path / "broken.safetensors")
    save_file(blendmask[1], tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="kind of checkpoint"):
        import_checkpoint(tmp_path / "a.safetensors", Wanted("mmdet", "blendmask_rt_mnv2"), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="published"):
        import_checkpoint(
            tmp_path / "a.safetensors", Wanted("adelaidet", "blendmask_mobile_256"), tmp_path / "b.safetensors"
        )
    with pytest.raises(InputError, match="safetensors file"):
        import_checkpoint(tmp_path / "a.safetensors", WANTED, tmp_path / "b.pth")


def test_solov2_has_maps_of_both_projects():
    assert {"adelaidet/blendmask", "adelaidet/solov2", "solo/solov2"} <= set(FOREIGN)
    network, names = published_tensors("solov2_light_mnv2", p6="max_pool")
    assert set(names) <= {f"body.{k}" for k in network.body.state_dict()} | set(network.body.state_dict())
