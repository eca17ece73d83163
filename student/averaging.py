"""What a training's result is made of: averaged weights, and statistics that belong to them."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import compress

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "estimate_norms"]

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class WeightAverage:
    """An exponential moving average of a student's weights and statistics.

    Polyak and Juditsky, 1992; it is ahead of the weights that training itself has, as long as
    their learning rate is not small.

    Args:
        decay: the share of the average that a step keeps, less in the first steps.

    Attributes:
        student: with the averaged weights.
    """

    def __init__(self, student: nn.Module, decay: float):
        self.decay = decay
        self.student = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Take in the weights after so many steps, the first being 1."""
        decay = min(self.decay, step / (10 + step))
        kept, new = ([*module.state_dict().values()] for module in (self.student, student))
        real = [tensor.is_floating_point() for tensor in kept]
        torch._foreach_lerp_([*compress(kept, real)], [*compress(new, real)], 1 - decay)
        for tensor, value, averaged in zip(kept, new, real, strict=True):
            if not averaged:
                tensor.copy_(value)


@torch.no_grad()
def estimate_norms(
    student: nn.Module, batches: Iterable[Tensor], context: AbstractContextManager
) -> None:
    """Set the statistics of batch normalizations to their means over some batches.

    Averaged weights never saw a batch: their own statistics are not the average of statistics
    (Izmailov et al., Averaging Weights, UAI 2018).

    Args:
        batches: of images (B, 1, H, W) as the student takes them.
        context: in which the student runs, such as ``device.autocast``; it can be entered again.
    """
    student.train()  # what is frozen stays in evaluation
    norms = [
        module
        for module in student.modules()
        if isinstance(module, BATCH_NORMS) and module.training
    ]
    momenta = [norm.momentum for norm in norms]
    for number, images in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all so far
        with context:
            student(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.eval()
