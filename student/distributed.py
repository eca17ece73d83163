"""Training by several processes (``torchrun``): each takes its part of every batch.

What they compute together is what one process computes of the whole batch: gradients are averaged,
and batch normalization sees all of it. Without torchrun nothing here changes anything.
"""

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import TrainingError

__all__ = [
    "any_process",
    "average",
    "average_gradients",
    "join",
    "rank",
    "synchronize_norms",
    "world_size",
]

TIMEOUT = timedelta(hours=6)  # the others wait as long for the first process, which validates


def join(device: torch.device) -> torch.device:
    """Meet the other processes that torchrun started. Returns this one's device."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # What the host itself must know goes by gloo: it waits for the others, not for its GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
        )
        atexit.register(dist.destroy_process_group)
    return device


def rank() -> int:
    """This process's number; the first one, 0, writes files and talks to the user."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def any_process(flag: bool) -> bool:
    """Whether any process says so; all get the same answer."""
    return flag if world_size() == 1 else bool(_sum(torch.tensor(float(flag))))


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, of each element."""
    return values if world_size() == 1 else _sum(values) / world_size()


def average_gradients(*modules: nn.Module) -> None:
    """Replace every gradient by its mean over all processes."""
    if world_size() == 1:
        return
    parameters = [parameter for module in modules for parameter in module.parameters()]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = average(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, values in zip(gradients, averaged.split(sizes), strict=True):
        gradient.copy_(values.view_as(gradient))


def synchronize_norms(module: nn.Module) -> None:
    """Have every batch normalization of a module see the batches of all processes."""
    if world_size() == 1:
        return
    if any(parameter.is_cuda for parameter in module.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncedBatchNorm2d  # which has the same parameters and statistics


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes; torch's own needs CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = world_size() * values.numel() / values.shape[1]
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centered = values - mean[:, None, None]
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, which each of them may differentiate."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return _sum(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _sum(gradient.contiguous())


def _sum(values: Tensor) -> Tensor:
    total = values.clone()
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise TrainingError(
            "another process of this training has ended, its own message says why; the "
            "checkpoints are sound, go on with --resume"
        ) from error
    return total
