"""Rigid motions as (4, 4) matrices."""

import numpy as np

__all__ = ["rotation_angle", "to_4x4"]


def to_4x4(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) and translations (..., 3) as motions (..., 4, 4)."""
    T = np.zeros((*t.shape[:-1], 4, 4))
    T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = R, t, 1
    return T


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Degrees (...) of rotations (..., 3, 3); exact for small ones, unlike the arc cosine."""
    twice_axis = (R - R.swapaxes(-1, -2))[..., [2, 0, 1], [1, 2, 0]]
    trace = np.trace(R, axis1=-2, axis2=-1)
    return np.degrees(np.arctan2(np.linalg.norm(twice_axis, axis=-1), trace - 1))
