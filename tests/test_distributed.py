"""Training by two processes takes the steps of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import store  # noqa: F401  (a fixture)

from student.cli import train_student
from student.loader import Batches

TRAIN = "from student.cli import train_student; train_student()"


@pytest.fixture
def arguments(store, photographs, tmp_path) -> list[str]:  # noqa: F811
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    (tmp_path / "small.toml").write_text(text.replace("validation = 0.04", "validation = 0.0"))
    command = [
        *("--store", store, "--images", photographs, "--config", tmp_path / "small.toml"),
        *(
            "--learning-rate",
            1e-4,
            "--epochs",
            4,
            "--batch-size",
            2,
            "--crop",
            "48x32",
            "--num-workers",
            0,
        ),
        *("--precision", "float32", "--device", "cpu", "--quiet"),
    ]
    return [str(part) for part in command]


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_the_same_curve_and_weights(arguments, run_command, tmp_path, monkeypatch):
    monkeypatch.setattr("student.training.Journal.EVERY", 1)
    run_command(train_student, *arguments, "--output", tmp_path / "one")
    program = tmp_path / "train.py"
    program.write_text(
        "import torch, student.training\n"
        "torch.set_num_threads(1)\n"
        "student.training.Journal.EVERY = 1\n" + TRAIN
    )
    two = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", program, *arguments, "--output", two]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "one")) == 12
    # Adam divides small gradients by their own size, so roundings grow with the steps.
    assert curve(two)[:4] == pytest.approx(curve(tmp_path / "one")[:4], rel=2e-5)
    assert curve(two) == pytest.approx(curve(tmp_path / "one"), rel=1e-3)
    expected, found = (load_file(p / "last.safetensors") for p in (tmp_path / "one", two))
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max().clamp(min=1), name
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    assert len(list((two / "tensorboard").iterdir())) == 1


def test_every_batch_is_shared_equally():
    whole = list(Batches(12, 4, epochs=2, seed=0))
    parts = [list(Batches(12, 4, epochs=2, seed=0, part=(number, 2))) for number in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="batch_size 3 cannot be shared equally by 2 processes"):
        Batches(12, 3, epochs=1, seed=0, part=(0, 2))
