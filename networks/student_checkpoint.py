"""Checkpoints of students: strict, and complete in themselves.

A run folder holds ``best.safetensors`` and ``last.safetensors`` (the student; its configuration is
in the file's description and, with how it was made, in the JSON beside it) and
``resume.safetensors`` (everything that training needs to go on).
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoints import CheckpointError, read_tensors, write_tensors
from ..files import write_atomically
from .hfnet import HFNet, HFNetConfig

__all__ = ["init_student", "load_student", "save_student", "student_path"]

NEW = (
    *("global_blocks.", "vlad.", "projection."),
    *("detector_skip.", "context_block.", "descriptor_head.1."),
)
DEFAULT = Path(__file__).parent / "packaged" / "default.safetensors"


def save_student(path: Path, student: HFNet, info: dict, dtype=torch.float32) -> None:
    """Write a student that ``load_student`` reads, and its description as JSON beside it."""
    metadata = {"config": asdict(student.config), **info}
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in student.state_dict().items()
    }
    write_tensors(path, tensors, metadata)
    write_atomically(path.with_suffix(".json"), json.dumps(metadata, indent=2).encode())


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
    """Start a student from another's weights. Returns their SHA-256.

    Its global branch, detector_skip and context_block may be new, and the last layer of its
    descriptors where their size differs.

    Raises:
        CheckpointError: the other one differs in more.
    """
    other, _, digest = load_student(path)
    theirs, ours = other.state_dict(), student.state_dict()
    for name, tensor in ours.items():
        may_be_new = name.startswith(NEW)
        if name in theirs and theirs[name].shape == tensor.shape:
            ours[name] = theirs[name]
        elif not may_be_new:
            raise CheckpointError(
                f"{path}: a student of {other.config} cannot start one of {student.config}; make "
                "width in [train] equal to its own"
            )
    student.load_state_dict(ours)
    return digest
