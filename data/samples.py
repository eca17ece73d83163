"""Photographs to try the commands on: those that scikit-image ships in its wheel.

``python -m hfnet_distill.data.samples FOLDER`` copies them into ``FOLDER/train`` and
``FOLDER/test``.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import NotFoundError

__all__ = ["copy_samples"]

TRAIN = (
    *("brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "moon.png", "text.png", "retina.jpg", "horse.png"),
)
TEST = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def copy_samples(folder: str | Path) -> None:
    """Copy 12 photographs for training and 4 others for evaluation into a folder.

    Raises:
        NotFoundError: scikit-image is not installed, or no longer ships them.
    """
    package = find_spec("skimage")
    if package is None:
        raise NotFoundError("scikit-image is not installed; pip install hfnet-distill[demo]")
    source = Path(package.submodule_search_locations[0]) / "data"
    for kind, names in (("train", TRAIN), ("test", TEST)):
        (Path(folder) / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, Path(folder) / kind / name)


if __name__ == "__main__":
    copy_samples(sys.argv[1])
