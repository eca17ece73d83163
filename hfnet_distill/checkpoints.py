"""Named tensors on disk: one safetensors file with a JSON description, whole or absent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from .errors import CheckpointError
from .files import checksum, write_atomically

__all__ = ["read_description", "read_tensors", "write_tensors"]

CHECKSUM = "checksum"
"""The key of a description with the ``_checksum`` of all else."""


def write_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict) -> None:
    """Write tensors by name, with a description that can be stored as JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = {**description, CHECKSUM: _checksum(tensors, description)}
    write_atomically(path, save(tensors, {"json": json.dumps(told)}), flush=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, on the CPU, and the description that ``write_tensors`` wrote.

    Raises:
        CheckpointError: there is no such file, or this software did not write it.
    """
    with _opened(path) as (file, told):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wanted = told.pop(CHECKSUM, None)  # older checkpoints have none
    if wanted not in (None, _checksum(tensors, told)):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    return tensors, told


def read_description(path: str | Path) -> dict:
    """The description alone, without reading the tensors.

    Raises:
        CheckpointError: there is no such file, or this software did not write it.
    """
    with _opened(path) as (_, told):
        told.pop(CHECKSUM, None)
        return told


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[safe_open, dict]]:
    """The file, and its description with the checksum."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["json"])
            if not isinstance(told, dict):
                raise ValueError(f"a description that is a {type(told).__name__}")
            yield file, told
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this software ({error})") from error


def _checksum(tensors: dict[str, Tensor], description: dict) -> int:
    """CRC-32C over a description and tensors by name, on the CPU and contiguous."""
    parts = [json.dumps(description).encode()]
    for name, tensor in sorted(tensors.items()):
        parts.append(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        parts.append(tensor.reshape(-1).view(uint8).numpy())
    return checksum(parts)
