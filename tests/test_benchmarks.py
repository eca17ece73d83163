"""The experiments of benchmarks/ still run; their numbers are for longer trainings than these."""

import json
from pathlib import Path

import pytest

from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.datasets.rendered import render_sequences

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROWS = {
    "ablation": ["silk, upsample: (y, x) for (x, y)", "superpoint, sparse"],
    "ways": [
        "superpoint, downsample: weights averaged over the last steps",
        "superpoint, downsample: the teacher's relations, too",
        "superpoint, downsample: told from the batch's other cells",
        "superpoint, downsample: detector's targets squared",
        "superpoint, downsample: the teacher's keypoints for its scores",
        "superpoint, downsample: homographic adaptation of its scores",
        "superpoint, downsample: two views, foreshortened, too",
        "superpoint, downsample: at the peaks, descriptors half as long",
        "superpoint, downsample: at the peaks, on cells of 4x4 pixels",
    ],
}


@pytest.mark.parametrize(("script", "table"), [("ablation", "table"), ("ways", "ways")])
def test_each_row_gets_its_numbers(monkeypatch, tmp_path, run_command, script, table):
    monkeypatch.syspath_prepend(BENCHMARKS)
    ablation, module = __import__("ablation"), __import__(script)
    for each in (ablation, module):
        monkeypatch.setattr(each, "SIZE", (128, 96))
    monkeypatch.setattr(ablation, "CROP", (96, 80))
    rows = [row for row in module.ROWS if row.name in ROWS[script]]
    monkeypatch.setattr(module, "ROWS", rows)
    copy_samples(tmp_path)
    photographs = (tmp_path / "judge").iterdir()
    render_sequences(photographs, tmp_path / "sequences", seed=0, count=2, size=(128, 96))
    folders = ("--images", tmp_path / "train", "--root", tmp_path / "sequences")
    few = ("--output", tmp_path / "output", "--photographs", 4, "--epochs", 1)
    run_command(module.main, *folders, *few)
    results = json.loads((tmp_path / "output" / f"{table}.json").read_text())
    assert [row["model"] for row in results] == ROWS[script]
