"""Reading pictures and id maps from outside: every file is checked before it is believed."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge_seg.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_IMAGE_PX = 64_000_000
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def path_inside(folder: Path, file_name: str) -> Path:
    """Returns `folder / file_name`.

    Args:
        folder: A trusted folder.
        file_name: A relative POSIX path from a file of unknown origin.

    Raises:
        DataError: The name is empty, absolute, or leads out of the folder.
    """
    parts = PurePosixPath(file_name).parts
    bad = not parts or ".." in parts or parts[0].startswith("/")
    if bad or any(c in file_name for c in ("\\", "\0", ":")):
        raise DataError(
            f"The file name {file_name!r} leads out of its folder.",
            expected=f"a relative path inside {folder}",
            got=file_name,
            todo="correct the annotation file",
        )
    return folder.joinpath(*parts)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads a picture as RGB. EXIF rotation is not applied, as in COCO.

    Args:
        path: Any format that Pillow reads.

    Returns:
        [H, W, 3] uint8, RGB, read-only.

    Raises:
        DataError: The file is missing, truncated, not a picture, or has more than `MAX_IMAGE_PX` pixels.
    """
    return np.asarray(_decode(path, "RGB"))


def read_id_png(path: Path) -> NDArray[np.int32]:
    """Reads a COCO panoptic PNG: id = R + 256 G + 256^2 B, 0 is void.

    Args:
        path: An RGB PNG.

    Returns:
        [H, W] int32, ids in 0..2^24-1.

    Raises:
        DataError: As `read_image`, or the PNG is not RGB.

    Source: panopticapi's `rgb2id`, COCO panoptic format (cocodataset.org/#format-data, section 4).
    """
    rgb = np.asarray(_decode(path, None))
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def image_size_px(path: Path) -> tuple[int, int]:
    """Returns width and height without decoding; raises DataError like `read_image`."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise _missing(path) from error
    except _PILLOW_ERRORS as error:
        raise _broken(path, error) from error


def _decode(path: Path, mode: str | None) -> Image.Image:
    """Opens, bounds and decodes a file; converts to `mode`, or insists on RGB when mode is None."""
    try:
        with Image.open(path) as image:
            _check_size(path, *image.size)
            if mode is None and image.mode != "RGB":
                raise DataError(
                    f"{path} is not a COCO panoptic PNG.", expected="an RGB picture", got=f"mode {image.mode}"
                )
            image.load()
            return image.convert(mode or "RGB")
    except FileNotFoundError as error:
        raise _missing(path) from error
    except _PILLOW_ERRORS as error:
        raise _broken(path, error) from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PX:
        raise DataError(
            f"{path} is too large.",
            expected=f"at most {MAX_IMAGE_PX} pixels",
            got=f"{width} x {height} = {width * height} pixels",
            todo="scale the picture down, or check that it is the file you meant",
        )


def _missing(path: Path) -> DataError:
    return DataError(f"There is no picture {path}.", expected="an existing file", todo="check the image folder")


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be decoded.",
        expected="a complete picture",
        got=f"{type(error).__name__}: {error}",
        todo="the file is truncated or damaged: fetch it again",
    )
