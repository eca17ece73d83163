"""Text files of datasets, as people and their software write them."""

import re
from pathlib import Path

import numpy as np

from ...errors import InputError, NotFoundError
from ...files import read_text

__all__ = ["read_lines", "to_numbers"]

BESIDE_NUMBERS = re.compile(r"[\s,;\[\]]+")
"""What stands between numbers, or around them where Python or MATLAB printed a matrix."""


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text that are neither empty nor a comment, which begins with ``#``.

    Raises:
        NotFoundError: there is no such file; says what was ``expected`` of it.
        InputError: it is empty, or no text, see ``files.read_text``.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: missing; expected {expected}")
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: is empty; expected {expected}")
    return lines


def to_numbers(lines: list[str], path: Path, count: int) -> np.ndarray:
    """Lines of ``count`` numbers, between spaces, commas, semicolons or brackets.

    Returns:
        (N, count) float64.

    Raises:
        InputError: other words, or another number of them; names the first such line.
    """
    rows = []
    for line in lines:
        words = [word for word in BESIDE_NUMBERS.split(line) if word]
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != count or not np.isfinite(rows[-1]).all():
            raise InputError(f"{path}: expected lines of {count} finite numbers, found {line!r}")
    return np.array(rows, np.float64).reshape(-1, count)
