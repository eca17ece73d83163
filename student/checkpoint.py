"""Checkpoints: safetensors for the numbers, JSON for what they mean; whole or absent, strict.

A run folder holds ``best.safetensors`` and ``last.safetensors`` (the student; its configuration is
in the file's metadata and, with how it was made, in the JSON beside it) and
``resume.safetensors`` (everything that training needs to go on).
"""

import hashlib
import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from student.hfnet import HFNet, HFNetConfig

__all__ = [
    "CheckpointError",
    "init_student",
    "load_student",
    "load_training",
    "read_tensors",
    "save_student",
    "save_training",
    "student_path",
    "write_tensors",
]

DEFAULT = Path(__file__).parent / "weights" / "default.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another network."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write named tensors and a JSON-able description as one safetensors file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(path, save(tensors, {"json": json.dumps(metadata)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the description of a safetensors file.

    Raises:
        CheckpointError: no such file, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["json"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of train-student ({error})") from error


def save_student(path: Path, student: HFNet, info: dict, dtype=torch.float32) -> None:
    """Write a student that ``load_student`` reads, and its description as JSON beside it."""
    metadata = {"config": asdict(student.config), **info}
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in student.state_dict().items()
    }
    write_tensors(path, tensors, metadata)
    _write(path.with_suffix(".json"), json.dumps(metadata, indent=2).encode())


def student_path(model: str | Path) -> Path:
    """The file that ``default``, a run folder or a file of weights stands for."""
    if str(model) == "default":
        return DEFAULT
    path = Path(model)
    return path / "best.safetensors" if path.is_dir() else path


def load_student(path: str | Path) -> tuple[HFNet, dict, str]:
    """A student in evaluation mode on the CPU in float32, its description and its SHA-256.

    Raises:
        CheckpointError: missing, damaged, or with other tensors than its configuration needs.
    """
    tensors, metadata = read_tensors(path)
    try:
        student = HFNet(HFNetConfig(**metadata["config"]))
        student.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        message = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: not the student that it describes: {message}") from error
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return student.eval(), metadata, digest


def init_student(student: HFNet, path: str | Path) -> str:
    """Start a student from another's weights; its global branch may be new. Returns the SHA-256.

    Raises:
        CheckpointError: the other one differs in more than the global branch.
    """
    other, _, digest = load_student(path)
    theirs, ours = other.state_dict(), student.state_dict()
    for name, tensor in ours.items():
        is_global = name.startswith(("global_blocks.", "vlad.", "projection."))
        if name in theirs and theirs[name].shape == tensor.shape:
            ours[name] = theirs[name]
        elif not is_global:
            raise CheckpointError(
                f"{path}: a student of {other.config} cannot start one of {student.config}; make "
                "width and descriptor_dim in [train] equal to its own"
            )
    student.load_state_dict(ours)
    return digest


def save_training(path: Path, modules: dict[str, nn.Module], optimizer, metadata: dict) -> None:
    """Everything that ``load_training`` needs to go on, in one file."""
    tensors = {
        f"{prefix}/{name}": tensor
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    write_tensors(path, tensors, metadata)


def load_training(path: Path, modules: dict[str, nn.Module], optimizer) -> dict:
    """Put modules and optimizer back as ``save_training`` found them; returns its metadata."""
    tensors, metadata = read_tensors(path)
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    for prefix, module in modules.items():
        own = {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items()}
        module.load_state_dict({name: own[name] for name in module.state_dict()})
    return metadata


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
