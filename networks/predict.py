"""The student's maps -> Features."""

import numpy as np
import torch
from torch import Tensor

from ..data.features import Features
from ..data.geometry import sample_descriptors
from ..data.keypoints import KeypointChoice
from .hfnet import HFNet, HFNetOutput, score_map

__all__ = ["describe", "predict"]


@torch.inference_mode()
def predict(student: HFNet, image: Tensor, choice: KeypointChoice) -> Features:
    """The features of one image.

    Args:
        image: (1, H, W) float32 in [0, 1].
        choice: how keypoints are chosen from the score map.

    Returns:
        Keypoints in pixels of ``image``, best first, with unit descriptors, and the global
        descriptor of a student that has one.
    """
    output = _forward(student, image)
    keypoints, scores = choice(score_map(output.score_logits)[0].cpu().numpy())
    place = output.global_descriptor
    return Features(
        image_size=(image.shape[2], image.shape[1]),
        keypoints=keypoints,
        scores=scores,
        descriptors=sample_descriptors(output.descriptor_map[0], keypoints),
        global_descriptor=None if place is None else place[0].cpu().numpy(),
    )


@torch.inference_mode()
def describe(student: HFNet, image: Tensor, keypoints: np.ndarray) -> np.ndarray:
    """The descriptors (N, D) float32 of keypoints (N, 2) float32 that others found in an image."""
    return sample_descriptors(_forward(student, image).descriptor_map[0], keypoints)


def _forward(student: HFNet, image: Tensor) -> HFNetOutput:
    return student(image[None].to(next(student.parameters()).device))
