"""Tiles of large photographs: what a teacher finds in their own pixels.

A teacher sees a photograph shrunk to ``--size``, and a student learns nothing of what is lost by
that. A tile is a part of the photograph as large as ``--size``, and a photograph of its own to
learn from: as sharp as the file, at another scale, with other keypoints.

``python -m hfnet_distill.data.tiles PHOTOGRAPHS OUTPUT`` cuts all that fit. An OUTPUT inside
PHOTOGRAPHS adds them to the collection.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from ..config import parse_size
from ..console import user_errors
from ..errors import InputError
from .images import list_images, read_image, split_names, write_pictures

__all__ = ["cut_tiles", "make_tiles"]


def cut_tiles(image: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The tiles of an image (H, W, C), row by row: none if it is hardly larger than one.

    They are spread evenly: where the image is not so many tiles wide, they overlap or leave out
    what is less than half a tile.

    Args:
        size: (width, height) of a tile.
    """
    starts = [
        np.linspace(0, whole - side, round(whole / side)).round().astype(int)
        for whole, side in zip(image.shape[:2], size[::-1], strict=True)
        if whole >= side
    ]
    corners = [*itertools.product(*starts)] if len(starts) == 2 else []
    if len(corners) < 2:
        return []
    return [image[y : y + size[1], x : x + size[0]] for y, x in corners]


def make_tiles(
    photographs: Sequence[Path], output: Path, *, size: tuple[int, int], most: int, seed: int
) -> int:
    """Write ``tile_0000.png``, ... of the photographs, and return how many.

    The same photographs and arguments give the same files. The folder appears when all of them are
    made.

    Args:
        size: (width, height) of a tile.
        most: of each photograph, chosen at random where there are more.

    Raises:
        InputError: no photograph is large enough, or one cannot be read.
        AlreadyExistsError: ``output`` exists.
    """
    rng = np.random.default_rng(seed)

    def chosen() -> Iterator[np.ndarray]:
        for path in photographs:
            tiles = cut_tiles(read_image(path, channels=3), size)
            yield from (tiles[index] for index in sorted(rng.permutation(len(tiles))[:most]))

    count = write_pictures(chosen(), output, "tile")
    if not count:
        raise InputError(
            f"no photograph has room for two tiles of {size[0]}x{size[1]}; expected larger ones"
        )
    return count


@click.command(context_settings={"show_default": True})
@click.argument("folder", metavar="PHOTOGRAPHS", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", default="640x480", help="Width x height of a tile: export-teacher's.")
@click.option("--most", type=click.IntRange(1), default=4, help="Tiles of each photograph.")
@click.option("--validation", default=0.04, help="Share that train-student will hold out.")
@click.option("--seed", default=0)
@user_errors
def main(folder: Path, output: Path, size: str, most: int, validation: float, seed: int) -> None:
    """Cut tiles from the photographs in a folder, without those that train-student holds out."""
    names = split_names(list_images(folder), validation)[0]
    photographs = [folder / name for name in names]
    count = make_tiles(photographs, output, size=parse_size(size), most=most, seed=seed)
    click.echo(f"{output}: {count} tiles of {len(photographs)} photographs")


if __name__ == "__main__":
    main()
