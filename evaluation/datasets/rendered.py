"""Renders homography sequences in the HPatches layout from ordinary photographs.

Every view is a virtual camera that looks at a part of one photograph, with a homography of its
own, so that the truth is exact; then come light, color, blur, noise and JPEG of a real camera.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ...data.geometry import Homographies, resize_matrix
from ...data.images import crop_to_shape, read_image, view_through
from ...errors import AlreadyExistsError, InputError
from ...files import beside

__all__ = ["render_sequences"]

FRONTAL = Homographies(scale=(0.75, 0.9), rotation=5, perspective=0.05)
"""How the first view of a sequence is taken."""
SLANTED = Homographies(scale=(0.5, 0.9), rotation=30, perspective=0.3)
"""How the others are, where the viewpoint changes."""


def render_sequences(
    photo_paths: Iterable[str | Path],
    output: str | Path,
    *,
    seed: int,
    count: int,
    size: tuple[int, int] = (640, 480),
    views: int = 5,
) -> list[str]:
    """Render ``count`` sequences, by turns of changing viewpoint and of changing light.

    ``v_*`` has strong geometry under mild light; ``i_*`` keeps the geometry (every homography is
    the identity) under strong light. Each photograph is used once before one is used again. The
    same photographs, seed and arguments give the same files.

    Args:
        photo_paths: color or gray; best larger than ``size``.
        output: the folder to make, in the layout of ``hpatches``; whole or absent.
        size: (width, height) of the images.
        views: images beside image 1; HPatches has 5.

    Returns:
        The names of the sequences, sorted.

    Raises:
        InputError: ``count`` or ``views`` below 1, or no photographs.
        AlreadyExistsError: ``output`` exists.
    """
    photos, output = sorted(Path(path) for path in photo_paths), Path(output)
    if count < 1 or views < 1:
        raise InputError(f"count and views: found {count} and {views}, expected 1 or more of each")
    if not photos:
        raise InputError("no photographs to render from; give at least one")
    if output.exists():
        raise AlreadyExistsError(f"{output} exists already; remove it or name another folder")
    order = np.random.default_rng(seed).permutation(len(photos))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(output)
    try:
        for number in range(count):
            photo, kind = photos[order[number % len(photos)]], "vi"[number % 2]
            rng = np.random.default_rng([seed, number])
            folder = partial / f"{kind}_{number + 1:03d}_{photo.stem}"
            _render_sequence(rng, photo, folder, kind, size, views)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.name for folder in output.iterdir())


def _render_sequence(rng, photo: Path, folder: Path, kind: str, size, views: int) -> None:
    image = crop_to_shape(read_image(photo, channels=3), size)
    # Views are drawn in a base image of their own size, and looked up in the photograph's pixels.
    H_base_to_photo = resize_matrix(size, (image.shape[1], image.shape[0]))
    frontal = FRONTAL.draw(rng, size)
    to_base = [frontal] * (views + 1)
    if kind == "v":
        to_base[1:] = [SLANTED.draw(rng, size) for _ in range(views)]
    strength = 0.35 if kind == "v" else 1.0
    folder.mkdir(parents=True)
    for k, H_view_to_base in enumerate(to_base, start=1):
        view = view_through(
            image,
            H_base_to_photo @ H_view_to_base,
            size,
            interpolation=cv2.INTER_CUBIC,
            border=cv2.BORDER_REFLECT_101,
        )
        view = _expose(rng, view, 0.2 if k == 1 else strength)
        cv2.imwrite(str(folder / f"{k}.ppm"), view[..., ::-1])  # OpenCV writes blue first
        if k > 1:
            H_1_k = np.eye(3) if kind == "i" else np.linalg.inv(H_view_to_base) @ frontal
            np.savetxt(folder / f"H_1_{k}", H_1_k / H_1_k[2, 2], fmt="%.17g")


def _expose(rng: np.random.Generator, view: np.ndarray, strength: float) -> np.ndarray:
    """Another light and another camera: (H, W, 3) uint8 to the same; ``strength`` 0 to 1."""

    def draw(spread: float, shape=None):
        return strength * rng.uniform(-spread, spread, shape)

    height, width = view.shape[:2]
    pixels = (view.astype(np.float32) / 255) ** np.exp(draw(0.7))  # gamma
    pixels = (pixels - 0.5) * np.exp(draw(0.5)) + 0.5 + draw(0.1)  # contrast, brightness
    pixels *= np.exp(draw(0.2, 3))  # color of the light
    shading = np.exp(draw(0.5, (3, 4))).astype(np.float32)
    pixels *= cv2.resize(shading, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    pixels = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 0.3 + abs(draw(1.0)))
    pixels += abs(draw(0.03)) * rng.standard_normal(pixels.shape, np.float32)
    exposed = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(95 - abs(draw(55)))]
    return cv2.imdecode(cv2.imencode(".jpg", exposed, quality)[1], cv2.IMREAD_COLOR)
