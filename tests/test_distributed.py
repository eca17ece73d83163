"""Training by two processes takes the steps of one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import store  # noqa: F401  (a fixture)

from hfnet_distill.student.cli import train_student
from hfnet_distill.student.loader import Batches

# train-student with every loss in its journal; somebody presses Ctrl-C at the second process.
PROGRAM = """
import os, signal
import torch
import hfnet_distill.student.training as training
from hfnet_distill.runs import Journal
from hfnet_distill.student.cli import train_student

def interrupted(*arguments, steps=[]):
    steps.append(1)
    if len(steps) == 10 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    return batch_losses(*arguments)

torch.set_num_threads(1)
Journal.EVERY = 1
batch_losses, training.batch_losses = training.batch_losses, interrupted
train_student()
"""


@pytest.fixture
def arguments(store, photographs, tmp_path) -> list[str]:  # noqa: F811
    # How fast roundings grow depends on the settings: which pixel of a cell is the likeliest, say,
    # is decided by one now and then, more often by the nearly equal pixels of a new light network.
    pinned = {
        "validation": 0.0,
        "warp": 0.5,
        "zoom": [0.7, 1.4],
        "rotation": 30.0,
        "perspective": 0.2,
        "tilt": 1.0,
        "inside": "true",
        "full_resolution": "false",
        "overlap": 0.0,
        "detector": 1.0,
        "correspondence": 0.2,
        "localization": 0.2,
        "ema": 0.9,
        "norm_batches": 2,
    }
    before, train = (Path(__file__).parent.parent / "pipeline.toml").read_text().split("[train]")
    for key, value in pinned.items():
        train = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", train)
    text = f"{before}[train]{train}"
    (tmp_path / "small.toml").write_text(text)
    command = [
        *("--store", store, "--images", photographs, "--config", tmp_path / "small.toml"),
        *("--network", "hfnet", "--init", "none", "--strategy", "peaks", "--learning-rate", 1e-4),
        *("--epochs", 12, "--batch-size", 4, "--crop", "48x32"),
        *("--num-workers", 0),
        *("--precision", "float32", "--device", "cpu", "--quiet"),
    ]
    return [str(part) for part in command]


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_processes_take_the_steps_of_one(arguments, run_command, tmp_path, monkeypatch):
    one, two, program = (tmp_path / name for name in ("one", "two", "program.py"))
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", program, *arguments, "--output", two]
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.stderr.count("interrupted after step 10, all of it is kept") == 2, done.stderr
    assert len(curve(two)) == 10
    monkeypatch.setattr("hfnet_distill.runs.Journal.EVERY", 1)
    run_command(train_student, *arguments, "--output", two, "--resume")
    run_command(train_student, *arguments, "--output", one)
    assert len(curve(one)) == 12
    assert curve(two) == pytest.approx(curve(one), rel=5e-5)  # a journal has five digits
    expected, found = (load_file(run / "last.safetensors") for run in (one, two))
    # Adam divides small gradients by their own size, so roundings grow with the steps.
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 3e-3 * tensor.abs().max().clamp(min=1), name
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    curves = [*(two / "tensorboard").iterdir()]
    assert len(curves) == 2  # of two commands, not of three processes


def test_every_batch_is_shared_equally():
    whole = list(Batches(12, 4, epochs=2, seed=0))
    parts = [list(Batches(12, 4, epochs=2, seed=0, part=(number, 2))) for number in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="batch_size 3 cannot be shared equally by 2 processes"):
        Batches(12, 3, epochs=1, seed=0, part=(0, 2))
