"""export-teacher --keypoints-from: one teacher's descriptors at another's keypoints."""

import shutil

import numpy as np
import pytest
import torch

from hfnet_distill.data.images import load_photograph, to_tensor
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.networks.registry import load
from hfnet_distill.teacher_export.cli import export_teacher

SMALL = ("--size", "64x48", "--batch-size", "2", "--quiet")


@pytest.fixture
def described(run_command, photographs, tmp_path):
    """``described("aliked:n16", "--workers", 2)``: a store, or output."""
    arguments = ("--images", photographs, "--fields", "sparse", *SMALL)
    run_command(
        export_teacher,
        *("--model", "superpoint", "--max-num-keypoints", 30, "--store", tmp_path / "keypoints"),
        *arguments,
    )

    def run(model, *more, code=0, name="described"):
        output = run_command(
            export_teacher,
            *("--model", model, *arguments, "--store", tmp_path / name),
            *("--keypoints-from", tmp_path / "keypoints", *more),
            code=code,
        )
        return output if code else RecordStore.open(tmp_path / name).require_complete()

    return run


def test_describes_the_keypoints_of_another_teacher(described, photographs, tmp_path):
    store = described("aliked:n16")
    theirs = RecordStore.open(tmp_path / "keypoints")
    assert store.schema.teacher == "aliked:n16"
    assert store.schema.fields["descriptors"].shape == (30, 128)
    told = store.schema.settings
    assert (told["keypoints_teacher"], told["keypoints_weights"]) == (
        "superpoint",
        theirs.schema.weights,
    )
    assert {name: told[name] for name in theirs.schema.settings} == theirs.schema.settings

    network = load("aliked:n16", device="cpu")
    for name in store.names:
        ours, other = store.record(name), theirs.record(name)
        assert len(ours["keypoints"]) > 0
        np.testing.assert_array_equal(ours["keypoints"], other["keypoints"])
        np.testing.assert_array_equal(ours["scores"], other["scores"])
        image = to_tensor(load_photograph(photographs / name, (64, 48), channels=3), 3)
        with torch.inference_mode():
            maps = network.maps(image[None])
            expected = network.describe(maps, 0, torch.from_numpy(ours["keypoints"].copy()))
        np.testing.assert_allclose(ours["descriptors"], expected, atol=2e-3)


def test_takes_the_best_where_fewer_are_asked_for(described, tmp_path):
    store = described("aliked:n16", "--max-num-keypoints", 5)
    theirs = RecordStore.open(tmp_path / "keypoints").record("0.png")
    np.testing.assert_array_equal(store.record("0.png")["keypoints"], theirs["keypoints"][:5])
    assert store.schema.settings["top_k"] == 5


def test_two_processes_write_what_one_writes(described):
    alone, together = described("aliked:n16"), described("aliked:n16", "--workers", 2, name="two")
    assert alone.names == together.names
    for name in alone.names:
        ours, theirs = alone.record(name), together.record(name)
        assert all((ours[field] == theirs[field]).all() for field in ours)


def test_what_does_not_fit_is_refused(described, run_command, photographs, tmp_path):
    described("aliked:n16")
    output = run_command(
        export_teacher,
        *("--model", "aliked:n16", "--images", photographs, "--fields", "sparse", *SMALL),
        *("--store", tmp_path / "described"),
        code=1,
    )
    assert "made with other settings: settings." in output
    output = described("sift", code=1)
    assert "--keypoints-from: sift describes only keypoints of its own" in output
    output = described("aliked", "--fields", "score_map", code=1)
    assert "--keypoints-from: add --fields sparse" in output
    output = described("aliked", "--size", "96x64", code=1, name="larger")
    assert "its keypoints are of images of 64x48; expected 96x64" in output
    shutil.copy(photographs / "0.png", photographs / "new.png")
    output = described("aliked", code=1, name="more")
    assert "has no keypoints of 1 of the 7 photographs, first new.png" in output


def test_vlad_would_not_find_those_keypoints_again(described, run_command, tmp_path):
    described("aliked:n16")
    output = run_command(
        export_teacher,
        *("--model", "vlad", "--from-store", tmp_path / "described"),
        *("--store", tmp_path / "vlad", "--quiet"),
        code=1,
    )
    assert "describes the keypoints of superpoint" in output
