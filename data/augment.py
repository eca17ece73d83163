"""Photometric augmentation: the same scene in another light and through another lens."""

from dataclasses import dataclass, field

import cv2
import numpy as np

__all__ = ["KERNEL", "Photometric", "augment_photometric"]

KERNEL = 11
"""Pixels of the largest blur's side."""


@dataclass(frozen=True)
class Photometric:
    """What is changed in a photograph, in this order; the defaults change nothing.

    Attributes:
        levels: (256,) uint8, the new gray values of the old ones.
        shading: (3, 4) float32, factors between which light varies smoothly.
        defocus: standard deviation of a Gaussian in pixels.
        motion: (9, 9) float32, the kernel of a motion of the camera, of sum 1.
        noise: standard deviation in gray values.
        seed: of the noise.
    """

    levels: np.ndarray = field(default_factory=lambda: np.arange(256, dtype=np.uint8))
    shading: np.ndarray | None = None
    defocus: float = 0.0
    motion: np.ndarray | None = None
    noise: float = 0.0
    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float) -> "Photometric":
        """Random changes of a strength, 0 to 1; see ``augment_photometric``."""
        if strength == 0:
            return cls()
        levels = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.4 * strength))
        contrast = np.exp(rng.normal(0, 0.3 * strength))
        brightness = rng.normal(0, 0.12 * strength)
        levels = (levels - 0.5) * contrast + 0.5 + brightness
        drawn = {"levels": (levels * 255).clip(0, 255).astype(np.uint8)}
        if rng.random() < 0.5:
            drawn["shading"] = np.exp(rng.normal(0, 0.4 * strength, (3, 4))).astype(np.float32)
        if rng.random() < 0.5:
            if rng.random() < 0.5:
                drawn["defocus"] = 0.3 + rng.uniform(0, 1.2 * strength)
            else:
                drawn["motion"] = _straight(1 + rng.uniform(0, 6 * strength), rng.uniform(0, np.pi))
        if rng.random() < 0.5:
            drawn["seed"] = int(rng.integers(2**31))
            drawn["noise"] = rng.uniform(0, 20 * strength)
        return cls(**drawn)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The changed photograph, (H, W) uint8, of one like it."""
        image = cv2.LUT(image, self.levels)
        if self.shading is not None:
            field = cv2.resize(self.shading, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
            image = cv2.multiply(image, field, dtype=cv2.CV_8U)
        if self.defocus:
            image = cv2.GaussianBlur(image, (0, 0), self.defocus)
        if self.motion is not None:
            image = cv2.filter2D(image, -1, self.motion)
        if self.noise:
            noise = np.empty(image.shape, np.int16)
            cv2.setRNGSeed(self.seed)
            cv2.randn(noise, 0, self.noise)
            image = cv2.add(image, noise, dtype=cv2.CV_8U)
        return image

    def kernel(self) -> np.ndarray:
        """Either blur, (KERNEL, KERNEL) float32 of sum 1; a single 1 where there is none."""
        blur = np.ones((1, 1)) if self.motion is None else self.motion
        if self.defocus:
            line = cv2.getGaussianKernel(round(6 * self.defocus + 1) | 1, self.defocus)
            blur = line * line.T
        return np.pad(blur, (KERNEL - len(blur)) // 2).astype(np.float32)


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
    return image if strength == 0 else Photometric.draw(rng, strength)(image)


def _straight(length: float, angle: float) -> np.ndarray:
    """The kernel (9, 9) of a motion over so many pixels, in a direction (radians)."""
    kernel = np.zeros((9, 9), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    for step in np.linspace(-1, 1, 17):
        x, y = np.rint(4 + step * reach).astype(int)
        kernel[y, x] = 1
    return kernel / kernel.sum()
