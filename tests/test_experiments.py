"""The experiments run; their numbers are for longer trainings and better weights than these."""

import json
from pathlib import Path

import pytest

from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.datasets.rendered import render_sequences

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Photographs to train on and sequences to evaluate on."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    copy_samples(tmp_path)
    held_out = (tmp_path / "judge").iterdir()
    render_sequences(held_out, tmp_path / "sequences", seed=0, count=2, size=(128, 96))
    return tmp_path


def results(output: Path) -> dict[str, dict]:
    report = json.loads((output / "report.json").read_text())
    return {row["model"]: row for row in report["results"] if row["split"] == "all"}


ROWS = {
    "silk": ["silk, downsample", "silk, downsample: [0, 255]", "silk, upsample: (y, x)"],
    "losses": ["as shipped", "occupied and where"],
}


@pytest.mark.parametrize("table", [*ROWS])
def test_each_row_gets_its_numbers(folders, run_command, monkeypatch, table):
    import ablation

    monkeypatch.setattr(ablation, "SIZE", (128, 96))
    monkeypatch.setattr(ablation, "CROP", (96, 80))
    output = folders / "output"
    run_command(
        ablation.main,
        *("--table", table, "--images", folders / "train", "--root", folders / "sequences"),
        *("--output", output, "--photographs", 5, "--epochs", 1),
        *(part for row in ROWS[table] for part in ("--row", row)),
    )
    assert [*results(output)] == ROWS[table]


def test_an_oracle_says_what_a_target_leaves(folders, run_command):
    import oracle

    output = folders / "output"
    targets = ("--target", "cells", "--target", "keypoints")
    folder = ("--root", folders / "sequences", "--output", output)
    run_command(oracle.main, "--teacher", "default", *targets, *folder)
    found = results(output)
    assert len(found) == 1 + 2 * 2 + 1
    own, kept = found["default"], found["default: keypoints, by 3x3 sum"]
    assert kept["repeatability"] == pytest.approx(own["repeatability"], abs=0.1)
