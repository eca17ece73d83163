"""A run's best checkpoint as one small file: ``python -m student.pack RUN FILE.safetensors``."""

import sys
from pathlib import Path

import torch

from student.checkpoint import load_student, save_student, student_path

__all__ = ["pack_student"]


def pack_student(model: str | Path, path: str | Path) -> None:
    """Write a student in float16, with its description in a JSON file beside it."""
    student, info, _ = load_student(student_path(model))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_student(Path(path), student, {**info, "packed": "float16"}, torch.float16)


if __name__ == "__main__":
    pack_student(*sys.argv[1:])
