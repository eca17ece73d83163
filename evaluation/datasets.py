"""Homography sequences in the HPatches layout (Balntas et al., CVPR 2017) as pairs of views.

A sequence is a folder ``i_*`` (the light changes) or ``v_*`` (the viewpoint changes) with the
images ``1`` to ``6`` and text files ``H_1_2`` to ``H_1_6``: 3x3, pixels of image 1 to image k.
View 0 is always image 1.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.geometry import resize_homography
from ..data.images import SUFFIXES, read_image, resize_longest, resize_shorter

__all__ = ["SPLITS", "HPatches", "Pair", "View", "load_view", "scale_homography"]

SPLITS = {"all": ("i_", "v_"), "illumination": ("i_",), "viewpoint": ("v_",)}
"""The name of each split and how the folders of its sequences begin."""


@dataclass(frozen=True)
class Pair:
    """Two views of one sequence.

    Attributes:
        sequence: the folder's name.
        name0, name1: paths relative to the root, as ``v_dogman/1.ppm``.
        path0, path1: where the images are.
        H_0to1: (3, 3) float64, pixels of view 0 to view 1 at the size of the files.
    """

    sequence: str
    name0: str
    name1: str
    path0: Path
    path1: Path
    H_0to1: np.ndarray


@dataclass(frozen=True)
class View:
    """An image as it is given to an extractor.

    Attributes:
        image: uint8, (H, W) gray or (H, W, 3) red, green, blue.
        file_size: (width, height) of the file that it was resized from.
    """

    image: np.ndarray
    file_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]


class HPatches:
    """All pairs of a folder in the HPatches layout, five for each sequence.

    Every homography is read and every image looked for at once, so that a damaged folder is noticed
    before hours of extraction and not after.

    Attributes:
        sequences: the names of the sequences, sorted.
        pairs: sequence by sequence, images 2 to 6 against image 1.
        images: name -> path of each image once, in the order of the pairs.

    Raises:
        FileNotFoundError: the root, its sequences, an image or a homography is missing.
        ValueError: an unknown split, a folder that is neither ``i_*`` nor ``v_*``, two files for
            one image, or a homography that is not 3x3, finite and invertible.
    """

    def __init__(self, root: str | Path, split: str = "all"):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected the root of HPatches")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        for folder in folders:
            if not folder.name.startswith(SPLITS["all"]):
                raise ValueError(
                    f"{folder}: not a sequence; expected only folders named i_* (illumination) or "
                    "v_* (viewpoint); move it elsewhere"
                )
        self.sequences = [f.name for f in folders if f.name.startswith(SPLITS[split])]
        if not self.sequences:
            wanted = " or ".join(f"{prefix}*" for prefix in SPLITS[split])
            raise FileNotFoundError(
                f"{root}: no sequences for split {split!r}; expected folders {wanted}, each with "
                "images 1 to 6 and H_1_2 to H_1_6"
            )
        self.pairs = [pair for name in self.sequences for pair in _read_pairs(root / name)]
        self.images: dict[str, Path] = {}
        for pair in self.pairs:
            self.images |= {pair.name0: pair.path0, pair.name1: pair.path1}


def load_view(path: str | Path, *, longest: int = 640, shorter: int = 0, channels: int = 1) -> View:
    """Read an image and resize it so that its longest side has ``longest`` pixels.

    Args:
        longest: 0 keeps the size of the file.
        shorter: if not 0, the shorter side gets so many instead.
        channels: 1 for gray, 3 for colour.

    Raises:
        FileNotFoundError, UnreadablePhotographError: see ``data.images.read_image``.
    """
    image = read_image(path, channels=channels)
    resized = resize_shorter(image, shorter) if shorter else resize_longest(image, longest)
    return View(resized, (image.shape[1], image.shape[0]))


def scale_homography(H_0to1: np.ndarray, view0: View, view1: View) -> np.ndarray:
    """A homography between two files, (3, 3), as it is between their resized views."""
    return resize_homography(H_0to1, view0.file_size, view0.size, view1.file_size, view1.size)


def _read_pairs(folder: Path) -> list[Pair]:
    paths = [_find_image(folder, number) for number in range(1, 7)]
    names = [f"{folder.name}/{path.name}" for path in paths]
    return [
        Pair(folder.name, names[0], name, paths[0], path, _read_homography(folder / f"H_1_{k}"))
        for k, name, path in zip(range(2, 7), names[1:], paths[1:], strict=True)
    ]


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
