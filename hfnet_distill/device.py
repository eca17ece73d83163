"""The device a network runs on and the precision it computes in."""

import torch

from .errors import InputError

__all__ = ["autocast", "choose_device", "choose_precision"]

BFLOAT16_SINCE = (8, 0)
"""Compute capability: older GPUs claim to support bfloat16 but emulate it."""


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names.

    Raises:
        InputError: a name that torch does not know, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """float32 or bfloat16; ``auto`` takes bfloat16 if the device multiplies it faster."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE
    else:
        fast = torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes in the precision of ``choose_precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
