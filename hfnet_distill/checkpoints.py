"""Named tensors on disk: one safetensors file with a JSON description, whole or absent."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import CheckpointError
from .files import write_atomically

__all__ = ["read_description", "read_tensors", "write_tensors"]


def write_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict) -> None:
    """Write tensors by name, with a description that can be stored as JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(tensors, {"json": json.dumps(description)}), flush=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, on the CPU, and the description that ``write_tensors`` wrote.

    Raises:
        CheckpointError: there is no such file, or this software did not write it.
    """
    description = read_description(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118


def read_description(path: str | Path) -> dict:
    """The description alone, without reading the tensors.

    Raises:
        CheckpointError: there is no such file, or this software did not write it.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["json"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this software ({error})") from error
