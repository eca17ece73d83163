"""One image's features: what any network predicts, and all that evaluation scores.

Features files have hloc's layout (Sarlin et al., CVPR 2019), one HDF5 group per image name:
``keypoints`` (N, 2), ``scores`` (N,), ``descriptors`` (D, N), ``global_descriptor`` (G,), and
``image_size``, the (width, height) that keypoints are pixels of. hloc counts pixels as we do.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from ..errors import InputError, damage_as
from .geometry import orient_points, resize_points

__all__ = ["Features", "image_names", "open_hdf5", "read_features", "write_features"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """What an extractor found in one image; N varies from image to image.

    Attributes:
        image_size: (width, height) of the image that the keypoints are pixels of.
        keypoints: (N, 2) float32 (x, y), the center of the top-left pixel at (0, 0).
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


def open_hdf5(path: str | Path, mode: str = "r", advice: str = "") -> h5py.File:
    """An HDF5 file.

    Raises:
        InputError: it is not one, or another process writes it.
    """
    try:
        return h5py.File(path, mode)
    except BlockingIOError as error:
        raise InputError(f"{path}: in use by another process; wait for it") from error
    except OSError as error:
        if error.errno:
            raise
        raise InputError(f"{path}: not an HDF5 file, or damaged ({error}){advice}") from error


