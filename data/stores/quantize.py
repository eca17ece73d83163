"""Quantization: descriptors and score maps in eight bits per value.

``quantize_fields`` turns a schema's float fields into these, which anyone can read:

* descriptors: int8, with ``NAME_scale`` float16, one per descriptor; the value is
  ``descriptor_map * descriptor_map_scale`` for a map (D, h, w) with scales (h, w), and
  ``descriptors * descriptors_scale[:, None]`` for rows (N, D) with scales (N,);
* probabilities: uint8 of the fourth root: the value is ``(score_map / 255) ** 4``; the 65 channels
  of a cell's distribution are divided by their sum afterwards.

The fourth root gives small probabilities a fair share of the 256 steps. In most cells "no keypoint"
is likely and every pixel a little: even steps lose up to 6 % of a cell, and almost all of what the
cross-entropy sees of its small values. With the fourth root both losses stay below 1 %.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from .schema import Field

__all__ = ["dequantize", "quantize", "quantize_fields", "scale_name"]

AXES = {"descriptor_map": -3, "descriptors": -1}  # along which a descriptor lies
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number; only padding reaches it
CHANNELS = 16  # of a map at a time: 0.6 MB of two photographs of 640x480


def scale_name(field: str) -> str:
    """The name of the field that holds the scales of another."""
    return f"{field}_scale"


def quantize_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """A schema's fields, with descriptors and score maps in eight bits; others as they are."""
    quantized = {}
    for name, field in fields.items():
        if name in AXES:
            shape = list(field.shape)
            del shape[AXES[name]]
            changes = {"dtype": "int8", "quantisation": "scale"}
            quantized[name] = field.model_copy(update=changes)
            quantized[scale_name(name)] = Field(
                shape=tuple(shape), dtype="float16", geometry=field.geometry
            )
        elif name == "score_map":
            changes = {"dtype": "uint8", "quantisation": "fourth_root"}
            quantized[name] = field.model_copy(update=changes)
        else:
            quantized[name] = field
    return quantized


def quantize(fields: Mapping[str, Field], arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A teacher's arrays as the fields of a store hold them, on the device they are on.

    Args:
        fields: the store's; those without quantization only change dtype.
        arrays: float, by the names of the teacher's own fields, with or without leading axes.

    Returns:
        One tensor per field, the scales among them.
    """
    stored = {}
    for name, values in arrays.items():
        if fields[name].quantisation == "scale":
            axis = AXES[name]
            largest = torch.maximum(values.amax(axis), -values.amin(axis))  # abs would copy
            scale = largest.float().div_(127).clamp_(min=SMALLEST_SCALE).half()
            in_scales = partial(torch.div, other=scale.float().unsqueeze(axis))
            # Half a scale off at most, and 127 stays 127.
            stored[name] = _rounded(in_scales, values, axis, torch.int8)
            stored[scale_name(name)] = scale
        elif fields[name].quantisation == "fourth_root":
            stored[name] = _rounded(_fourth_root, values, -3, torch.uint8)
        else:
            stored[name] = values.to(getattr(torch, fields[name].dtype))
    return stored


def _fourth_root(shares: Tensor) -> Tensor:
    return shares.sqrt().sqrt_().mul_(255)


def _rounded(
    work: Callable[[Tensor], Tensor], values: Tensor, axis: int, dtype: torch.dtype
) -> Tensor:
    """``work`` of all values, in float32, rounded; of maps a few channels at a time.

    A core's cache then holds what lies between. Rows are small, and their channels lie side by
    side.
    """
    stored = torch.empty_like(values, dtype=dtype)
    count = CHANNELS if axis == -3 else values.shape[axis]
    parts = (part.split(count, axis) for part in (values, stored))
    for some, place in zip(*parts, strict=True):
        place.copy_(work(some.float()).round_())
    return stored


def dequantize(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``quantize`` was given, in float32, from whatever mixture of fields a store holds.

    Call it on the device that needs the values, so that eight bits are transferred and not 32.

    Args:
        stored: fields by name, with or without leading axes; the dtype says how each is quantized.

    Returns:
        The fields without their scales: floats in float32, distributions summing to one, counts
        as they are.
    """
    scales = {scale_name(name) for name in stored}
    values = {}
    for name, array in stored.items():
        if array.dtype == torch.int8:
            scale = stored[scale_name(name)].float()
            values[name] = array.float().mul_(scale.unsqueeze(AXES[name]))
        elif array.dtype == torch.uint8:
            shares = array.float().div_(255).square_().square_()
            is_distribution = shares.shape[-3] > 1
            values[name] = shares.div_(shares.sum(-3, keepdim=True)) if is_distribution else shares
        elif name not in scales:
            values[name] = array.float() if array.is_floating_point() else array
    return values
