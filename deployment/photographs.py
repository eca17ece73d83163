"""Photographs to compare two programs on."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from ..data.images import list_images, read_image
from ..errors import InputError

__all__ = ["photographs_of_sizes"]

SIZES = ((640, 480), (501, 333), (257, 199), (96, 73), (721, 541))
"""(width, height), some odd, most no multiples of 8."""
SAMPLES = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png")


def photographs_of_sizes(folder: Path | None, channels: int) -> list[np.ndarray]:
    """A photograph of each of ``SIZES``, (H, W) or (H, W, 3) uint8.

    Args:
        folder: whose photographs to take; None for those that come with scikit-image.

    Raises:
        InputError: neither.
    """
    if folder is None:
        package = find_spec("skimage")
        if package is None:
            raise InputError(
                "no photographs to compare with PyTorch on; name a folder of some with --images or "
                "pip install hfnet-distill[demo]"
            )
        home = Path(package.submodule_search_locations[0]) / "data"
        paths = [home / name for name in SAMPLES]
    else:
        names = list_images(folder)
        paths = [folder / names[number % len(names)] for number in range(len(SIZES))]
    return [
        cv2.resize(read_image(path, channels=channels), size, interpolation=cv2.INTER_AREA)
        for path, size in zip(paths, SIZES, strict=True)
    ]
