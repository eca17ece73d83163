"""An image of a dataset as it is shown to a model: read, and resized."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import read_image, resize_longest, resize_shorter

__all__ = ["View", "load_view"]


@dataclass(frozen=True)
class View:
    """An image as it is given to a model.

    Attributes:
        image: uint8, (H, W) gray or (H, W, 3) red, green, blue.
        file_size: (width, height) of the upright photograph that it was resized from.
        path: of its file.
    """

    image: np.ndarray
    file_size: tuple[int, int]
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]


def load_view(path: str | Path, *, longest: int = 640, shorter: int = 0, channels: int = 1) -> View:
    """Read an image and resize it so that its longest side has ``longest`` pixels.

    Args:
        longest: 0 keeps the size of the file.
        shorter: if not 0, the shorter side gets so many instead.
        channels: 1 for gray, 3 for color.

    Raises:
        FileNotFoundError, UnreadablePhotographError: see ``data.images.read_image``.
    """
    image = read_image(path, channels=channels)
    resized = resize_shorter(image, shorter) if shorter else resize_longest(image, longest)
    return View(resized, (image.shape[1], image.shape[0]), Path(path))
