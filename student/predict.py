"""The student's maps -> Features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from data.geometry import CELL_MAP, sample_map
from data.keypoints import KeypointChoice
from data.records import Features
from student.hfnet import HFNet, score_map

__all__ = ["predict"]


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
    output = student(image[None].to(next(student.parameters()).device))
    keypoints, scores = choice(score_map(output.score_logits)[0].cpu().numpy())
    points = torch.from_numpy(keypoints).to(output.descriptor_map.device)
    descriptors = sample_map(output.descriptor_map, points[None], CELL_MAP)[0]
    place = output.global_descriptor
    return Features(
        image_size=(image.shape[2], image.shape[1]),
        keypoints=keypoints,
        scores=scores,
        descriptors=F.normalize(descriptors, dim=1).cpu().numpy(),
        global_descriptor=None if place is None else place[0].cpu().numpy(),
    )
