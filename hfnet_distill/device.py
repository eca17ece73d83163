"""The device a network runs on and the precision it computes in."""

import torch

from .errors import InputError

__all__ = ["autocast", "choose_device", "choose_precision"]

FLOAT16_SINCE, BFLOAT16_SINCE = (7, 0), (8, 0)
"""Compute capabilities; older GPUs multiply float16 no faster, and only emulate bfloat16."""


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names.

    From then on float32 means float32 on GPUs as well: TF32 is off.

    Raises:
        InputError: a name that torch does not know, or a device that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs"
            )
        if hasattr(torch.backends.cudnn, "conv"):
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            torch.backends.cudnn.conv.fp32_precision = "ieee"
        else:  # before torch 2.9
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


def choose_precision(name: str, device: torch.device, *, training: bool = False) -> str:
    """float32, float16 or bfloat16; ``auto`` takes what the device multiplies fastest.

    On a GPU that is float16 for a frozen network, and bfloat16 for one in training, whose gradients
    are beyond the range of float16.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "bfloat16" if supported else "float32"
    capability = torch.cuda.get_device_capability(device)
    if training:
        return "bfloat16" if capability >= BFLOAT16_SINCE else "float32"
    return "float16" if capability >= FLOAT16_SINCE else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in the precision of ``choose_precision``."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")
