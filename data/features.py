"""One image's features: what any network predicts, and all that evaluation scores."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError

__all__ = ["Features"]


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
        InputError: an array of another shape or dtype, or scores that are not in order.
    """

    image_size: tuple[int, int]
    keypoints: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray | None = None
    global_descriptor: np.ndarray | None = None

    @classmethod
    def without_keypoints(
        cls, image_size: tuple[int, int], global_descriptor: np.ndarray
    ) -> "Features":
        """The features of an image that is only described as a whole."""
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        return cls(image_size, *nothing, global_descriptor=global_descriptor)

    def __post_init__(self):
        n = len(self.keypoints)
        _check("keypoints", self.keypoints, (n, 2), np.float32)
        _check("scores", self.scores, (n,), np.float32)
        if n > 1 and (np.diff(self.scores) > 0).any():
            raise InputError("scores: not in descending order; sort keypoints by score")
        if self.descriptors is not None:
            dtype = np.bool_ if self.descriptors.dtype == np.bool_ else np.float32
            _check("descriptors", self.descriptors, (n, None), dtype)
        if self.global_descriptor is not None:
            _check("global_descriptor", self.global_descriptor, (None,), np.float32)


def _check(name: str, array: np.ndarray, shape: tuple, dtype) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = tuple("*" if want is None else want for want in shape)
        raise InputError(
            f"{name}: expected {np.dtype(dtype).name} of shape {wanted}, "
            f"found {array.dtype.name} of shape {array.shape}"
        )