def image_names(file: h5py.Group, count: int | None = None) -> list[str]:
    """The names of a features file's images, or of so many that are found first, sorted.

    Raises:
        InputError: the file is damaged.
    """
    names: list[str] = []

    def visit(name: str, item) -> bool | None:
        if isinstance(item, h5py.Group) and {"keypoints", "global_descriptor"} & item.keys():
            names.append(name)
        return True if len(names) == count else None

    with _damage(file):
        file.visititems(visit)
    return sorted(names)


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
    file: h5py.Group, name: str, *, photograph: tuple[tuple[int, int], int] | None = None
) -> Features:
    """Read one image's features, whoever wrote them, by descending score.

    The arrays are those of hloc's layout in any number type; docs/inputs.md lists in which other
    shapes they are taken. Where a value is not finite they are refused.

    Args:
        photograph: the (width, height) of the upright photograph, and the EXIF orientation of its
            file, see ``data.images.stored_orientation``. Keypoints are brought to its pixels, from
            those of another resolution and from those of the stored image, as ``image_size`` says.
            None for a file of ours, whose word is taken.

    Raises:
        InputError: no group of that name, an array that is missing or does not fit the others,
            bytes of which nothing says what they are, or an ``image_size`` that does not fit.
    """
    where = f"{file.file.filename}: image {name}"
    arrays = _read_arrays(file, name)
    place = arrays.get("global_descriptor")
    if place is not None:
        place = _finite(place.squeeze(), 1, f"{where}: global_descriptor")
    keypoints = np.zeros((0, 2), np.float32)
    if "keypoints" in arrays:
        keypoints = _read_keypoints(arrays["keypoints"], where, file.file.filename)
    elif place is None:
        raise InputError(
            f"{where} has no keypoints; found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    scores = _read_scores(arrays, len(keypoints), where)
    descriptors = _read_descriptors(file, arrays, len(keypoints), where)
    size = _read_size(arrays.get("image_size"), where)
    if photograph is not None:
        keypoints = _place(keypoints, size, *photograph, where)
        size = photograph[0]
    elif size is None:
        raise InputError(f"{where} has no image_size; expected the (width, height) of its pixels")
    order = np.argsort(-scores, kind="stable")
    if descriptors is not None:
        descriptors = np.ascontiguousarray(descriptors[order])
    return Features(size, keypoints[order], scores[order], descriptors, place)


PACKED_BYTES = (16, 32, 61, 64)
"""Bytes of a packed descriptor: BRIEF's three lengths, which ORB, BRISK and FREAK share; AKAZE."""
VALUE_BYTES = (128,)
"""Bytes of a descriptor that are numbers: SIFT's, and those that took its place."""
LOOKED_AT = 16
"""Other images of a file that may say how its descriptors lie."""


def _damage(file: h5py.Group):
    return damage_as(InputError, f"{file.file.filename}: damaged", "extract the features anew")


def _read_arrays(file: h5py.Group, name: str) -> dict[str, np.ndarray]:
    """What an image has, without the axis of a batch."""
    with _damage(file):
        group = file.get(name)
        if isinstance(group, h5py.Group):
            found = {k: item[()] for k, item in group.items() if isinstance(item, h5py.Dataset)}
            return {k: a[0] if np.ndim(a) == 3 and len(a) == 1 else a for k, a in found.items()}
    tail = name.rsplit("/", 1)[-1]
    names = image_names(file, 10_000)
    near = next((n for n in names if n.rsplit("/", 1)[-1] == tail), next(iter(names), None))
    there = f"there is {near}" if near else "there is no image"
    raise InputError(
        f"{file.file.filename}: image {name} has no features; {there}, expected a group of the "
        "image's name"
    )


def _finite(array: np.ndarray, axes: int, what: str) -> np.ndarray:
    """Numbers as float32, all finite, of so many axes."""
    if array.dtype.kind not in "fiu" or array.ndim != axes:
        raise InputError(
            f"{what}: {array.dtype} of shape {array.shape}; expected numbers of {axes} axes"
        )
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not (finite := np.isfinite(numbers)).all():
        rows = np.count_nonzero(~finite)
        raise InputError(
            f"{what}: {rows} of {numbers.size} values are not finite; leave such keypoints out, or "
            "extract the image anew"
        )
    return numbers


def _read_keypoints(keypoints: np.ndarray, where: str, path: str) -> np.ndarray:
    if not keypoints.size:
        return np.zeros((0, 2), np.float32)
    if keypoints.ndim != 2 or not 2 <= keypoints.shape[1] <= 6:
        raise InputError(
            f"{where}: keypoints of shape {keypoints.shape}; expected (N, 2), or up to six columns "
            "of which the first two are x and y"
        )
    numbers = _finite(keypoints, 2, f"{where}: keypoints")[:, :2]
    if keypoints.dtype == np.float16 and numbers.max() >= 256:
        _warn_of_steps(path)
    return np.ascontiguousarray(numbers)


@lru_cache
def _warn_of_steps(path: str) -> None:
    _log.warning(
        "%s: keypoints are float16, which has steps of 0.25 pixels from 256 on, of 0.5 from "
        "512, of 1 from 1024; write float32",
        path,
    )


def _read_scores(arrays: dict, count: int, where: str) -> np.ndarray:
    scores = arrays.get("scores", arrays.get("keypoint_scores"))
    if scores is None:
        return np.ones(count, np.float32)
    if scores.ndim > 1 and scores.size == max(scores.shape):
        scores = scores.reshape(-1)
    if scores.shape != (count,) and (scores.size or count):
        raise InputError(
            f"{where}: scores of shape {scores.shape} for {count} keypoints; expected ({count},)"
        )
    return _finite(scores.reshape(-1), 1, f"{where}: scores")


def _read_descriptors(
    file: h5py.Group, arrays: dict[str, np.ndarray], count: int, where: str
) -> np.ndarray | None:
    """(N, D) float32 or bool; None for a detector that does not describe."""
    array = arrays.get("descriptors")
    if "keypoints" not in arrays or (array is None and count):
        return None
    if count == 0:
        if (example := _example(file)) is not None:
            return _to_rows(*example, where)[:0]
        return None if array is None else np.zeros((0, max(array.shape)), np.float32)
    if array.shape == (count, count) and (example := _example(file)):
        others, number = example
        if others.shape[0] == number:
            array = array.T
    return _to_rows(array, count, where)


def _example(file: h5py.Group) -> tuple[np.ndarray, int] | None:
    """Descriptors of the first image whose shape tells how they lie, and how many they are."""
    for name in image_names(file, LOOKED_AT):
        arrays = _read_arrays(file, name)
        if {"keypoints", "descriptors"} <= arrays.keys():
            array, keypoints = arrays["descriptors"], arrays["keypoints"]
            count = len(keypoints) if keypoints.ndim == 2 and keypoints.size else 0
            if count and array.ndim == 2 and len(set(array.shape)) == 2 and count in array.shape:
                return array, count
    return None


def _to_rows(array: np.ndarray, count: int, where: str) -> np.ndarray:
    """Descriptors (D, N) or (N, D) as (N, D) float32 or bool."""
    what = f"{where}: descriptors"
    if array.ndim != 2 or count not in array.shape:
        raise InputError(
            f"{what} of shape {array.shape} for {count} keypoints; expected (D, {count}) or "
            f"({count}, D)"
        )
    array = array.T if array.shape[1] == count else array
    width = array.shape[1]
    if array.dtype == np.uint8 and width not in VALUE_BYTES:
        if array.max() <= 1:
            return array.astype(bool)
        if width in PACKED_BYTES:
            return np.unpackbits(array, axis=1).astype(bool)
        raise InputError(
            f"{what} are {width} bytes, which may be packed bits or numbers; store bits as bool, "
            "numbers as float32"
        )
    return array if array.dtype == np.bool_ else _finite(array, 2, what)


def _read_size(size: np.ndarray | None, where: str) -> tuple[int, int] | None:
    if size is None:
        return None
    flat = np.asarray(size).reshape(-1)
    if flat.shape != (2,) or flat.dtype.kind not in "fiu" or not (flat >= 1).all():
        raise InputError(f"{where}: image_size is {np.asarray(size)}; expected (width, height)")
    return int(flat[0]), int(flat[1])


def _place(
    keypoints: np.ndarray,
    size: tuple[int, int] | None,
    upright: tuple[int, int],
    orientation: int,
    where: str,
) -> np.ndarray:
    """Keypoints (N, 2) of an image of ``size`` in pixels of the upright photograph."""
    stored = upright[::-1] if orientation > 4 else upright
    fits, fits_stored = (size and _have_one_shape(size, of) for of in (upright, stored))
    if orientation != 1 and fits == fits_stored:
        found = "has no image_size" if size is None else f"has image_size {size[0]}x{size[1]}"
        raise InputError(
            f"{where} {found}, which does not tell whether keypoints are pixels of the stored or "
            f"of the upright photograph (EXIF orientation {orientation}); store the photographs "
            "upright and extract them anew"
        )
    if size and not (fits or fits_stored):
        raise InputError(
            f"{where} has image_size {size[0]}x{size[1]}, not of the shape of its photograph, "
            f"{upright[0]}x{upright[1]}; expected features of this very photograph"
        )
    if fits_stored and not fits:
        keypoints = orient_points(resize_points(keypoints, size, stored), stored, orientation)
    elif size and size != upright:
        keypoints = resize_points(keypoints, size, upright)
    if len(keypoints) and (
        keypoints.min() < -2 or (keypoints.max(0) > np.array(upright) + 1).any()
    ):
        raise InputError(
            f"{where} has keypoints from {keypoints.min(0)} to {keypoints.max(0)}, outside the "
            f"photograph of {upright[0]}x{upright[1]}; expected its pixels, or image_size to say "
            "in which they are"
        )
    return keypoints


def _have_one_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other resized, up to the rounding of its sides."""
    (w, h), (width, height) = size, other
    return abs(h - w * height / width) <= 1 + height / width
