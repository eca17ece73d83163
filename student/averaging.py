"""What a training's result is made of: averaged weights, and statistics that belong to them."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "estimate_norms"]


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
        for kept, new in zip(
            self.student.state_dict().values(), student.state_dict().values(), strict=True
        ):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


@torch.no_grad()
def estimate_norms(
    student: nn.Module,
    images: Iterable[Tensor],
    count: int,
    *,
    context: AbstractContextManager | None = None,
) -> None:
    """Set the statistics of batch normalizations to their means over some batches.

    Averaged weights never saw a batch: their own statistics are not the average of statistics
    (Izmailov et al., Averaging Weights, UAI 2018).

    Args:
        images: batches (B, 1, H, W) as the student takes them.
        count: how many of them are looked at.
        context: in which the student runs, such as ``device.autocast``; it can be entered again.
    """
    student.train()  # what is frozen stays in evaluation
    norms = [
        module
        for module in student.modules()
        if isinstance(module, nn.BatchNorm2d) and module.training
    ]
    momenta = [norm.momentum for norm in norms]
    for number, batch in enumerate(islice(images, count), start=1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all so far
        with context or nullcontext():
            student(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.eval()
