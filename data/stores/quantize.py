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

from collections.abc import Iterator, Mapping

import cv2
import torch
from torch import Tensor

from .schema import Field

__all__ = ["dequantize", "quantize", "quantize_fields", "scale_name"]

AXES = {"descriptor_map": -3, "descriptors": -1}  # along which a descriptor lies
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number; only padding reaches it
BLOCK = 2**19  # values at a time: two megabytes of float32


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


def quantize(
    fields: Mapping[str, Field],
    arrays: Mapping[str, Tensor],
    into: Mapping[str, Tensor] | None = None,
) -> Mapping[str, Tensor]:
    """A teacher's arrays as the fields of a store hold them, on the device they are on.

    Args:
        fields: the store's; those without quantization only change dtype.
        arrays: float, by the names of the teacher's own fields, with or without leading axes.
        into: contiguous tensors of the store's dtypes, one per field, to write to and return.

    Returns:
        One contiguous tensor per field, the scales among them.
    """
    stored = into or _empty(fields, arrays)
    for name, values in arrays.items():
        axis, places = AXES.get(name), stored[name]
        if fields[name].quantisation == "scale":
            scales = stored[scale_name(name)].unsqueeze(axis)
            for some, place, scale in _blocks(values, places, scales):
                largest = some.amax(axis, keepdim=True)
                largest = torch.maximum(largest, -some.amin(axis, keepdim=True))  # abs would copy
                scale.copy_(largest.float().div_(127).clamp_(min=SMALLEST_SCALE))
                # Half a scale off at most, and 127 stays 127.
                _put(some.float() / scale.float(), place)
        elif fields[name].quantisation == "fourth_root":
            for some, place in _blocks(values, places):
                _put(some.float().sqrt().sqrt_().mul_(255), place)
        else:
            _put(values, places)
    return stored


def _empty(fields: Mapping[str, Field], arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = {}
    for name, values in arrays.items():
        dtype = getattr(torch, fields[name].dtype)
        stored[name] = torch.empty(values.shape, dtype=dtype, device=values.device)
        if fields[name].quantisation == "scale":
            shape = values.select(AXES[name], 0).shape
            stored[scale_name(name)] = torch.empty(shape, dtype=torch.half, device=values.device)
    return stored


def _blocks(values: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of a map, or keypoints, so many at a time that a core's cache holds what is made of
    them; on a GPU all at once."""
    rows = values.shape[-2]
    if values.is_cpu:
        rows = max(1, rows * BLOCK // max(1, values.numel()))
    return zip(*(tensor.split(rows, -2) for tensor in (values, *others)), strict=True)


def _put(values: Tensor, place: Tensor) -> None:
    """Copy values, rounded where the place holds whole numbers."""
    if values.is_floating_point() and not place.is_floating_point():
        values = values.round_()
    values = values.to(place.dtype)
    if not (values.is_cpu and values.dim() == 4) or values.is_contiguous():
        place.copy_(values)
        return
    # Channels last, as convolutions leave them: OpenCV turns a map ten times as fast as PyTorch.
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}[place.element_size()]
    for each, its in zip(values.view(width), place.view(width), strict=True):
        cv2.transpose(each.permute(1, 2, 0).flatten(0, 1).numpy(), its.flatten(1).numpy())


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
