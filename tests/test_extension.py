"""A network, a dataset and a loss of one's own: one file each, outside the package."""

from pathlib import Path

import pytest

from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.cli import evaluate
from hfnet_distill.student.cli import train_student
from hfnet_distill.teacher_export.cli import export_teacher

NETWORK = '''
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from hfnet_distill.networks.base import Student, StudentOutput
from hfnet_distill.networks.registry import register


@dataclass(frozen=True)
class ToyConfig:
    descriptor_dim: int = 16
    width: int = 8


@register("toy")
class Toy(Student):
    """Three convolutions."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig = ToyConfig()):
        super().__init__()
        self.config, self.descriptor_dim = config, config.descriptor_dim
        self.body = nn.Sequential(nn.Conv2d(1, config.width, 8, 8), nn.ReLU())
        self.scores = nn.Conv2d(config.width, 65, 1)
        self.descriptors = nn.Conv2d(config.width, config.descriptor_dim, 1)

    @classmethod
    def open(cls, source=None, weights=None):
        return cls()

    def forward(self, image):
        features = self.body(image)
        descriptors = F.normalize(self.descriptors(features).float(), dim=1)
        return StudentOutput(self.scores(features).float(), descriptors, None)
'''

DATASET = '''
from pathlib import Path

import numpy as np

from hfnet_distill.evaluation.datasets import register_dataset
from hfnet_distill.evaluation.datasets.base import HomographyDataset, HomographyPair


@register_dataset("mirror")
class Mirror(HomographyDataset):
    """Each photograph of a folder beside itself."""

    def __init__(self, root, split):
        self.images = {path.name: path for path in sorted(Path(root).glob("*.png"))}
        self.sequences = [*self.images]
        self.pairs = [HomographyPair(name, name, name, np.eye(3)) for name in self.images]
'''

LOSS = """
from hfnet_distill.student.losses import register_loss


@register_loss("sharpness")
def sharpness(said, lesson):
    logits = said.score_logits
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean((1, 2))
"""


@pytest.fixture
def config(tmp_path) -> Path:
    """pipeline.toml with the three files, and one line for each."""
    for name, text in (("network", NETWORK), ("dataset", DATASET), ("loss", LOSS)):
        (tmp_path / f"{name}.py").write_text(text)
    text = (Path(__file__).parents[1] / "pipeline.toml").read_text()
    files = [str(tmp_path / f"{name}.py") for name in ("network", "dataset", "loss")]
    text = text.replace("plugins = []", f"plugins = {files}")
    text = text.replace('network = "hfnet"', 'network = "toy"')
    text = text.replace(
        "\n[train.networks.hfnet]\n", "\n[train.networks.toy]\n\n[train.networks.hfnet]\n"
    )
    text = text.replace("[train.loss_weights]", "[train.loss_weights]\nsharpness = 0.1")
    (tmp_path / "pipeline.toml").write_text(text)
    return tmp_path / "pipeline.toml"


def test_three_files_run_through_three_stages(run_command, config, tmp_path):
    copy_samples(tmp_path)
    common = ("--config", config, "--quiet", "--device", "cpu")
    photographs = ("--images", tmp_path / "train")
    run_command(
        export_teacher,
        *("--model", "toy", *photographs, "--store", tmp_path / "toy.zarr"),
        *("--size", "64x48", "--fields", "sparse", "--limit", 6, *common),
    )
    run_command(
        train_student,
        *("--store", tmp_path / "toy.zarr", *photographs, "--output", tmp_path / "run"),
        *("--epochs", 1, "--batch-size", 2, "--crop", "whole", "--num-workers", 0, *common),
    )
    assert '"sharpness"' in (tmp_path / "run" / "log.jsonl").read_text()
    table = run_command(
        evaluate,
        *("--dataset", "mirror", "--root", tmp_path / "train", "--model", tmp_path / "run"),
        *("--model", "toy", "--output", tmp_path / "report", *common),
    )
    assert f"| {tmp_path / 'run'} |" in table
