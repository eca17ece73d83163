"""Homography sequences in the HPatches layout (Balntas et al., CVPR 2017) as pairs of views.

A sequence is a folder ``i_*`` (the light changes) or ``v_*`` (the viewpoint changes) with the
images ``1`` to ``6`` and text files ``H_1_2`` to ``H_1_6``: 3x3, pixels of image 1 to image k.
View 0 is always image 1.
"""

from pathlib import Path

import numpy as np

from ...data.images import SUFFIXES
from . import register_dataset
from .base import HomographyDataset, HomographyPair

__all__ = ["HPatches"]

PREFIXES = {"all": ("i_", "v_"), "illumination": ("i_",), "viewpoint": ("v_",)}
"""The name of each split and how the folders of its sequences begin."""


@register_dataset("hpatches")
class HPatches(HomographyDataset):
    """All pairs of a folder in the HPatches layout, five for each sequence.

    Every homography is read and every image looked for at once, so that a damaged folder is noticed
    before hours of extraction and not after.

    Attributes:
        pairs: images 2 to 6 against image 1, by sequences in alphabetical order.
        images: by names such as ``v_dogman/1.ppm``.

    Raises:
        FileNotFoundError: the root, its sequences, an image or a homography is missing.
        ValueError: an unknown split, a folder that is neither ``i_*`` nor ``v_*``, two files for
            one image, or a homography that is not 3x3, finite and invertible.
    """

    SPLITS = tuple(PREFIXES)

    def __init__(self, root: str | Path, split: str = "all"):
        if split not in PREFIXES:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(PREFIXES)}")
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected the root of HPatches")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        for folder in folders:
            if not folder.name.startswith(PREFIXES["all"]):
                raise ValueError(
                    f"{folder}: not a sequence; expected only folders named i_* (illumination) or "
                    "v_* (viewpoint); move it elsewhere"
                )
        self.sequences = [f.name for f in folders if f.name.startswith(PREFIXES[split])]
        if not self.sequences:
            wanted = " or ".join(f"{prefix}*" for prefix in PREFIXES[split])
            raise FileNotFoundError(
                f"{root}: no sequences for split {split!r}; expected folders {wanted}, each with "
                "images 1 to 6 and H_1_2 to H_1_6"
            )
        self.split, self.images, self.pairs = split, {}, []
        for name in self.sequences:
            paths = [_find_image(root / name, number) for number in range(1, 7)]
            names = [f"{name}/{path.name}" for path in paths]
            self.images |= dict(zip(names, paths, strict=True))
            self.pairs += [
                HomographyPair(
                    name, names[0], names[k - 1], _read_homography(root / name / f"H_1_{k}")
                )
                for k in range(2, 7)
            ]

    def splits(self) -> dict[str, list[str]]:
        """The split asked for, and the two parts of ``all``."""
        wanted = PREFIXES if self.split == "all" else [self.split]
        return {
            name: [s for s in self.sequences if s.startswith(PREFIXES[name])] for name in wanted
        }


def _find_image(folder: Path, number: int) -> Path:
    found = [p for p in sorted(folder.glob(f"{number}.*")) if p.suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(
            f"{folder}: image {number} is missing; expected {number}.ppm, .png, .jpg or alike"
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder}: image {number} is there {len(found)} times, as "
            f"{' and '.join(p.name for p in found)}; keep one"
        )
    return found[0]


def _read_homography(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; expected the 3x3 homography as text")
    expected = "expected three rows of three finite numbers, an invertible homography"
    try:
        H = np.array(
            [line.split() for line in path.read_text().splitlines() if line.strip()], float
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {expected}") from None
    if H.shape != (3, 3):
        raise ValueError(f"{path}: found numbers of shape {H.shape}; {expected}")
    if not np.isfinite(H).all() or np.linalg.det(H) == 0:
        raise ValueError(f"{path}: found {H.tolist()}; {expected}")
    return H
