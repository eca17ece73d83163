"""The teachers beside SuperPoint: SiLK and its training, RootSIFT, VLAD over another's store."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hfnet_distill.data.geometry import MapGeometry
from hfnet_distill.data.images import fit_image, read_image
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.quantize import quantize_fields
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.errors import StoreError
from hfnet_distill.networks.registry import load
from hfnet_distill.networks.silk import SiLK
from hfnet_distill.teacher_export.cli import export_teacher, train_teacher


@pytest.fixture(scope="module")
def silk() -> SiLK:
    return load("silk", device="cpu")


def test_keypoints_lie_inside_the_border_with_their_own_descriptors(silk):
    image = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0))
    choice = KeypointChoice(threshold=0, nms_radius=2, border=0, max_num_keypoints=20)
    (features,) = silk.features(image[None], choice)
    assert len(features.keypoints) == 20
    assert (features.keypoints >= 9).all()
    assert (features.keypoints <= np.array([40, 30])).all()
    with torch.inference_mode():
        output = silk(image[None])
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
    assert fields["descriptor_map"].shape == (128, 4, 6)
    assert fields["descriptor_map"].geometry == MapGeometry(8, 11.5)
    record = store.record("0.png")
    norms = np.linalg.norm(record["descriptor_map"].astype(np.float32), axis=0)
    np.testing.assert_allclose(norms, 1, atol=1e-2)
    assert len(record["keypoints"]) == len(record["descriptors"]) > 0


@pytest.mark.parametrize(
    ("form", "shape"),
    [("", (128, 4, 6)), (":averaged", (128, 4, 6)), (":full", (128, 30, 46))],
)
def test_forms_of_the_descriptor_map(silk, form, shape):
    image = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0))
    group = f"descriptor_map{form}"
    found = silk.export(image[None], [group], KeypointChoice(0, 4, 4, 10))["descriptor_map"][0]
    field = silk.fields([group], (64, 48), 10)["descriptor_map"]
    assert found.shape == field.shape == shape
    with torch.inference_mode():
        pixels = silk(image[None]).descriptor_map[0].numpy()
    # Element (1, 2) is cell (2, 3) and covers pixels from (24, 16) on, those of SiLK's map from
    # (15, 7) on; its center is a corner.
    expected = {
        "": pixels[:, 10:12, 18:20].mean((1, 2)),
        ":averaged": pixels[:, 7:15, 15:23].mean((1, 2)),
    }.get(form)
    if expected is None:
        np.testing.assert_allclose(found, pixels, atol=1e-3)
    else:
        np.testing.assert_allclose(found[:, 1, 2], expected / np.linalg.norm(expected), atol=2e-3)


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
    eight_bits = quantize_fields(silk.fields([*silk.usual_fields], (640, 480), 1000))
    assert f"{sum(field.nbytes for field in eight_bits.values()):,}" in output


def train(run_command, photographs, output, *arguments, code=0) -> str:
    return run_command(
        train_teacher,
        *("--images", photographs, "--output", output, "--device", "cpu", "--quiet"),
        *("--grid", 12, "--steps", 2, *arguments),
        code=code,
    )


def test_training_from_photographs_alone(run_command, photographs, tmp_path):
    train(run_command, photographs, tmp_path / "run", "--init", "packaged")
    network = SiLK.read(tmp_path / "run" / "silk.safetensors")
    assert network.config == SiLK.open().config
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
    assert "not weights of SiLK: tensor" in output
    assert not os.path.exists(tmp_path / "run" / "silk.safetensors")


SMALL = ("--size", "64x48", "--device", "cpu", "--quiet")
SIZE, DIM = (64, 48), 4


def test_rootsift_sees_the_pixels_of_the_photograph():
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (12, 16)), np.ones((8, 8))).astype(np.uint8)
    choice = KeypointChoice(threshold=0, nms_radius=4, border=4, max_num_keypoints=30)
    image = torch.from_numpy(pixels)[None].float() / 255
    sift = load("sift")
    (found,) = sift.features(image[None], choice)
    wanted = sift.of_image(pixels, choice)
    for array in ("keypoints", "scores", "descriptors"):
        np.testing.assert_array_equal(getattr(found, array), getattr(wanted, array))
    assert len(found.keypoints) == 30
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    flat = sift.of_image(np.zeros((48, 64), np.uint8), choice)
    assert flat.descriptors.shape == (0, 128)


@pytest.fixture(params=["sift", "silk"])
def local(request, run_command, photographs, tmp_path) -> Path:
    """A store of RootSIFT's keypoints, or one of SiLK's descriptor maps."""
    path = tmp_path / "local.zarr"
    run_command(
        export_teacher,
        *("--model", request.param, "--images", photographs, "--store", path, *SMALL),
        *(("--fields", "descriptor_map:averaged") if request.param == "silk" else ()),
    )
    return path


def learn_places(run_command, local, path, *arguments, code=0) -> str:
    return run_command(
        export_teacher,
        *("--model", "vlad", "--from-store", local, "--store", path),
        *("--words", 3, "--dim", DIM, "--quiet", *arguments),
        code=code,
    )


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_places_from_a_local_store(run_command, photographs, local, tmp_path, format):
    learn_places(run_command, local, tmp_path / "places", "--format", format)
    store = RecordStore.open(tmp_path / "places").require_complete()
    assert store.names == RecordStore.open(local).names
    assert store.schema.image_size == SIZE
    assert set(store.parameters) == {"words", "mean", "projection"}
    # A photograph that comes later gets the descriptor that it would have had in the store.
    teacher = load(f"vlad:{tmp_path / 'places'}", device="cpu")
    image = fit_image(read_image(photographs / "walk/5.png", channels=1), SIZE)
    choice = KeypointChoice(threshold=0.5, nms_radius=0, border=0, max_num_keypoints=3)
    (features,) = teacher.features(torch.from_numpy(image)[None, None].float() / 255, choice)
    np.testing.assert_allclose(np.linalg.norm(features.global_descriptor), 1, atol=1e-5)
    assert len(features.keypoints) <= 3
    stored = store.record("walk/5.png")["global_descriptor"]
    np.testing.assert_allclose(features.global_descriptor, stored, atol=5e-3)


def test_places_go_on_to_the_same_bytes(run_command, local, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    (tmp_path / "small.toml").write_text(text.replace('shard_size = "auto"', "shard_size = 2"))
    config = ("--config", tmp_path / "small.toml")
    learn_places(run_command, local, tmp_path / "whole", *config)
    write = RecordStore.write_shard

    def full(store, number, arrays):
        if number == 1:
            raise OSError(28, "No space left on device", str(store.path))
        write(store, number, arrays)

    monkeypatch.setattr(RecordStore, "write_shard", full)
    output = learn_places(run_command, local, tmp_path / "half", *config, code=1)
    assert "No space left" in output
    monkeypatch.setattr(RecordStore, "write_shard", write)
    assert RecordStore.open(tmp_path / "half").pending_shards() == [1, 2]
    learn_places(run_command, local, tmp_path / "half", *config)
    first, second = (
        [p.read_bytes() for p in sorted((tmp_path / name).rglob("*")) if p.is_file()]
        for name in ("whole", "half")
    )
    assert first == second


def test_places_of_another_local_store(run_command, photographs, local, tmp_path):
    learn_places(run_command, local, tmp_path / "places")
    other = tmp_path / "other.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", other),
        *(*SMALL, "--fields", "sparse"),
    )
    output = learn_places(run_command, other, tmp_path / "places", code=1)
    assert "made with other settings: weights is" in output
    output = learn_places(run_command, local, tmp_path / "places", "--dim", 3, code=1)
    assert "settings.dim is 4 there and 3 here" in output


def test_what_places_cannot_be_learned_from(run_command, photographs, local, tmp_path):
    output = learn_places(run_command, local, tmp_path / "places", "--dim", 6, code=1)
    assert "dim 6: 6 photographs have 5 axes at most; lower --dim" in output
    output = learn_places(run_command, local, tmp_path / "places", "--fields", "sparse", code=1)
    assert "vlad offers global_descriptor, nothing else" in output
    output = learn_places(run_command, local, local, "--overwrite", code=1)
    assert "are the same" in output
    (photographs / "0.png").rename(photographs / "new.png")
    output = learn_places(run_command, local, tmp_path / "places", "--images", photographs, code=1)
    assert "first difference 0.png" in output
    (local / "complete/c/0").unlink()
    (local / "done/c/0").unlink()
    output = learn_places(run_command, local, tmp_path / "places", code=1)
    assert "1 of 1 shards are not written yet" in output
    assert not (tmp_path / "places").exists()
    arguments = ("--model", "vlad", "--store", tmp_path / "places")
    assert "--from-store" in run_command(export_teacher, *arguments, code=2)


def test_places_need_local_descriptors(run_command, photographs, tmp_path):
    path = tmp_path / "scores.zarr"
    arguments = ("--images", photographs, "--store", path, "--fields", "score_map", *SMALL)
    run_command(export_teacher, "--model", "silk", *arguments)
    output = learn_places(run_command, path, tmp_path / "places", code=1)
    assert "has no local descriptors, only score_map" in output


def test_queries_need_the_weights_of_the_store(run_command, photographs, tmp_path):
    path = tmp_path / "local.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", path, *SMALL),
        *("--fields", "sparse"),
    )
    with pytest.raises(StoreError, match="made with --model superpoint; expected"):
        load(f"vlad:{path}")
    learn_places(run_command, path, tmp_path / "places")
    official = Path(os.environ["HFNET_DISTILL_WEIGHTS"]) / "superpoint_v1.npz"
    with np.load(official) as arrays:
        np.savez(tmp_path / "other.npz", **{name: arrays[name] + 1 for name in arrays.files})
    places = f"vlad:{tmp_path / 'places'}"
    digest = hashlib.sha256(official.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"with the weights {digest}, here are"):
        load(places, weights=tmp_path / "other.npz")
    assert load(places).channels == 1
