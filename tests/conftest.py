"""Where tests find what is not in the repository, and why they skip when it is missing."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """``golden("superpoint_img0")``: the outputs that a reference implementation gave."""
    folder = _folder("HFNET_DISTILL_GOLDEN", "the folder of reference outputs")
    return lambda name: np.load(folder / f"{name}.npz")


@pytest.fixture(scope="session")
def excerpt():
    """``excerpt("hfnet_losses")``: a small part of the reference outputs, kept in tests/golden."""
    folder = Path(__file__).parent / "golden"
    return lambda name: np.load(folder / f"{name}.npz")


@pytest.fixture(scope="session")
def weights():
    """The folder with the official weights."""
    return _folder("HFNET_DISTILL_WEIGHTS", "the folder with superpoint_v1.pth")


@pytest.fixture(scope="session")
def hpatches():
    """A folder in the HPatches layout with real sequences."""
    return _folder("HFNET_DISTILL_HPATCHES", "a folder in the HPatches layout")


def _folder(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"set {variable} to {what}")
    return Path(os.environ[variable])
