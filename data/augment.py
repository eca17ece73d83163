"""Photometric augmentation: the same scene in another light and through another lens."""

import cv2
import numpy as np

__all__ = ["augment_photometric"]


def augment_photometric(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change the light, contrast, sharpness and noise of a gray photograph, not its geometry.

    About half of the photographs each get shading, blur and noise; gamma, contrast and brightness
    change in all of them.

    Args:
        image: (H, W) uint8.
        strength: 0 changes nothing, 1 is strong.

    Returns:
        (H, W) uint8.
    """
    if strength == 0:
        return image
    levels = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.4 * strength))
    contrast = np.exp(rng.normal(0, 0.3 * strength))
    brightness = rng.normal(0, 0.12 * strength)
    levels = (levels - 0.5) * contrast + 0.5 + brightness
    image = cv2.LUT(image, (levels * 255).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        image = _shade(image, rng, strength)
    if rng.random() < 0.5:
        image = _blur(image, rng, strength)
    if rng.random() < 0.5:
        noise = np.empty(image.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, 0, rng.uniform(0, 20 * strength))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image


def _shade(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Light that varies smoothly over the image."""
    coarse = np.exp(rng.normal(0, 0.4 * strength, (3, 4))).astype(np.float32)
    field = cv2.resize(coarse, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.multiply(image, field, dtype=cv2.CV_8U)


def _blur(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Defocus, or a short straight motion of the camera."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), 0.3 + rng.uniform(0, 1.2 * strength))
    length = 1 + rng.uniform(0, 6 * strength)
    angle = rng.uniform(0, np.pi)
    kernel = np.zeros((9, 9), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    for step in np.linspace(-1, 1, 17):
        x, y = np.rint(4 + step * reach).astype(int)
        kernel[y, x] = 1
    return cv2.filter2D(image, -1, kernel / kernel.sum())
