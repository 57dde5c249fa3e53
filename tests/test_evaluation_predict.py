"""Predictor, overlays, id pictures, prediction files and golden files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from edge_seg.artifact import sha256_of
from edge_seg.contract import ClassInfo, Contract
from edge_seg.data.source import open_dataset
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.base import PanopticResult, SegmentResult
from edge_seg.errors import DataError, InputError
from edge_seg.evaluation.evaluate import evaluate, spread, teacher_forced_result
from edge_seg.evaluation.golden import write_golden
from edge_seg.evaluation.overlay import id_png, overlay
from edge_seg.evaluation.predict import predict_files, segments_json
from edge_seg.evaluation.predictor import Predictor
from edge_seg.letterbox import Letterbox
from edge_seg.training.checkpoint import checkpoint_runner

KEEP_ALL = {"score_threshold": 0.0, "min_area_share": 0.0, "overlap_threshold": 0.0}
CLASSES = (ClassInfo(7, "cup", True, (200, 0, 0)), ClassInfo(9, "sky", False, (0, 0, 200)))


@pytest.fixture(scope="module")
def runner(tiny_checkpoint):
    return checkpoint_runner(tiny_checkpoint)


@pytest.fixture(scope="module")
def predictor(runner):
    return Predictor(runner, **KEEP_ALL)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A wide and a tall picture, cut from drawn scenes."""
    folder = tmp_path_factory.mktemp("pictures")
    scenes = open_dataset("synthetic:easy", split="val")
    for n, name in enumerate(("wide.png", "tall.png")):
        image = scenes[n].image_hwc_u8[: 100 if n == 0 else 200, : 180 if n == 0 else 90]
        Image.fromarray(image).save(folder / name)
    return [folder / "wide.png", folder / "tall.png"]


class Recorder:
    """A runner that keeps what it was fed."""

    def __init__(self, runner):
        self.contract, self.constants, self._runner, self.fed = runner.contract, runner.constants, runner, []

    def __call__(self, input_hwc_u8):
        self.fed.append(input_hwc_u8)
        return self._runner(input_hwc_u8)


def test_the_predictor_letterboxes_runs_and_decodes_at_the_size_of_the_picture(runner):
    recorder = Recorder(runner)
    image = np.full((40, 130, 3), 10, np.uint8)
    prediction = Predictor(recorder).predict(image)
    (fed,) = recorder.fed
    assert (fed.shape, fed.dtype) == ((64, 64, 3), np.uint8)
    assert (fed[:20] == 10).all()  # 130 x 40 at 64/130: 64 x 19.69, rounded to 20
    assert (fed[20:] == 128).all()
    assert prediction.box == Letterbox(130, 40, 64, 64)
    assert prediction.result.id_map_hw_i32.shape == (40, 130)
    assert min(prediction.pre_ms, prediction.run_ms, prediction.post_ms) > 0


def test_decoder_parameters_can_be_replaced_but_not_invented(runner):
    assert Predictor(runner, top_k=0).predict(np.zeros((8, 8, 3), np.uint8)).result.segments == ()
    assert runner.contract.decoder.params["top_k"] == 50
    with pytest.raises(InputError, match="did you mean top_k"):
        Predictor(runner, topk=3)


def test_two_pictures_do_not_influence_each_other(predictor):
    a, b = (np.random.default_rng(s).integers(0, 256, (50, 70, 3), np.uint8) for s in (0, 1))
    first = predictor.predict(a).result.id_map_hw_i32
    predictor.predict(b)
    assert np.array_equal(predictor.predict(a).result.id_map_hw_i32, first)


# ---- pictures of a result ----------------------------------------------------------------------------------------


def segment(number, class_index):
    return SegmentResult(number, class_index, CLASSES[class_index].isthing, 0.9, 1, (0, 0, 1, 1))


def test_the_overlay_tints_by_class_dims_void_and_draws_outlines():
    image = np.full((20, 20, 3), 100, np.uint8)
    ids = np.zeros((20, 20), np.int32)
    ids[:, 10:] = 5
    drawn = overlay(image, ids, [segment(5, 1)], CLASSES, names=False)
    assert drawn.shape == image.shape
    assert (drawn[:, :10] == 45).all()  # void: 0.45 of the picture
    assert (drawn[:, 10] == 255).all()
    assert (drawn[:, 11:] == [45, 45, 155]).all()  # 0.45 picture + 0.55 colour
    assert (image == 100).all()


