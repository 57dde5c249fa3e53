"""The exported folder: what the archive computes, what the contract says, and what an interruption leaves."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edge_seg import export as export_module
from edge_seg.artifact import read_manifest, sha256_of, write_bytes
from edge_seg.contract import Contract
from edge_seg.data.source import open_dataset
from edge_seg.errors import ArtifactError, InputError
from edge_seg.evaluation.predictor import Predictor
from edge_seg.export import export
from edge_seg.training.checkpoint import checkpoint_runner, load_checkpoint, save_checkpoint

FILES = {"model.pt2", "contract.json", "decoder.safetensors", "reference.npz"}


@pytest.fixture(scope="module")
def contract(tiny_exported):
    return Contract.load(tiny_exported / "contract.json")


@pytest.fixture(scope="module")
def program(tiny_exported):
    return torch.export.load(tiny_exported / "model.pt2")


@pytest.fixture(scope="module")
def reference(tiny_exported):
    return dict(np.load(tiny_exported / "reference.npz"))


def test_the_folder_holds_four_files_each_with_its_manifest_and_nothing_else(tiny_exported, tiny_checkpoint):
    found = {p.name for p in tiny_exported.iterdir()}
    assert found == FILES | {f"{n}.manifest.json" for n in FILES}
    for name in FILES:
        manifest = read_manifest(tiny_exported / name)
        assert manifest.step == "export"
        assert manifest.parents == [{"path_name": tiny_checkpoint.name, "sha256": sha256_of(tiny_checkpoint)}]


def test_the_archive_computes_the_reference_in_the_order_of_the_contract(program, reference, contract):
    run = program.module()
    assert reference["inputs_nhwc_u8"].dtype == np.uint8
    for n, picture in enumerate(reference["inputs_nhwc_u8"]):
        outputs = run(torch.from_numpy(picture[None]).float())
        assert isinstance(outputs, tuple)
        for spec, got in zip(contract.outputs, outputs, strict=True):
            truth = reference[spec.name][n]
            assert got.shape == spec.shape == (1, *truth.shape)
            assert got.dtype == torch.float32
            assert np.abs(got[0].detach().numpy() - truth).max() <= 1e-5 * np.abs(truth).max(), spec.name


def test_the_distance_of_float32_from_float64_is_kept_per_output(reference, contract, tiny_checkpoint):
    body = load_checkpoint(tiny_checkpoint).network.body
    image = torch.from_numpy(reference["inputs_nhwc_u8"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        truth = body.double()(image.double())["heatmap"].permute(0, 2, 3, 1).numpy()
    place = [o.name for o in contract.outputs].index("heatmap")
    found = reference["float32_error_of_range"]
    assert found.shape == (len(contract.outputs),)
    wanted = np.abs(reference["heatmap"] - truth).max() / np.ptp(truth)
    assert found[place] == pytest.approx(wanted, rel=1e-2)  # split 7x7 kernels are stored in float32
    assert 1e-9 < found[place] < 1e-4


def test_the_reference_is_computed_by_the_network_of_the_checkpoint(reference, contract, tiny_checkpoint):
    """Independent of the export: the body before its foldings, and each head's last 1x1 redone with its constants."""
    network = load_checkpoint(tiny_checkpoint).network
    constants = checkpoint_runner(tiny_checkpoint, fold=True).constants
    image = torch.from_numpy(reference["inputs_nhwc_u8"]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        raw = {k: v.permute(0, 2, 3, 1).numpy() for k, v in network.body(image).items()}
    for name, folded in (("heatmap", None), ("embedding", "embedding_predict"), ("mask_features", "mask_predict")):
        got = reference[name]
        if folded:
            got = got @ constants[f"{folded}.weight"].T + constants[f"{folded}.bias"]
        assert np.abs(got - raw[name]).max() <= 2e-5 * np.abs(raw[name]).max(), name


def test_the_archive_takes_bytes_as_they_are_and_keeps_module_names(program):
    (shape,) = [
        tuple(n.meta["val"].shape) for n in program.graph.nodes if n.name in program.graph_signature.user_inputs
    ]
    assert shape == (1, 64, 64, 3)
    assert any(k.startswith("body.backbone.blocks.") for k in program.state_dict)
    stacks = str([n.meta.get("nn_module_stack") for n in program.graph.nodes])
    assert "body.mask_head.convs.0.dw" in stacks


def test_the_contract_is_complete_and_survives_a_round_trip(contract, tiny_checkpoint, tiny_exported):
    classes = open_dataset("synthetic:easy", split="val").classes
    assert contract.classes == classes
    assert contract.to_json() == json.loads((tiny_exported / "contract.json").read_text())
    assert contract.input.shape == (1, 64, 64, 3)
    assert (contract.input.dtype, contract.input.range, contract.input.color) == ("float32", (0.0, 255.0), "RGB")
    assert contract.preprocess.mean == contract.preprocess.std == (128.0,) * 3
    assert contract.preprocess.fit == "letterbox"
    assert contract.model.parents["checkpoint_sha256"] == sha256_of(tiny_checkpoint)
    assert [o.role for o in contract.outputs] == ["heatmap", "embedding", "mask_features"]
    assert {o.stride_px for o in contract.outputs} == {8}
    assert contract.output("heatmap").shape == (1, 8, 8, len(classes))
    assert (contract.model.name, contract.model.family, contract.model.task) == (
        "maskconver_mnv2_256",
        "maskconver",
        "panoptic",
    )


def test_the_constants_lie_beside_and_are_those_of_the_checkpoint(contract, tiny_exported, tiny_checkpoint):
    stored = load_file(tiny_exported / "decoder.safetensors")
    assert {c.name: c.shape for c in contract.decoder.constants} == {k: v.shape for k, v in stored.items()}
    state = load_checkpoint(tiny_checkpoint).network.state_dict()
    for name, value in stored.items():
        key = {"embedding_predict": "body.embedding_head.predict", "mask_predict": "body.mask_head.predict"}
        head, _, leaf = name.partition(".")
        source = state[f"{key[head]}.{leaf}" if head in key else f"mask_embedding.{name}"]
        assert np.array_equal(value, source.numpy().reshape(value.shape)), name


def test_the_number_of_parameters_is_that_of_the_checkpoint_file(contract, tiny_checkpoint):
    state = load_checkpoint(tiny_checkpoint).network.state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert contract.model.params == sum(v.numel() for k, v in state.items() if not k.endswith(statistics))


@pytest.mark.parametrize("fold", [False, True])
def test_the_torch_runner_gives_what_its_contract_promises(tiny_checkpoint, reference, fold):
    runner = checkpoint_runner(tiny_checkpoint, fold=fold)
    raw = runner(reference["inputs_nhwc_u8"][0])
    assert {k: v.shape for k, v in raw.items()} == {o.name: o.shape for o in runner.contract.outputs}
    assert all(v.dtype == np.float32 and v.flags.c_contiguous for v in raw.values())
    if fold:
        for name, value in raw.items():
            assert np.abs(value[0] - reference[name][0]).max() <= 1e-5 * np.abs(value).max()


def test_both_forms_decode_alike(tiny_checkpoint):
    """The untrained network keeps everything, so that there is something to compare."""
    keep_all = {"score_threshold": 0.0, "min_area_share": 0.0, "overlap_threshold": 0.0}
    image = open_dataset("synthetic:easy", split="val")[0].image_hwc_u8
    plain = Predictor(checkpoint_runner(tiny_checkpoint, fold=False), **keep_all).predict(image).result
    folded = Predictor(checkpoint_runner(tiny_checkpoint, fold=True), **keep_all).predict(image).result
    assert len(plain.segments) > 3
    assert (plain.id_map_hw_i32 != folded.id_map_hw_i32).mean() < 1e-3
    assert [s.class_index for s in plain.segments] == [s.class_index for s in folded.segments]


@pytest.fixture
def quick_program(monkeypatch):
    """Tracing takes seconds; tests about the other files write a stand-in."""
    monkeypatch.setattr(export_module, "_save_program", lambda _wrapped, _contract, path: write_bytes(path, b"program"))


@pytest.mark.usefixtures("quick_program")
def test_an_export_without_foldings_needs_no_extra_constants(tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path, fold=False)
    contract = Contract.load(tmp_path / "contract.json")
    assert not [c.name for c in contract.decoder.constants if "predict" in c.name]
    assert [o.activation for o in contract.outputs] == ["logit", "none", "none"]


@pytest.mark.usefixtures("quick_program")
def test_the_manifest_says_whether_7x7_convolutions_were_split_and_both_compute_the_same(
    tiny_checkpoint, tiny_exported, tmp_path
):
    export(tiny_checkpoint, tmp_path, split_7x7=False)
    assert read_manifest(tmp_path / "model.pt2").config["split_7x7"] is False
    assert read_manifest(tiny_exported / "model.pt2").config["split_7x7"] is True
    whole, split = dict(np.load(tmp_path / "reference.npz")), dict(np.load(tiny_exported / "reference.npz"))
    for name in ("heatmap", "embedding", "mask_features"):
        assert np.abs(whole[name] - split[name]).max() <= 1e-5 * np.ptp(whole[name])
        assert not np.array_equal(whole[name], split[name])  # another order of additions: it is another graph
    assert (tmp_path / "contract.json").read_bytes() == (tiny_exported / "contract.json").read_bytes()


@pytest.mark.usefixtures("quick_program")
@pytest.mark.parametrize(("flags", "split"), [((), True), (("--no-split-7x7",), False)])
def test_the_command_line_passes_the_split_on(tiny_checkpoint, tmp_path, monkeypatch, edge_seg, flags, split):
    monkeypatch.setattr("edge_seg.converters.convert.convert_many", lambda *_a, **_k: [])
    assert edge_seg("export", tiny_checkpoint, "--out", tmp_path / "e", *flags).code == 0
    assert edge_seg("convert", tiny_checkpoint, "--out", tmp_path / "c", *flags).code == 0
    for folder in (tmp_path / "e", tmp_path / "c" / "exported"):
        assert read_manifest(folder / "model.pt2").config["split_7x7"] is split


@pytest.mark.usefixtures("quick_program")
def test_a_network_without_a_checkpoint_is_exported_alike(tiny_checkpoint, tiny_exported, tmp_path):
    checkpoint = load_checkpoint(tiny_checkpoint)
    decoder = checkpoint.settings.decoder
    assert export_module.export_network(checkpoint.network, checkpoint.classes, decoder, tmp_path) == tmp_path
    same, other = (Contract.load(f / "contract.json").to_json() for f in (tmp_path, tiny_exported))
    assert same["model"].pop("parents") != other["model"].pop("parents")
    assert same == other
    assert (tmp_path / "decoder.safetensors").read_bytes() == (tiny_exported / "decoder.safetensors").read_bytes()
    manifest = read_manifest(tmp_path / "model.pt2")
    assert (manifest.parents, manifest.config) == ([], {"fold": True, "split_7x7": True})


def test_a_folder_that_was_exported_cannot_be_joined_again(tiny_exported, tmp_path, edge_seg):
    done = edge_seg("convert", tiny_exported, "--out", tmp_path, "--no-split-7x7")
    assert done.code == 2
    assert "export again" in done.err


def test_an_export_is_repeatable_and_leaves_the_logger_of_torch_alone(tiny_checkpoint, tiny_exported, tmp_path):
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        export(tiny_checkpoint, tmp_path)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(level)
    for name in ("contract.json", "decoder.safetensors", "reference.npz"):
        a, b = (tmp_path / name), (tiny_exported / name)
        if name == "reference.npz":  # a zip archive holds the time of day
            one, two = dict(np.load(a)), dict(np.load(b))
            assert one.keys() == two.keys()
            assert all(np.array_equal(one[k], two[k]) for k in one)
        else:
            assert a.read_bytes() == b.read_bytes()


@pytest.mark.usefixtures("quick_program")
@pytest.mark.parametrize("at", ["_save_program", "_save_reference", "write_manifest"])
def test_an_interrupted_export_leaves_nothing_that_passes_for_whole(tiny_checkpoint, tmp_path, monkeypatch, at):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, tmp_path)
    assert not list(tmp_path.glob("*.manifest.json"))
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.iterdir():
        with pytest.raises(ArtifactError, match="no manifest"):
            read_manifest(path)


