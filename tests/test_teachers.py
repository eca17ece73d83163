"""SiLK as a teacher: packaged weights, fields, and training one's own."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from data.geometry import CELL_MAP, MapGeometry
from data.keypoints import KeypointChoice
from data.store import RecordStore
from teacher_export.cli import export_teacher, train_teacher
from teacher_export.silk import load_silk
from teacher_export.teachers import SiLKTeacher


@pytest.fixture(scope="module")
def silk() -> SiLKTeacher:
    return SiLKTeacher(None, torch.device("cpu"))


def test_keypoints_lie_inside_the_border_with_their_own_descriptors(silk):
    image = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0))
    choice = KeypointChoice(threshold=0, nms_radius=2, border=0, top_k=20)
    features = silk.extract(image, choice)
    assert len(features.keypoints) == 20
    assert (features.keypoints >= 9).all()
    assert (features.keypoints <= np.array([40, 30])).all()
    with torch.inference_mode():
        output = silk.network(image[None])
    x, y = features.keypoints[0].astype(int) - 9
    score = output.score_logits[0, 0, y, x].sigmoid()
    np.testing.assert_allclose(features.scores[0], score, atol=1e-5)
    descriptor = output.descriptor_map[0, :, y, x]
    np.testing.assert_allclose(features.descriptors[0], descriptor, atol=1e-4)


def test_fields_of_a_store(run_command, photographs, tmp_path):
    run_command(
        export_teacher,
        *("--model", "silk", "--images", photographs, "--store", tmp_path / "silk.zarr"),
        *("--fields", "score_map,descriptor_map,sparse", "--size", "64x48", "--limit", 2),
        *("--device", "cpu", "--quiet"),
    )
    store = RecordStore.open(tmp_path / "silk.zarr").require_complete()
    fields = store.schema.fields
    assert fields["score_map"].shape == (1, 30, 46)
    assert fields["score_map"].geometry == MapGeometry(1, 9)
    assert fields["descriptor_map"].shape == (128, 6, 8)
    assert fields["descriptor_map"].geometry == CELL_MAP
    record = store.record("0.png")
    norms = np.linalg.norm(record.descriptor_map.astype(np.float32), axis=0)
    np.testing.assert_allclose(norms, 1, atol=1e-2)
    assert len(record.keypoints) == len(record.descriptors) > 0


@pytest.mark.parametrize(
    ("form", "shape"),
    [("", (128, 6, 8)), (":averaged", (128, 6, 8)), (":full", (128, 30, 46))],
)
def test_forms_of_the_descriptor_map(silk, form, shape):
    image = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0))
    group = f"descriptor_map{form}"
    found = silk.export(image[None], [group], KeypointChoice(0, 4, 4, 10))["descriptor_map"][0]
    field = silk.fields([group], (64, 48), 10)["descriptor_map"]
    assert found.shape == field.shape == shape
    with torch.inference_mode():
        pixels = silk.network(image[None]).descriptor_map[0].numpy()
    # Cell (2, 3) covers pixels from (24, 16) on, elements from (15, 7) on; its centre is a corner.
    expected = {
        "": pixels[:, 10:12, 18:20].mean((1, 2)),
        ":averaged": pixels[:, 7:15, 15:23].mean((1, 2)),
    }.get(form)
    if expected is None:
        np.testing.assert_allclose(found, pixels, atol=1e-3)
    else:
        np.testing.assert_allclose(found[:, 2, 3], expected / np.linalg.norm(expected), atol=2e-3)


def test_forms_are_part_of_the_store(run_command, photographs, tmp_path):
    def export(*fields, code=0):
        return run_command(
            export_teacher,
            *("--model", "silk", "--images", photographs, "--store", tmp_path / "silk.zarr"),
            *("--fields", ",".join(fields), "--size", "64x48", "--limit", 1, "--quiet"),
            code=code,
        )

    export("descriptor_map:averaged")
    assert "made with other settings: settings" in export("descriptor_map", code=1)
    output = export("descriptor_map", "descriptor_map:full", code=1)
    assert "descriptor_map is asked for twice" in output


def test_what_does_not_fit_is_refused_before_it_starts(
    run_command, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**8))
    output = run_command(
        export_teacher,
        *("--model", "silk", "--images", photographs, "--store", tmp_path / "silk.zarr"),
        *("--fields", "descriptor_map:full", "--quiet"),
        code=1,
    )
    assert "6 photographs need 0.441 GB, the disk has 0.1 GB free" in output


def test_help_tells_the_bytes_of_each_field(run_command, silk):
    output = run_command(export_teacher, "--help")
    groups = ("score_map", "descriptor_map", "descriptor_map:averaged", "descriptor_map:full")
    for group in groups:
        fields = silk.fields([group], (640, 480), 1000)
        (line,) = (line for line in output.splitlines() if line.split()[:1] == [group])
        assert f"{sum(field.nbytes for field in fields.values()):,}" in line


def train(run_command, photographs, output, *arguments, code=0) -> str:
    return run_command(
        train_teacher,
        *("--images", photographs, "--output", output, "--device", "cpu", "--quiet"),
        *("--grid", 12, "--steps", 2, *arguments),
        code=code,
    )


def test_training_from_photographs_alone(run_command, photographs, tmp_path):
    train(run_command, photographs, tmp_path / "run", "--init", "packaged")
    network, _ = load_silk(tmp_path / "run" / "silk.safetensors")
    assert network.config == load_silk(SiLKTeacher.PACKAGED)[0].config
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["kind"] == "validation"
    assert "holds a run already" in train(run_command, photographs, tmp_path / "run", code=1)
    train(run_command, photographs, tmp_path / "run", "--steps", 3, "--resume")


def test_what_cannot_be_trained_from(run_command, photographs, tmp_path):
    output = train(run_command, photographs, tmp_path / "run", "--grid", 200, code=1)
    assert "smaller than a view of 218x218" in output
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    init = ("--init", tmp_path / "other.npz")
    output = train(run_command, photographs, tmp_path / "run", *init, code=1)
    assert "not an official SiLK checkpoint" in output
    output = train(run_command, photographs, tmp_path / "run", "--resume", code=1)
    assert "no such checkpoint" in output
    assert not os.path.exists(tmp_path / "run" / "silk.safetensors")