def test_objects_of_one_class_have_shades_of_their_own():
    ids = np.zeros((4, 12), np.int32)
    ids[:, 4:8], ids[:, 8:] = 1, 2
    drawn = overlay(np.zeros((4, 12, 3), np.uint8), ids, [segment(1, 0), segment(2, 0)], CLASSES, names=False)
    assert drawn[1, 6, 0] != drawn[1, 10, 0]
    assert (drawn[1, [6, 10], 1:] == 0).all()


def test_names_are_written_on_large_segments_only():
    image, ids = np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.int32)
    ids[:60], ids[70:74, 70:74] = 1, 2
    segments = [segment(1, 1), segment(2, 0)]
    plain = overlay(image, ids, segments, CLASSES, names=False)
    named = overlay(image, ids, segments, CLASSES)
    changed = (plain != named).any(-1)
    assert changed[:60].any()
    assert not changed[60:].any()


def test_an_empty_result_can_be_drawn():
    image = np.full((6, 5, 3), 200, np.uint8)
    assert (overlay(image, np.zeros((6, 5), np.int32), [], CLASSES) == 90).all()


def test_ids_are_coded_as_coco_panoptic_does():
    ids = np.array([[0, 1, 255], [256, 65_536, 0x030201]], np.int32)
    rgb = np.asarray(id_png(ids))
    assert rgb[1, 2].tolist() == [1, 2, 3]
    assert np.array_equal(rgb.astype(int) @ [1, 256, 65_536], ids)


# ---- files -------------------------------------------------------------------------------------------------------


def test_each_picture_gets_overlay_ids_and_segments_that_agree(predictor, pictures, tmp_path):
    documents = predict_files(predictor, pictures, tmp_path)
    suffixes = ("overlay.png", "ids.png", "segments.json")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{s}" for n in ("wide", "tall") for s in suffixes}
    for path, document in zip(pictures, documents, strict=True):
        assert json.loads((tmp_path / f"{path.stem}.segments.json").read_text()) == document
        assert document["image"] == path.name
        rgb = np.asarray(Image.open(tmp_path / f"{path.stem}.ids.png")).astype(int)
        ids = rgb @ [1, 256, 65_536]
        assert rgb.shape == np.asarray(Image.open(path)).shape
        assert len(document["segments"]) > 1
        for row in document["segments"]:
            ys, xs = np.nonzero(ids == row["id"])
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert (row["area_px"], row["bbox_xywh_px"]) == (len(ys), box)
        assert set(np.unique(ids)) - {0} == {row["id"] for row in document["segments"]}


def test_the_segments_document_names_categories_by_their_own_ids(predictor):
    result = PanopticResult(np.ones((2, 2), np.int32), (SegmentResult(1, 1, True, 0.123456, 4, (0, 0, 2, 2)),))
    prediction = dataclasses.replace(predictor.predict(np.zeros((2, 2, 3), np.uint8)), result=result)
    document = segments_json(predictor, prediction, "a.png")
    info = predictor.contract.classes[1]
    assert document["segments"] == [
        {
            "id": 1,
            "category_id": info.id,
            "name": info.name,
            "isthing": True,
            "score": 0.1235,
            "area_px": 4,
            "bbox_xywh_px": [0, 0, 2, 2],
        }
    ]
    assert set(document) == {"image", "segments", "pre_ms", "run_ms", "post_ms"}


