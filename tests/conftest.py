"""Where tests find what is not in the repository, and why they skip when it is missing."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hfnet_distill.networks.superpoint import SuperPoint

# Threads cost these small tensors more than they bring, above all on a busy machine. Processes that
# tests start have as many, for some processors add up in another order with another number.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


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


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of six small textured photographs, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_NEAREST)
        path = tmp_path / "photographs" / ("walk" if number == 5 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 1))
    return tmp_path / "photographs"


@pytest.fixture(scope="session")
def synthetic_weights(tmp_path_factory) -> Path:
    """A folder with weights for SuperPoint that a seed makes: the network runs, it knows nothing.

    They are those of the reference outputs ``superpoint_synth``.
    """
    random = np.random.RandomState(1234)
    state = {}
    for name, tensor in SuperPoint().state_dict().items():
        draw = random.standard_normal(tuple(tensor.shape))
        if name.endswith("weight"):
            gain = 24 if name == "convPb.weight" else 2
            draw = draw * np.sqrt(gain / np.prod(tensor.shape[1:]))
        else:
            draw = draw * 0.05
        state[name] = draw.astype(np.float32)
    folder = tmp_path_factory.mktemp("weights")
    np.savez(folder / "superpoint_v1.npz", **state)
    return folder


@pytest.fixture
def run_command(monkeypatch, synthetic_weights):
    """``run_command(export_teacher, "--model", ...)``: the outcome of a command, without a shell.

    Small pictures, small steps: what is not named comes from pipeline.toml.
    """
    monkeypatch.setenv("HFNET_DISTILL_WEIGHTS", str(synthetic_weights))

    def run(command, *arguments, code: int = 0) -> str:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    return run
