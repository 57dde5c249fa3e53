"""Pictures and what files see in them, side by side: `python -m edge_seg.studies.sheet FOLDER --out OUT`.

FOLDER is `predict` of a quickstart; its pictures are `NUMBER.COLUMN.png`.
"""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image, ImageDraw, UnidentifiedImageError

from edge_seg.artifact import write_bytes
from edge_seg.errors import InputError
from edge_seg.studies.start import start

TITLES = {"image": "picture", "truth": "truth", "torch": "PyTorch", "w8a8": "int8 file"}
_HEAD_PX, _GAP_PX, _QUALITY = 18, 4, 88


def sheet(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Lays pictures out in rows below a line of titles; each column is as wide as the first row's picture.

    Args:
        rows: Pictures, as many in each row as there are titles.
        titles: What stands above the columns.
    """
    widths = [picture.width for picture in rows[0]]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (sum(widths) + _GAP_PX * (len(widths) - 1), _HEAD_PX + sum(heights) + _GAP_PX * (len(rows) - 1))
    drawn = Image.new("RGB", size, "white")
    pen, y = ImageDraw.Draw(drawn), _HEAD_PX
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width, title in zip(row, widths, titles, strict=True):
            if y == _HEAD_PX:
                pen.text((x + width / 2, _HEAD_PX / 2), title, fill="black", anchor="mm")
            drawn.paste(picture, (x, y))
            x += width + _GAP_PX
        y += height + _GAP_PX
    return drawn


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(
            f"{path} is no picture of a quickstart.", expected="NUMBER.COLUMN.png", got=str(error)
        ) from error


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--picture", "numbers", type=int, multiple=True, default=(0, 3), show_default=True)
@click.option("--column", "columns", multiple=True, default=tuple(TITLES), show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A WebP picture.")
def main(folder: Path, numbers: tuple[int, ...], columns: tuple[str, ...], out: Path) -> None:
    """Writes the sheet."""
    rows = [[_open(folder / f"{number:04d}.{column}.png") for column in columns] for number in numbers]
    drawn = sheet(rows, [TITLES.get(column, column) for column in columns])
    data = io.BytesIO()
    drawn.save(data, "WEBP", quality=_QUALITY, method=6)
    write_bytes(out, data.getvalue())
    click.echo(str(out))


if __name__ == "__main__":
    start(main)
