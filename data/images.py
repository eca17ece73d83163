"""Photographs: found, named, decoded upright, brought to size, split for validation."""

import contextlib
import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError, UnreadablePhotographError
from .geometry import resize_matrix, warp_points

__all__ = [
    "check_image",
    "crop_to_shape",
    "fit_image",
    "list_images",
    "load_photograph",
    "read_image",
    "resize_longest",
    "resize_shorter",
    "split_names",
    "to_tensor",
    "view_through",
]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(folder: str | Path) -> list[str]:
    """The names of all photographs below a folder: relative POSIX paths, sorted; hidden ones not.

    Raises:
        FileNotFoundError: the folder is missing or holds no photograph.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of photographs")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    names = [name for name in names if not name.startswith(".") and "/." not in name]
    if not names:
        raise FileNotFoundError(
            f"{folder}: no photographs found; expected files ending in {' '.join(sorted(SUFFIXES))}"
        )
    return names


def read_image(path: str | Path, *, channels: int) -> np.ndarray:
    """Decode a photograph, upright as its EXIF orientation says.

    Args:
        channels: 1 for gray, 3 for colour.

    Returns:
        uint8, (H, W) for gray or (H, W, 3) in the order red, green, blue.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadablePhotographError: it cannot be decoded, or is a JPEG that breaks off.
    """
    return _decode(path, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)


def check_image(path: str | Path) -> tuple[int, int]:
    """See that a photograph decodes, at an eighth of its size where the format allows.

    Returns:
        (width, height), each up to 7 pixels too many or too few.

    Raises:
        FileNotFoundError, UnreadablePhotographError: as ``read_image``.
    """
    height, width = _decode(path, cv2.IMREAD_REDUCED_GRAYSCALE_8).shape
    return 8 * width, 8 * height


def _decode(path: str | Path, flag: int) -> np.ndarray:
    data = Path(path).read_bytes()
    image = None
    if data and not _is_cut_off(data):
        # Some decoders raise where others return nothing.
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise UnreadablePhotographError(
            f"{path}: not a readable photograph ({len(data)} bytes); replace it or remove it"
        )
    return image


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker: OpenCV would fill the missing part with gray."""
    return data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a uint8 image to ``size`` (width, height): central crop to its shape, then resize."""
    return _resize(crop_to_shape(image, size), size)


def load_photograph(path: str | Path, size: tuple[int, int], *, channels: int) -> np.ndarray:
    """A photograph as a teacher sees it: decoded upright, brought to ``size`` (width, height)."""
    return fit_image(read_image(path, channels=channels), size)


def to_tensor(image: np.ndarray, channels: int) -> torch.Tensor:
    """An image as a network takes it.

    Args:
        image: (H, W) gray or (H, W, 3) red, green, blue, uint8.
        channels: 1 for a network that sees gray, 3 for one that sees colours.

    Returns:
        (channels, H, W) float32 in [0, 1].

    Raises:
        InputError: an array of another kind.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise InputError(
            f"an image of shape {image.shape} and type {image.dtype}: expected (H, W) gray or "
            "(H, W, 3) red, green, blue in uint8"
        )
    if image.ndim == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    planes = torch.from_numpy(np.ascontiguousarray(image))
    planes = planes[None] if image.ndim == 2 else planes.permute(2, 0, 1)
    return (planes.float() / 255).expand(channels, -1, -1)


def crop_to_shape(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest central part of an image with the shape of ``size``, to the pixel."""
    height, width = image.shape[:2]
    scale = min(width / size[0], height / size[1])
    crop_width, crop_height = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    x, y = (width - crop_width) // 2, (height - crop_height) // 2
    return image[y : y + crop_height, x : x + crop_width]


def resize_longest(image: np.ndarray, longest: int) -> np.ndarray:
    """Resize a uint8 image so that its longest side has ``longest`` pixels; 0 changes nothing."""
    height, width = image.shape[:2]
    if longest == 0 or max(width, height) == longest:
        return image
    scale = longest / max(width, height)
    return _resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))


def resize_shorter(image: np.ndarray, shorter: int) -> np.ndarray:
    """Resize a uint8 image so that its shorter side has ``shorter`` pixels."""
    height, width = image.shape[:2]
    return resize_longest(image, round(shorter / min(width, height) * max(width, height)))


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] < image.shape[1]
    # cv2's resize keeps pixel areas: the convention of data/geometry.py.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def view_through(
    image: np.ndarray,
    H_view_to_image: np.ndarray,
    size: tuple[int, int],
    *,
    interpolation: int = cv2.INTER_LINEAR,
    border: int = cv2.BORDER_CONSTANT,
) -> np.ndarray:
    """What a camera of ``size`` (width, height) sees of an image through a homography.

    An image finer than the view is first shrunk to the view's scale: warping reads only a few
    pixels of it for each of the view's, and fine texture would alias.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        interpolation, border: cv2's, of the warp.
    """
    full = (image.shape[1], image.shape[0])
    centre = np.array([size[0] / 2, size[1] / 2])
    steps = warp_points([centre, centre + [1, 0], centre + [0, 1]], H_view_to_image)
    scale = math.sqrt(abs(np.linalg.det(steps[1:] - steps[0])))  # pixels of the image
    if scale > 1:
        shrunk = tuple(max(1, round(side / scale)) for side in full)
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
        H_view_to_image = resize_matrix(full, shrunk) @ H_view_to_image
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, H_view_to_image, size, flags=flags, borderMode=border)


def split_names(names: list[str], validation: float) -> tuple[list[str], list[str]]:
    """Split names into training and validation by a hash of each name.

    A name stays on its side whatever other photographs come or go.

    Args:
        validation: the share kept for validation, 0 to 1; any share above 0 keeps at least one.

    Returns:
        (training, validation), each in the order given.
    """

    def draw(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    held_out = {name for name in names if draw(name) < validation}
    if not held_out and validation > 0 and len(names) > 1:
        held_out = {min(names, key=draw)}
    return [n for n in names if n not in held_out], [n for n in names if n in held_out]
