"""What a dataset gives to a task: images by name, and what is known to be true of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import InputError, NotFoundError
from ...files import read_text

__all__ = [
    "Camera",
    "Dataset",
    "HomographyDataset",
    "HomographyPair",
    "Pair",
    "PairDataset",
    "PoseDataset",
    "PosePair",
    "RetrievalDataset",
    "read_lines",
    "rotation_angle",
    "to_4x4",
    "to_numbers",
]

BESIDE_NUMBERS = re.compile(r"[\s,;\[\]]+")
"""What stands between numbers, or around them where Python or MATLAB printed a matrix."""


class Dataset:
    """A folder of images; made of its root and the split that is asked for.

    Attributes:
        SPLITS: the splits that can be asked for.
        task: which task is run where none is named; None for [evaluate] protocol.
        images: name -> path of each image once, in the order in which they are shown to a model.
        size: how much it holds, by the name of what is counted; part of the report.
    """

    name: ClassVar[str] = ""
    SPLITS: ClassVar[Sequence[str]] = ("all",)
    task: ClassVar[str | None] = None
    images: dict[str, Path]
    size: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """Two images of one sequence, by their names."""

    sequence: str
    name0: str
    name1: str


class PairDataset(Dataset):
    """Pairs of images, sequence by sequence; ``sequences`` are their names in that order."""

    sequences: list[str]
    pairs: list[Pair]

    @property
    def size(self) -> dict[str, int]:
        return {"sequences": len(self.sequences), "pairs": len(self.pairs)}

    def splits(self) -> dict[str, list[str]]:
        """Name of each split that is reported -> its sequences."""
        return {"all": self.sequences}


@dataclass(frozen=True)
class HomographyPair(Pair):
    """Two views of a plane, or of a camera that only turns; ``H_0to1`` (3, 3) float64 takes pixels
    of view 0 to view 1 at the size of the files."""

    H_0to1: np.ndarray


class HomographyDataset(PairDataset):
    """Pairs of views with a known homography."""

    pairs: list[HomographyPair]


class RetrievalDataset(Dataset):
    """Queries, and a database that shows the places of some of them.

    Attributes:
        database, queries: names of images.
        positives: for each query the rows of ``database`` that show its place, at least one.
    """

    task = "retrieval"
    database: list[str]
    queries: list[str]
    positives: list[frozenset[int]]

    @property
    def size(self) -> dict[str, int]:
        return {"database": len(self.database), "queries": len(self.queries)}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        K: (3, 3) float64, directions to pixels of the file.
        distortion: (5,) float64, OpenCV's k1 k2 p1 p2 k3; zeros for a rectified image.
    """

    K: np.ndarray
    distortion: np.ndarray


@dataclass(frozen=True)
class PosePair(Pair):
    """Two images of one camera; ``T_0to1`` (4, 4) float64 takes points of camera 0 to camera 1, in
    meters."""

    T_0to1: np.ndarray


class PoseDataset(PairDataset):
    """Pairs of images with a known relative pose; ``cameras``: sequence -> its camera."""

    task = "relative_pose"
    cameras: dict[str, Camera]
    pairs: list[PosePair]


def to_4x4(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) and translations (..., 3) as motions (..., 4, 4)."""
    T = np.zeros((*t.shape[:-1], 4, 4))
    T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = R, t, 1
    return T


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Degrees (...) of rotations (..., 3, 3); exact for small ones, unlike the arc cosine."""
    twice_axis = (R - R.swapaxes(-1, -2))[..., [2, 0, 1], [1, 2, 0]]
    trace = np.trace(R, axis1=-2, axis2=-1)
    return np.degrees(np.arctan2(np.linalg.norm(twice_axis, axis=-1), trace - 1))


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text that are neither empty nor a comment, which begins with ``#``.

    Raises:
        NotFoundError: there is no such file; says what was ``expected`` of it.
        InputError: it is empty, or no text, see ``files.read_text``.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: missing; expected {expected}")
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: is empty; expected {expected}")
    return lines


def to_numbers(lines: list[str], path: Path, count: int) -> np.ndarray:
    """Lines of ``count`` numbers as (N, count) float64; see ``BESIDE_NUMBERS``.

    Raises:
        InputError: other words, or another number of them; names the first such line.
    """
    rows = []
    for line in lines:
        try:
            row = [float(word) for word in BESIDE_NUMBERS.split(line) if word]
        except ValueError:
            row = []
        if len(row) != count or not np.isfinite(row).all():
            raise InputError(f"{path}: expected lines of {count} finite numbers, found {line!r}")
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, count)
