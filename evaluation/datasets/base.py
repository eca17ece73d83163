"""What a dataset gives to a task: images by name, and what is known to be true of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

__all__ = [
    "Camera",
    "Dataset",
    "HomographyDataset",
    "HomographyPair",
    "PairDataset",
    "PoseDataset",
    "PosePair",
    "RetrievalDataset",
]


class Dataset:
    """A folder of images; made of its root and the split that is asked for.

    Attributes:
        name: under which it is registered.
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
class HomographyPair:
    """Two views of a plane, or of a camera that only turns.

    Attributes:
        sequence: the name of its sequence.
        name0, name1: of the images.
        H_0to1: (3, 3) float64, pixels of view 0 to view 1 at the size of the files.
    """

    sequence: str
    name0: str
    name1: str
    H_0to1: np.ndarray


class PairDataset(Dataset):
    """Pairs of images, some from each of several sequences.

    Attributes:
        sequences: names, in the order of the pairs.
        pairs: sequence by sequence.
    """

    sequences: list[str]
    pairs: list

    @property
    def size(self) -> dict[str, int]:
        return {"sequences": len(self.sequences), "pairs": len(self.pairs)}

    def splits(self) -> dict[str, list[str]]:
        """Name of each split that is reported -> its sequences."""
        return {"all": self.sequences}


class HomographyDataset(PairDataset):
    """Pairs of views with a known homography.

    Attributes:
        pairs: sequence by sequence.
    """

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
class PosePair:
    """Two images of one sequence, taken by the same camera.

    Attributes:
        sequence: the name of its sequence.
        name0, name1: of the images.
        T_0to1: (4, 4) float64, points of camera 0 to camera 1, in meters.
    """

    sequence: str
    name0: str
    name1: str
    T_0to1: np.ndarray


class PoseDataset(PairDataset):
    """Pairs of images with a known relative pose.

    Attributes:
        cameras: sequence -> its camera.
        pairs: sequence by sequence.
    """

    task = "relative_pose"
    cameras: dict[str, Camera]
    pairs: list[PosePair]
