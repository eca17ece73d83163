"""The experiments run; their numbers are for longer trainings and larger images than these."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.datasets.rendered import render_sequences
from hfnet_distill.evaluation.evaluate import evaluate
from hfnet_distill.networks.registry import load
from hfnet_distill.student.targets import DESCRIPTOR_TARGETS, DETECTOR_TARGETS

CHOICE = KeypointChoice(0.0, 4, 4, 50, None, None)


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    """The scripts can be imported; what they register is gone after a test."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments")
    before = DETECTOR_TARGETS.copy(), DESCRIPTOR_TARGETS.copy()
    yield
    for targets, kept in zip((DETECTOR_TARGETS, DESCRIPTOR_TARGETS), before, strict=True):
        targets.clear()
        targets.update(kept)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Photographs to train on, two sequences to evaluate on, and settings that leave them small."""
    text = (Path(__file__).parents[1] / "pipeline.toml").read_text()
    for changes in (
        ("longest_side = 640", "longest_side = 0"),
        ("num_workers = 1", "num_workers = 0"),
    ):
        text = text.replace(*changes)
    (tmp_path / "pipeline.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    copy_samples(tmp_path)
    held_out = (tmp_path / "test").iterdir()
    render_sequences(held_out, tmp_path / "sequences", seed=0, count=2, size=(128, 96), views=1)
    return tmp_path


def results(output: Path) -> dict[str, dict]:
    report = json.loads((output / "report.json").read_text())
    return {row["model"]: row for row in report["results"] if row["split"] == "all"}


ROWS = {
    "silk": [
        "silk, downsample",
        "silk, downsample: evaluated on [0, 255]",
        "silk, downsample: joined by position",
        "silk, upsample: (y, x) instead of (x, y)",
    ],
    "ideas": ["the teacher's keypoints instead of its scores"],
    "targets": ["silk: cells, peaks"],
    "losses": ["occupied and where"],
}


@pytest.mark.parametrize("table", [*ROWS])
def test_each_row_gets_its_numbers(folder, run_command, monkeypatch, table):
    import ablation

    monkeypatch.setattr(ablation, "SIZE", (128, 96))
    monkeypatch.setattr(ablation, "CROP", (96, 80))
    run_command(
        ablation.main,
        *("--table", table, "--images", folder / "train", "--root", folder / "sequences"),
        *("--output", folder / "output", "--photographs", 4, "--epochs", 1),
        *(part for row in ROWS[table] for part in ("--row", row)),
    )
    found = results(folder / "output")
    assert [*found] == ROWS[table]
    if table == "silk":  # its first two rows are one student, shown two kinds of images
        assert len([*(folder / "output").glob("silk__*/run.json")]) == 3


def test_a_row_that_does_not_exist_is_refused(tmp_path, run_command):
    import ablation

    folders = ("--images", tmp_path, "--root", tmp_path, "--output", tmp_path / "output")
    said = run_command(ablation.main, "--table", "views", *folders, "--row", "sideways", code=1)
    assert "--row sideways: expected one of the recipe, " in said


def _shared(own, other) -> float:
    """The share of a teacher's keypoints that another list has within half a pixel."""
    apart = np.abs(own.keypoints[:, None] - other.keypoints).max(2)
    return (apart <= 0.5).any(1).mean()


def test_suppressed_keypoints_keep_their_ranking_and_odds_do_not():
    import oracle

    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, 1, 14, 18), np.float32))
    image = torch.nn.functional.interpolate(image, size=(100, 132), mode="bicubic").clamp(0, 1)
    rows = oracle.make_oracles(load("silk"), "silk")
    own, cells, keypoints, between = (
        rows[row].features(image, CHOICE)[0]
        for row in (
            "silk",
            "silk: cells, by pixel",
            "silk: keypoints, by pixel",
            "silk: descriptors between cells",
        )
    )
    whole = load("silk").features(image[:, :, :96, :128], CHOICE)[0]
    np.testing.assert_array_equal(own.keypoints, whole.keypoints)
    np.testing.assert_array_equal(own.descriptors, whole.descriptors)
    assert _shared(own, keypoints) > 0.9
    assert _shared(own, cells) < 0.7
    np.testing.assert_array_equal(between.keypoints, own.keypoints)
    cosine = (between.descriptors * own.descriptors).sum(1)
    assert 0.3 < cosine.mean() < 0.99


def test_each_teacher_gets_a_table(folder, run_command):
    import oracle

    root = folder / "sequences"
    teachers = ("--teacher", "silk", "--teacher", "aliked:n16")
    output = ("--output", folder / "oracle")
    run_command(oracle.main, *teachers, "--root", root, *output, "--precision", "auto")
    evaluate("hpatches", ["silk"], folder / "plain", root=root, precision="auto")
    found = results(folder / "oracle" / "silk")
    assert len(found) == 1 + 3 * 2 + 1
    for key in ("repeatability", "descriptor_ap", "localization_error"):
        assert found["silk"][key] == results(folder / "plain")["silk"][key]
    (other,) = (path for path in (folder / "oracle").iterdir() if path.name != "silk")
    assert [*results(other)][-1] == "aliked:n16: descriptors between cells"
    assert "| aliked:n16: labels, by pixel |" in (other / "table.md").read_text()


def test_a_teacher_that_describes_only_its_own_keypoints_is_refused(tmp_path, run_command):
    import oracle

    said = run_command(
        oracle.main, "--teacher", "sift", "--root", tmp_path, "--output", tmp_path, code=1
    )
    assert "--teacher sift: describes no keypoints but its own" in said
