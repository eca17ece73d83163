"""Photographs: found, named, decoded upright, brought to size, split for validation."""

import hashlib
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ..errors import (
    AlreadyExistsError,
    InputError,
    NotFoundError,
    UnreadablePhotographError,
)
from .geometry import resize_matrix, warp_points

__all__ = [
    "Look",
    "check_image",
    "crop_to_shape",
    "fit_image",
    "list_images",
    "load_photograph",
    "natural_order",
    "orient_image",
    "read_image",
    "resize_longest",
    "resize_shorter",
    "shrink_for_view",
    "split_names",
    "stored_orientation",
    "to_images",
    "to_tensor",
    "view_through",
    "write_pictures",
]

SUFFIXES = {
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pam", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp"),
}
"""What OpenCV decodes, without .hdr, .pfm and alike, which hold light or depth and no picture."""

MAX_PIXELS = 2**30
"""Of one photograph, for OpenCV to decode it, unless ``LIMIT`` says otherwise."""
LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"

_log = logging.getLogger(__name__)


def list_images(folder: str | Path) -> list[str]:
    """The names of all photographs below a folder: relative POSIX paths, sorted.

    A photograph is a file with one of ``SUFFIXES``, in capitals or not. Links are followed, each
    folder is entered once, and hidden files and folders are passed over. Whatever else there is, is
    counted in one logged line: files of other kinds, dangling links, folders that may not be read,
    names that are not UTF-8.

    Raises:
        NotFoundError: the folder is missing or holds no photograph.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder of photographs")
    kinds = _walk(folder)
    names = kinds.pop("photograph", [])
    kinds.pop("hidden", None)
    said = _count(kinds)
    if not names:
        raise NotFoundError(
            f"{folder}: no photographs found{said and f', {said}'}; expected files ending in "
            f"{' '.join(sorted(SUFFIXES))}"
        )
    if said:
        _log.warning("%s: %s", folder, said)
    return sorted(names)


def natural_order(name: str) -> list:
    """A key by which numbered names sort as one counts: ``5.png`` before ``10.png``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _walk(folder: Path) -> dict[str, list[str]]:
    """What there is below a folder: kind -> names."""
    kinds: dict[str, list[str]] = {}
    entered = set()
    # Links come last, so that a photograph bears the name of the folder in which it lies.
    folders, links = [""], []
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder / prefix)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            kinds.setdefault("unreadable", []).append(prefix or "./")
            continue
        for entry in entries:
            name = prefix + entry.name
            kind = _kind_of(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(f"{name}/")
            else:
                kinds.setdefault(kind, []).append(name)
    return kinds


def _kind_of(entry: os.DirEntry) -> str:
    """photograph, folder, hidden, or why it is left out."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        entry.name.encode()
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "dangling" if entry.is_symlink() else "special"
    except UnicodeEncodeError:
        return "not UTF-8"
    except OSError:  # a link to itself, or to where one may not look
        return "dangling"
    suffix = Path(entry.name).suffix.lower()
    return "photograph" if suffix in SUFFIXES else suffix or "without a suffix"


def _count(left_out: dict[str, list[str]]) -> str:
    """``12 files left out: 9 .heic, 3 unreadable (a/, ...)``; empty where nothing is."""
    if not left_out:
        return ""
    parts = []
    for reason, names in sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0])):
        first = os.fsencode(names[0]).decode(errors="backslashreplace")
        named = f" ({first}{', ...' if len(names) > 1 else ''})"
        parts.append(f"{len(names)} {reason}{'' if reason[0] == '.' else named}")
    total = sum(map(len, left_out.values()))
    return f"{total} file{'s' if total > 1 else ''} left out: {', '.join(parts)}"


def read_image(path: str | Path, *, channels: int, upright: bool = True) -> np.ndarray:
    """Decode a photograph, upright as its EXIF orientation says; of several pages the first.

    Deeper files are brought to 8 bits by their range: 65535 of 16-bit ones, what the header of a
    PGM, PPM or PAM calls white, and 1 of floating point ones that do not exceed it, else 255.

    Args:
        channels: 1 for gray, 3 for colour.
        upright: False leaves the pixels as they lie in the file, whatever its orientation says.

    Returns:
        uint8, (H, W) for gray or (H, W, 3) in the order red, green, blue.

    Raises:
        NotFoundError: there is no such file.
        UnreadablePhotographError: it may not be read, cannot be decoded, breaks off, is larger than
            ``MAX_PIXELS``, or has values that are not those of a picture.
    """
    data = _read(path)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = _imdecode(path, data, flag if upright else flag | cv2.IMREAD_IGNORE_ORIENTATION)
    white, is_pam = _white(data), data[:2] == b"P7"
    if white or is_pam or image is None:
        # TIFFs of 10, 12 and 14 bits and of floating point numbers are decoded only as they are.
        raw = _imdecode(path, data, cv2.IMREAD_UNCHANGED)
        if raw is None:
            raise UnreadablePhotographError(
                f"{path}: not a readable photograph ({len(data)} bytes); replace it or remove it"
            )
        if is_pam and raw.ndim == 3 and raw.shape[2] > 2:  # OpenCV leaves them red first
            raw = raw[..., 2::-1]
        image = _to_channels(_to_8_bits(path, raw, white), channels)
    return image


class Look(NamedTuple):
    """What a look at a photograph tells.

    Attributes:
        size: (width, height), each up to 7 pixels too many or too few.
        brightest: the largest gray value, 0 to 255, about.
    """

    size: tuple[int, int]
    brightest: int


def check_image(path: str | Path) -> Look:
    """See that a photograph decodes, at an eighth of its size where the format allows.

    Raises:
        NotFoundError, UnreadablePhotographError: as ``read_image``.
    """
    image = _imdecode(path, _read(path), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    if image is None:  # also what is less than 8 pixels wide
        image = read_image(path, channels=1)
        return Look((image.shape[1], image.shape[0]), int(image.max()))
    height, width = image.shape
    if 64 * width * height > MAX_PIXELS and LIMIT not in os.environ:
        raise _too_large(path)
    return Look((8 * width, 8 * height), int(image.max()))


def stored_orientation(path: str | Path) -> int:
    """The EXIF orientation, 1 to 8, by which ``read_image`` turned a photograph upright.

    Raises:
        NotFoundError, UnreadablePhotographError: as ``read_image``.
    """
    data = _read(path)
    upright = _imdecode(path, data, cv2.IMREAD_GRAYSCALE)
    stored = _imdecode(path, data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if upright is None or stored is None:
        return 1
    return next((o for o in range(1, 9) if np.array_equal(orient_image(stored, o), upright)), 1)


def orient_image(image: np.ndarray, orientation: int) -> np.ndarray:
    """A stored image (H, W, ...) turned upright as an EXIF orientation, 1 to 8, demands."""
    if orientation > 4:
        image = image.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    left = orientation in (2, 3, 6, 7)
    return image[:: -1 if down else 1, :: -1 if left else 1]


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such photograph") from error
    except PermissionError as error:
        raise UnreadablePhotographError(
            f"{path}: may not be read; change its permissions or remove it"
        ) from error


def _imdecode(path: str | Path, data: bytes, flag: int) -> np.ndarray | None:
    """What OpenCV makes of a file, or None."""
    # OpenCV writes beyond the end of an image that it is to make of a gray PAM with alpha.
    if not data or (flag != cv2.IMREAD_UNCHANGED and _PAM_WITH_ALPHA.match(data)):
        return None
    if _is_cut_off(data):
        raise UnreadablePhotographError(
            f"{path}: a JPEG that breaks off after {len(data)} bytes, not a readable photograph; "
            "replace it or remove it"
        )
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:  # some decoders raise where others return nothing
        if "CV_IO_MAX_IMAGE" in str(error):
            raise _too_large(path) from error
        return None


def _too_large(path: str | Path) -> UnreadablePhotographError:
    return UnreadablePhotographError(
        f"{path}: too large, above {os.environ.get(LIMIT, MAX_PIXELS)} pixels; shrink it, or set "
        f"{LIMIT} to a larger number"
    )


_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""A JPEG's marker: not a stuffed zero and not one of those that merely restart the decoder."""


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker: OpenCV would fill the missing part with gray.

    Phones append videos behind it, and thumbnails within segments have one of their own.
    """
    # Most end with the marker; to look for it takes half as long as to decode the photograph.
    if data[:2] != b"\xff\xd8" or data[-2:] == b"\xff\xd9":
        return False
    at = 2
    while marker := _MARKER.search(data, at):
        at, code = marker.end(), marker[0][-1]
        if code == 0xD9:
            return False
        at += int.from_bytes(data[at : at + 2], "big")
    return True


_PNM = re.compile(rb"P[2356]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)")
_PAM = re.compile(rb"P7\n(?:.*\n)*?MAXVAL\s+(\d+)")
_PAM_WITH_ALPHA = re.compile(rb"P7\n(?:.*\n)*?DEPTH\s+2\s")


def _white(data: bytes) -> int | None:
    """The value of white that a Netpbm header names, where OpenCV does not heed it."""
    match = _PNM.match(data) or _PAM.match(data)
    white = int(match[match.lastindex]) if match else 0
    is_text = data[:2] in (b"P2", b"P3")  # of which OpenCV scales those of 8 bits, and no others
    return None if white in (0, 255, 65535) or (is_text and white < 256) else white


def _to_8_bits(path: str | Path, raw: np.ndarray, white: int | None) -> np.ndarray:
    """Pixels of any kind as uint8."""
    if raw.dtype == np.uint8 and not white:
        return raw
    if raw.dtype.kind == "f":
        if not np.isfinite(raw).all() or raw.min() < 0 or raw.max() > 255:
            raise UnreadablePhotographError(
                f"{path}: floating point values from {raw.min():g} to {raw.max():g}; expected a "
                "photograph with values from 0 to 1, or from 0 to 255"
            )
        white = 255 if raw.max() > 1 else 1
    elif raw.dtype not in (np.uint8, np.uint16):
        raise UnreadablePhotographError(
            f"{path}: values of {raw.dtype}, of which nothing says how bright they are; store it "
            "with 8 or 16 bits"
        )
    scaled = raw.astype(np.float32) * (255 / (white or 65535))
    return np.rint(np.minimum(scaled, 255)).astype(np.uint8)


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """OpenCV's uint8 pixels, gray or blue, green, red and perhaps alpha, as ``read_image``'s."""
    if image.ndim == 3 and image.shape[2] == 2:  # gray and alpha
        image = image[..., 0]
    if image.ndim == 2:
        return image if channels == 1 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), code)


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


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Decoded photographs as a network takes them, made on the device that they are on.

    Args:
        pixels: (B, H, W) gray or (B, H, W, 3) red, green, blue, uint8.

    Returns:
        (B, 1 or 3, H, W) float32 in [0, 1], what ``to_tensor`` gives to the bit.
    """
    planes = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    # For a number of Python's a GPU multiplies by its reciprocal, which is rounded.
    return planes.float() / torch.full((), 255.0, device=pixels.device)


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


def shrink_for_view(
    full: tuple[int, int], H_view_to_image: np.ndarray, size: tuple[int, int]
) -> tuple[tuple[int, int], np.ndarray]:
    """The size at which an image is about as fine as a view, at most its own, and its homography.

    Args:
        full, size: (width, height) of the image and of the view.

    Returns:
        (width, height) of the shrunk image, ``H_view_to_shrunk``.
    """
    centre = np.array([size[0] / 2, size[1] / 2])
    steps = warp_points([centre, centre + [1, 0], centre + [0, 1]], H_view_to_image)
    scale = math.sqrt(abs(np.linalg.det(steps[1:] - steps[0])))  # pixels of the image
    if scale <= 1:
        return full, H_view_to_image
    shrunk = tuple(max(1, round(side / scale)) for side in full)
    return shrunk, resize_matrix(full, shrunk) @ H_view_to_image


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
    shrunk, H_view_to_image = shrink_for_view(full, H_view_to_image, size)
    if shrunk != full:
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
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


def write_pictures(pictures: Iterable[np.ndarray], output: Path, name: str) -> int:
    """Write pictures as ``name_0000.png``, ... and return how many; of none, no folder.

    The folder appears when all are written. Until then it is hidden: one that a killed process
    leaves in a collection of photographs is none of them.

    Args:
        pictures: (H, W, 3) uint8, red first.

    Raises:
        InputError: one cannot be written.
        AlreadyExistsError: ``output`` exists.
    """
    if output.exists():
        raise AlreadyExistsError(f"{output} exists already; remove it or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, count = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)), 0
    try:
        for picture in pictures:
            written = partial / f"{name}_{count:04d}.png"
            if not cv2.imwrite(str(written), picture[..., ::-1]):  # blue first
                raise InputError(f"{output}: cannot write a picture; is the disk full?")
            count += 1
        if count:
            partial.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count