@pytest.mark.parametrize("write", ["predict", "golden"])
def test_pictures_without_names_of_their_own_are_refused(predictor, pictures, tmp_path, tiny_checkpoint, write):
    leading = {"predict": (predict_files, predictor), "golden": (write_golden, predictor, tiny_checkpoint)}
    function, *arguments = leading[write]
    for images in ([], [pictures[0], tmp_path / "other" / "wide.jpg"]):
        with pytest.raises(InputError, match="by name"):
            function(*arguments, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_is_an_error(predictor, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        predict_files(predictor, [tmp_path / "bad.png"], tmp_path / "out")


def test_golden_files_can_be_read_from_their_index_alone(predictor, pictures, tmp_path, tiny_checkpoint):
    files = write_golden(predictor, tiny_checkpoint, pictures, tmp_path)
    assert files[-1].name == "index.json"
    assert {p.name for p in files} == {p.name for p in tmp_path.iterdir()}
    index = json.loads(files[-1].read_text())
    assert (index["format"], index["version"], index["byte_order"]) == ("edge_seg.golden", 1, "little")
    assert index["model_sha256"] == sha256_of(tiny_checkpoint)
    assert Contract.from_json(index["contract"]) == Contract.from_json(predictor.contract.to_json())
    for path, entry in zip(pictures, index["pictures"], strict=True):
        arrays = {}
        for item in entry["arrays"]:
            kind = np.dtype(item["dtype"]).newbyteorder("<")
            arrays[item["name"]] = np.fromfile(tmp_path / item["file"], kind).reshape(item["shape"])
        image = np.asarray(Image.open(path))
        prediction = predictor.predict(image)
        assert np.array_equal(arrays["image"], image)
        assert np.array_equal(arrays["id_map"], prediction.result.id_map_hw_i32)
        for name, value in prediction.raw.items():
            assert np.array_equal(arrays[f"output_{name}"], value)
        raw = predictor.runner(arrays["input"])
        assert all(np.array_equal(raw[k], prediction.raw[k]) for k in raw)
        box = Letterbox(**entry["letterbox"])
        assert (box.image_w_px, box.image_h_px) == (image.shape[1], image.shape[0])
        assert entry["segments"] == json.loads(json.dumps([dataclasses.asdict(s) for s in prediction.result.segments]))


# ---- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(5, 0, [0, 1, 2, 3, 4]), (3, 9, [0, 1, 2]), (11, 3, [0, 5, 10]), (10, 1, [0]), (4, 4, [0, 1, 2, 3])],
)
def test_a_limit_spreads_over_the_whole_set(count, limit, expected):
    assert spread(count, limit) == expected


class Perfect:
    """Stands for a predictor: answers with the truth of the next sample."""

    def __init__(self, contract, samples, prediction):
        self.contract, self._samples, self._prediction = contract, iter(samples), prediction

    def predict(self, _image):
        sample = next(self._samples)
        segments = tuple(SegmentResult(s.id, s.class_index, True, 1.0, 0, (0, 0, 0, 0)) for s in sample.segments)
        return dataclasses.replace(self._prediction, result=PanopticResult(sample.id_map_hw_i32, segments))


def test_the_truth_scores_a_hundred_and_other_classes_are_refused(predictor):
    scenes = SyntheticScenes("easy", split="val", length=3)
    samples = [scenes[n] for n in range(3)]
    perfect = Perfect(predictor.contract, samples, predictor.predict(samples[0].image_hwc_u8))
    document = evaluate(perfect, scenes).to_json(data="x")
    assert (document["pq"], document["images"], document["data"]) == (100.0, 3, "x")
    json.dumps(document, allow_nan=False)
    with pytest.raises(InputError, match="other classes"):
        evaluate(predictor, open_dataset("synthetic:hard", split="val"), limit=1)


def test_a_group_that_does_not_occur_is_null_in_json_not_nan(predictor):
    scenes = SyntheticScenes("easy", split="val", length=1)
    sample = scenes[0]
    things = tuple(s for s in sample.segments if scenes.classes[s.class_index].isthing)
    ids = np.where(np.isin(sample.id_map_hw_i32, [s.id for s in things]), sample.id_map_hw_i32, 0)
    only = [dataclasses.replace(sample, id_map_hw_i32=ids.astype(np.int32), segments=things)]
    perfect = Perfect(predictor.contract, only, predictor.predict(sample.image_hwc_u8))
    document = evaluate(perfect, OnlyThings(scenes.classes, only)).to_json()
    assert (document["pq"], document["pq_th"], document["pq_st"]) == (100.0, 100.0, None)
    json.dumps(document, allow_nan=False)


class OnlyThings(list):
    """A list as a data set."""

    def __init__(self, classes, samples):
        super().__init__(samples)
        self.classes = classes


def test_teacher_forcing_gives_every_true_segment_its_own_mask(runner):
    """Centres and classes come from the truth: no score threshold can drop them."""
    sample = open_dataset("synthetic:easy", split="val")[1]
    predictor = Predictor(runner, **{**KEEP_ALL, "score_threshold": 0.999, "mask_threshold": 0.0})
    prediction = predictor.predict(sample.image_hwc_u8)
    result = teacher_forced_result(predictor, prediction, sample)
    assert prediction.result.segments == ()
    truth = sorted(s.class_index for s in sample.segments)
    assert {s.class_index for s in result.segments} <= set(truth)
    assert len(result.segments) > 1
    assert all(s.score == 1.0 for s in result.segments)
