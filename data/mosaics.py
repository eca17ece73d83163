"""Mosaics of four small photographs: sharp images to learn from.

A photograph smaller than the teacher's ``--size`` is enlarged and therefore blurred. A student that
sees only such images falls behind its teacher on sharp ones as soon as the viewpoint changes. Four
photographs shrunk to half that size fill an image that is sharp everywhere.

``python -m hfnet_distill.data.mosaics PHOTOGRAPHS OUTPUT`` makes as many mosaics as there are
photographs. An OUTPUT inside PHOTOGRAPHS adds them to the collection.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from ..config import parse_size
from ..console import user_errors
from ..errors import InputError
from .images import fit_image, list_images, read_image, split_names, write_pictures

__all__ = ["make_mosaics"]


def make_mosaics(
    photographs: Sequence[Path], output: Path, *, size: tuple[int, int], count: int, seed: int
) -> None:
    """Write ``mosaic_0000.png``, ...; each photograph is used once before one is used again.

    The same photographs and arguments give the same files. The folder appears when all
    of them are made.

    Args:
        size: (width, height) of a mosaic, even.

    Raises:
        InputError: fewer than four photographs, an odd size, or one that cannot be read.
        AlreadyExistsError: ``output`` exists.
    """
    if len(photographs) < 4:
        raise InputError(f"{len(photographs)} photographs to make mosaics of; expected 4 or more")
    if size[0] % 2 or size[1] % 2:
        raise InputError(f"mosaics of {size[0]}x{size[1]}: both sides must be even")
    rng, order = np.random.default_rng(seed), []
    while len(order) < 4 * count:
        order += rng.permutation(len(photographs)).tolist()
    fours = (order[at : at + 4] for at in range(0, 4 * count, 4))
    write_pictures(
        (_mosaic([photographs[index] for index in four], size) for four in fours), output, "mosaic"
    )


def _mosaic(photographs: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    half = (size[0] // 2, size[1] // 2)
    a, b, c, d = (fit_image(read_image(path, channels=3), half) for path in photographs)
    return np.vstack([np.hstack([a, b]), np.hstack([c, d])])


@click.command(context_settings={"show_default": True})
@click.argument("folder", metavar="PHOTOGRAPHS", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", default="640x480", help="Width x height of a mosaic.")
@click.option("--count", type=click.IntRange(1), help="  [default: as many as photographs]")
@click.option("--validation", default=0.04, help="Share that train-student will hold out.")
@click.option("--seed", default=0)
@user_errors
def main(
    folder: Path, output: Path, size: str, count: int | None, validation: float, seed: int
) -> None:
    """Make mosaics of the photographs in a folder, without those that train-student holds out."""
    names = list_images(folder)
    photographs = [folder / name for name in split_names(names, validation)[0]]
    count = count or len(names)
    make_mosaics(photographs, output, size=parse_size(size), count=count, seed=seed)
    click.echo(f"{output}: {count} mosaics of {len(photographs)} photographs")


if __name__ == "__main__":
    main()
