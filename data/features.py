"""One image's features: what any network predicts, and all that evaluation scores.

Features files have hloc's layout (Sarlin et al., CVPR 2019), one HDF5 group per image name:
``keypoints`` (N, 2), ``scores`` (N,), ``descriptors`` (D, N), ``global_descriptor`` (G,), and
``image_size``, the (width, height) that keypoints are pixels of. hloc counts pixels as we do.
"""

from dataclasses import dataclass

import h5py
import numpy as np

from ..errors import InputError

__all__ = ["Features", "read_features", "write_features"]


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


def write_features(file: h5py.Group, name: str, features: Features) -> h5py.Group:
    """Write one image's features as the group ``name``, in the types that they have."""
    group = file.create_group(name)
    group["image_size"] = np.array(features.image_size)
    group["keypoints"], group["scores"] = features.keypoints, features.scores
    if features.descriptors is not None:
        group["descriptors"] = features.descriptors.T
    if features.global_descriptor is not None:
        group["global_descriptor"] = features.global_descriptor
    return group


def read_features(
    file: h5py.Group, name: str, *, image_size: tuple[int, int] | None = None
) -> Features:
    """Read one image's features, in any order of scores and any float type, by descending score.

    Args:
        image_size: (width, height) that keypoints are pixels of where the file does not say so.

    Raises:
        InputError: no group of that name, an array that is missing or does not fit the others.
    """
    if name not in file:
        raise InputError(
            f"{file.file.filename}: has no features of image {name}; expected a group of that "
            "name, as hloc writes it"
        )
    where = f"{file.file.filename}: image {name}"
    group = file[name]
    arrays = {key: item[()] for key, item in group.items() if isinstance(item, h5py.Dataset)}
    if "keypoint_scores" in arrays:
        arrays.setdefault("scores", arrays["keypoint_scores"])
    if "image_size" in arrays:
        image_size = tuple(arrays["image_size"].tolist())
    elif image_size is None:
        raise InputError(f"{where} has no image_size; expected the (width, height) of its pixels")
    place = arrays.get("global_descriptor")
    place = None if place is None else place.astype(np.float32)
    if place is not None and "keypoints" not in arrays:
        return Features.without_keypoints(image_size, place)
    if missing := [key for key in ("keypoints", "scores") if key not in arrays]:
        raise InputError(f"{where} has no {missing[0]}")
    keypoints, scores = arrays["keypoints"], arrays["scores"].astype(np.float32)
    descriptors = arrays.get("descriptors", np.zeros((0, len(scores)))).T
    if keypoints.shape != (len(scores), 2) or len(descriptors) != len(scores):
        raise InputError(
            f"{where} has keypoints of shape {keypoints.shape}, scores of {scores.shape} and "
            f"descriptors of {descriptors.T.shape}; expected (N, 2), (N,) and (D, N)"
        )
    order = np.argsort(-scores, kind="stable")
    binary = descriptors.dtype in (np.uint8, np.bool_)
    return Features(
        image_size,
        keypoints[order].astype(np.float32),
        scores[order],
        np.ascontiguousarray(descriptors[order]).astype(bool if binary else np.float32)
        if "descriptors" in arrays
        else None,
        place,
    )
