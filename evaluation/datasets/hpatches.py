"""Homography sequences in the HPatches layout (Balntas et al., CVPR 2017) as pairs of views.

A sequence is a folder ``i_*`` (the light changes) or ``v_*`` (the viewpoint changes) with images
``1``, ``2``, ..., six in HPatches, and text files ``H_1_2``, ... (``.txt`` may stand behind): 3x3,
pixels of image 1 to image k, at any scale. View 0 is always image 1. Other files are nobody's
business.
"""

import re
from pathlib import Path

import numpy as np

from ...data.images import SUFFIXES
from ...errors import InputError, NotFoundError
from . import register_dataset
from .base import HomographyDataset, HomographyPair, read_lines, to_numbers

__all__ = ["HPatches"]

PREFIXES = {"all": ("i_", "v_"), "illumination": ("i_",), "viewpoint": ("v_",)}
"""The name of each split and how the folders of its sequences begin."""
HOMOGRAPHY = re.compile(r"H_1_(\d+)(?:\.txt)?")


@register_dataset("hpatches")
class HPatches(HomographyDataset):
    """All pairs of a folder in the HPatches layout, of any number of views.

    Sequences are in alphabetical order, images by names such as ``v_dogman/1.ppm``. Everything is
    looked through at once, so that damage is noticed before hours of extraction and not after.

    Raises:
        NotFoundError: the root, its sequences, an image or a homography is missing.
        InputError: an unknown split, a folder that is neither ``i_*`` nor ``v_*``, two files for
            one image, or a homography that is not 3x3, finite and invertible.
    """

    SPLITS = tuple(PREFIXES)

    def __init__(self, root: str | Path, split: str = "all"):
        if split not in PREFIXES:
            raise InputError(f"unknown split {split!r}; expected one of {', '.join(PREFIXES)}")
        root = Path(root)
        if not root.is_dir():
            raise NotFoundError(f"{root}: no such folder; expected the root of HPatches")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        for folder in folders:
            if not folder.name.startswith(PREFIXES["all"]):
                raise InputError(
                    f"{folder}: not a sequence; expected only folders named i_* (illumination) or "
                    "v_* (viewpoint); move it elsewhere"
                )
        self.sequences = [f.name for f in folders if f.name.startswith(PREFIXES[split])]
        if not self.sequences:
            wanted = " or ".join(f"{prefix}*" for prefix in PREFIXES[split])
            raise NotFoundError(
                f"{root}: no sequences for split {split!r}; expected folders {wanted}, each with "
                "images 1, 2, ... and H_1_2, ..."
            )
        self.split, self.images, self.pairs = split, {}, []
        for name in self.sequences:
            images, homographies = _find_views(root / name)
            names = {k: f"{name}/{path.name}" for k, path in images.items()}
            self.images |= {names[k]: path for k, path in images.items()}
            self.pairs += [
                HomographyPair(name, names[1], names[k], _read_homography(path))
                for k, path in homographies.items()
            ]

    def splits(self) -> dict[str, list[str]]:
        """The split asked for, and the two parts of ``all``."""
        wanted = PREFIXES if self.split == "all" else [self.split]
        return {
            name: [s for s in self.sequences if s.startswith(PREFIXES[name])] for name in wanted
        }


def _find_views(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """The images 1, 2, ... of a sequence, and the homographies to 2, ..., by number."""
    images: dict[int, Path] = {}
    homographies: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if (match := HOMOGRAPHY.fullmatch(path.name)) and int(match[1]) != 1:
            what, found, k = "homography", homographies, int(match[1])
        elif path.stem.isdecimal() and path.suffix.lower() in SUFFIXES:
            what, found, k = "image", images, int(path.stem)
        else:
            continue
        if k in found:
            both = f"{found[k].name} and {path.name}"
            raise InputError(f"{folder}: {what} {k} is there 2 times, as {both}; keep one")
        found[k] = path
    for k in sorted({1} | homographies.keys() | images.keys()):
        if k not in images:
            raise NotFoundError(
                f"{folder}: image {k} is missing; expected {k}.ppm, .png, .jpg or alike"
            )
        if k != 1 and k not in homographies:
            raise NotFoundError(
                f"{folder / f'H_1_{k}'}: missing; expected the 3x3 homography from image 1 to "
                f"{images[k].name} as text"
            )
    if not homographies:
        raise NotFoundError(f"{folder}: has one image; expected images 1, 2, ... and H_1_2, ...")
    return dict(sorted(images.items())), dict(sorted(homographies.items()))


def _read_homography(path: Path) -> np.ndarray:
    expected = "three rows of three finite numbers, an invertible homography"
    lines = read_lines(path, expected)
    if len(lines) != 3:
        raise InputError(f"{path}: {len(lines)} lines; expected {expected}")
    H = to_numbers(lines, path, 3)
    if np.linalg.det(H) == 0:
        raise InputError(f"{path}: found {H.tolist()}; expected {expected}")
    return H