def test_a_disk_that_is_full_half_way_leaves_no_archive(tiny_checkpoint, tmp_path, monkeypatch):
    def full(_program, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(InputError, match="Cannot write"):
        export(tiny_checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_program")
def test_an_interrupted_second_export_is_seen_by_the_manifests(tiny_exported, tmp_path, monkeypatch, tiny_checkpoint):
    """Another network into the same folder: new files with old manifests are refused."""
    folder = tmp_path / "exported"
    shutil.copytree(tiny_exported, folder)
    checkpoint = load_checkpoint(tiny_checkpoint)
    state = {k: v + 1 if k == "mask_embedding.fc1.bias" else v for k, v in checkpoint.network.state_dict().items()}
    other = tmp_path / "model.safetensors"
    save_checkpoint(other, state, settings=checkpoint.settings, classes=checkpoint.classes, step=1)
    monkeypatch.setattr(export_module, "_save_reference", lambda *_a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(other, folder)
    with pytest.raises(ArtifactError, match="not the file its manifest describes"):
        read_manifest(folder / "decoder.safetensors")


# ---- checkpoints -------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit_with_its_experiment(tiny_checkpoint, tmp_path):
    first = load_checkpoint(tiny_checkpoint)
    state = {k: torch.randn_like(v) if v.is_floating_point() else v + 5 for k, v in first.network.state_dict().items()}
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, state, settings=first.settings, classes=first.classes, step=41)
    second = load_checkpoint(path)
    assert (second.settings, second.classes, second.step) == (first.settings, first.classes, 41)
    assert not second.network.training
    loaded = second.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def rewritten(tiny_checkpoint, path, *, tensors=lambda t: t, header=lambda h: h):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(tiny_checkpoint, framework="pt") as file:
        metadata, values = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    save_file(tensors(values), path, metadata=header(metadata))
    return path


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "mask_embedding.fc1.bias"}, "mask_embedding.fc1.bias"),
        (lambda t: {**t, "body.extra": torch.ones(1)}, "body.extra"),
        (lambda t: {**t, "mask_embedding.fc1.bias": torch.ones(3)}, "mask_embedding.fc1.bias"),
    ],
    ids=["missing", "surplus", "other shape"],
)
def test_weights_that_do_not_fit_are_named(tiny_checkpoint, tmp_path, tensors, said):
    path = rewritten(tiny_checkpoint, tmp_path / "m.safetensors", tensors=tensors)
    with pytest.raises(ArtifactError, match=said):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        lambda h: {"format": "pt"},
        lambda h: {k: v for k, v in h.items() if k != "classes"},
        lambda h: {**h, "settings": "{"},
        lambda h: {**h, "settings": "[]"},
        lambda h: {**h, "step": "many"},
        lambda h: {**h, "classes": "[3]"},
        lambda h: {**h, "classes": json.dumps(json.loads(h["classes"])[:2])},
        lambda h: {**h, "settings": h["settings"].replace("maskconver_mnv2_256", "maskconver_mnv2_999")},
        lambda h: {**h, "settings": h["settings"].replace('"seed"', '"sead"')},
    ],
)
def test_a_checkpoint_with_another_header_is_refused(tiny_checkpoint, tmp_path, header):
    path = rewritten(tiny_checkpoint, tmp_path / "m.safetensors", header=header)
    with pytest.raises(InputError):
        load_checkpoint(path)


def test_pickles_truncated_and_missing_checkpoints_are_refused(tiny_checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="pickle"):
        export(path, tmp_path / "out")
    path.write_bytes(tiny_checkpoint.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="not a safetensors"):
        export(path, tmp_path / "out")
    with pytest.raises(InputError, match="no checkpoint"):
        export(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
