"""What flows between the stages: one image's teacher output, and one image's features."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Features", "TeacherRecord"]


@dataclass(frozen=True)
class Features:
    """What an extractor found in one image; N varies from image to image.

    Attributes:
        image_size: (width, height) of the image that the keypoints are pixels of.
        keypoints: (N, 2) float32 (x, y), the centre of the top-left pixel at (0, 0).
        scores: (N,) float32, descending.
        descriptors: (N, D) float32 of unit length, or (N, D) bool for binary ones; None for a
            detector without descriptors.
        global_descriptor: (G,) float32 of unit length, or None.

    Raises:
        ValueError: an array of another shape or dtype, or scores that are not in order.
    """

    image_size: tuple[int, int]
    keypoints: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray | None = None
    global_descriptor: np.ndarray | None = None

    def __post_init__(self):
        n = len(self.keypoints)
        _check("keypoints", self.keypoints, (n, 2), np.float32)
        _check("scores", self.scores, (n,), np.float32)
        if n > 1 and (np.diff(self.scores) > 0).any():
            raise ValueError("scores: not in descending order; sort keypoints by score")
        if self.descriptors is not None:
            dtype = np.bool_ if self.descriptors.dtype == np.bool_ else np.float32
            _check("descriptors", self.descriptors, (n, None), dtype)
        if self.global_descriptor is not None:
            _check("global_descriptor", self.global_descriptor, (None,), np.float32)


@dataclass(frozen=True)
class TeacherRecord:
    """What a teacher said about one image; what it did not say is None.

    Attributes:
        name: the image's relative POSIX path, the only join key.
        image_size: (width, height) of the image that the teacher saw.
        score_map: (C, h, w): one channel is a probability per position; 65 channels are the
            distribution over the 64 pixels of an 8x8 cell, row by row, and "no keypoint here".
        descriptor_map: (D, h, w), unit length along D.
        keypoints: (N, 2) float32 (x, y) pixels, with scores (N,) descending and descriptors (N, D).
        scores, descriptors: see keypoints.
        global_descriptor: (G,), unit length.

    The geometry of each map is kept once, in the store's schema.
    """

    name: str
    image_size: tuple[int, int]
    score_map: np.ndarray | None = None
    descriptor_map: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    scores: np.ndarray | None = None
    descriptors: np.ndarray | None = None
    global_descriptor: np.ndarray | None = None


def _check(name: str, array: np.ndarray, shape: tuple, dtype) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = tuple("*" if want is None else want for want in shape)
        raise ValueError(
            f"{name}: expected {np.dtype(dtype).name} of shape {wanted}, "
            f"found {array.dtype.name} of shape {array.shape}"
        )
