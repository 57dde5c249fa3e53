"""Pictures and id maps from outside are checked before they are believed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_seg.data import images
from edge_seg.data.images import image_size_px, path_inside, read_id_png, read_image
from edge_seg.errors import DataError


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/passwd", "", "..\\a.jpg", "c:a.jpg", "a\0.jpg"])
def test_a_file_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(DataError, match="leads out of its folder"):
        path_inside(Path("/data"), name)


def test_a_file_name_in_a_subfolder_is_accepted():
    assert path_inside(Path("/data"), "train/a..b.jpg") == Path("/data/train/a..b.jpg")


def test_a_missing_picture_says_so(tmp_path):
    with pytest.raises(DataError, match="There is no picture"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(path)


def test_a_text_file_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path / "a.jpg")


def test_a_picture_over_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PX", 1199)
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PX", 1200)
    assert read_image(tmp_path / "a.png").shape == (30, 40, 3)


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    Image.new("L", (2, 3), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (2, 3), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[7, 7, 7]] * 2] * 3
    assert read_image(tmp_path / "alpha.png").tolist() == [[[1, 2, 3]] * 2] * 3
    assert image_size_px(tmp_path / "grey.png") == (2, 3)


def test_an_id_is_red_plus_256_green_plus_65536_blue(tmp_path):
    Image.fromarray(np.array([[[1, 0, 0], [2, 3, 4], [255, 255, 255]]], np.uint8)).save(tmp_path / "a.png")
    ids = read_id_png(tmp_path / "a.png")
    assert ids.tolist() == [[1, 2 + 3 * 256 + 4 * 65536, 256**3 - 1]]
    assert ids.dtype == np.int32


def test_an_id_png_must_be_rgb(tmp_path):
    Image.new("L", (2, 2), 1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="mode L"):
        read_id_png(tmp_path / "a.png")
