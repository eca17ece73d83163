"""RootSIFT of OpenCV: keypoints and descriptors that need no weights.

Lowe: Distinctive Image Features from Scale-Invariant Keypoints, IJCV 2004; Arandjelovic and
Zisserman: Three Things Everyone Should Know to Improve Object Retrieval, CVPR 2012.
"""

import cv2
import numpy as np

from ..data.features import Features
from ..data.keypoints import KeypointChoice, thin_keypoints

__all__ = ["ROOTSIFT_DIM", "root_sift"]

ROOTSIFT_DIM = 128


def root_sift(image: np.ndarray, choice: KeypointChoice) -> Features:
    """The keypoints of a gray image (H, W) uint8, between pixels, thinned out like any other's."""
    # Without it OpenCV's keypoints lie a quarter of a pixel off.
    detector = cv2.SIFT_create(enable_precise_upscale=True)
    found, descriptors = detector.detectAndCompute(image, None)
    size = (image.shape[1], image.shape[0])
    if not found:
        descriptors = np.zeros((0, ROOTSIFT_DIM), np.float32)
    keypoints = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
    scores = np.array([point.response for point in found], np.float32)
    kept = thin_keypoints(keypoints, scores, size, choice)
    return Features(size, keypoints[kept], scores[kept], _take_root(descriptors[kept]))


def _take_root(descriptors: np.ndarray) -> np.ndarray:
    """(N, 128) -> the square root of each, taken as a distribution, of unit length."""
    total = descriptors.sum(axis=1, keepdims=True)
    return np.sqrt(descriptors / np.maximum(total, 1e-12)).astype(np.float32)
