"""train-student: one overfitted batch, exact resumption, what is refused."""

import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._inductor.exc import CppCompileError

from hfnet_distill.checkpoints import read_tensors, write_tensors
from hfnet_distill.config import load_settings, override
from hfnet_distill.data.images import fit_image, read_image
from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.errors import CheckpointError, InputError
from hfnet_distill.files import beside
from hfnet_distill.networks.base import GlobalTeacher
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.light import CONFIGS, Light
from hfnet_distill.networks.registry import checkpoint_path, load_checkpoint, save_checkpoint
from hfnet_distill.networks.vlad import VLAD
from hfnet_distill.student.averaging import estimate_norms
from hfnet_distill.student.cli import train_student
from hfnet_distill.student.loader import Batches, DistillationDataset
from hfnet_distill.student.pack import main as pack
from hfnet_distill.student.targets import Targets, choose_targets
from hfnet_distill.student.training import (
    batch_losses,
    make_student,
    one_cycle,
    validate,
    validation_dataset,
)
from hfnet_distill.student.training import train as train_on
from hfnet_distill.teacher_export.cli import export_teacher

SIZE = (64, 48)


@pytest.fixture
def store(run_command, photographs, tmp_path) -> Path:
    path = tmp_path / "superpoint.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", path),
        *("--size", "64x48", "--quiet", "--device", "cpu"),
    )
    return path


@pytest.fixture
def train(run_command, store, photographs, tmp_path):
    """``train("--epochs", 2)`` trains on the toy store into ``tmp_path / "run"``."""

    def run(*arguments, output="run", code=0, stores=(store,), images=photographs) -> str:
        return run_command(
            train_student,
            *(part for path in stores for part in ("--store", path)),
            *("--images", images, "--output", tmp_path / output, "--crop", "48x32"),
            *("--batch-size", "2", "--num-workers", "0", "--precision", "float32"),
            *("--device", "cpu", "--quiet", "--init", "none", "--network", "hfnet", *arguments),
            code=code,
        )

    return run


def write_global_store(path: Path, names: list[str], size=SIZE, fields=None) -> Path:
    """A complete store of random global descriptors."""
    fields = fields or {"global_descriptor": Field(shape=(16,), dtype="float32")}
    schema = Schema(
        teacher="place",
        weights="0" * 64,
        settings={},
        image_size=size,
        fields=fields,
        shard_size=100,
        compression="none",
        software="0",
    )
    store = RecordStore.create(path, schema, names, "zarr")
    rng = np.random.default_rng(0)
    store.write_shard(
        0,
        {
            name: rng.standard_normal((len(names), *field.shape)).astype(field.dtype)
            for name, field in fields.items()
        },
    )
    store.finish()
    return path


def make_dataset(store, photographs, **options) -> DistillationDataset:
    targets = choose_targets([RecordStore.open(store)], "cells", "peaks")
    plain = {"crop": "whole", "views": 1, "warp": 0.0, "photometric": 0.0}
    plain |= {"full_resolution": False, "precision": "float32", "num_workers": 0}
    settings = override(load_settings().train, **{**plain, **options})
    return DistillationDataset(photographs, RecordStore.open(store).names, targets, settings)


def test_image_and_targets_are_of_the_same_crop(store, photographs):
    dataset = make_dataset(store, photographs, crop=(24, 16), seed=1)
    whole = RecordStore.open(store)
    for key in [(0, 0), (0, 5), (3, 5)]:
        item = dataset[key]
        name = dataset.names[key[1]]
        image = fit_image(read_image(photographs / name, channels=1), SIZE)
        score_map, descriptors = (whole.read(name, f) for f in ("score_map", "descriptor_map"))
        places = [
            (row, column)
            for row in range(5)
            for column in range(6)
            if (image[row * 8 :, column * 8 :][:16, :24] == item["image"][0, 0].numpy()).all()
        ]
        assert len(places) == 1
        row, column = places[0]
        corner = item["H_view_to_photo"][0, :2, 2]
        np.testing.assert_array_equal(corner, [8 * column, 8 * row])
        np.testing.assert_array_equal(item["score_map"], score_map)
        np.testing.assert_array_equal(item["descriptor_map"], descriptors)


def test_an_item_follows_from_seed_epoch_and_index(store, photographs):
    first, again = (
        make_dataset(store, photographs, crop=(24, 16), photometric=0.5, seed=1) for _ in range(2)
    )
    assert torch.equal(first[2, 3]["image"], again[2, 3]["image"])
    assert not torch.equal(first[2, 3]["image"], first[1, 3]["image"])


def test_batches_go_on_where_they_stopped():
    whole = list(Batches(10, 3, epochs=3, seed=4))
    assert len(whole) == 9
    assert all(len(batch) == 3 for batch in whole)
    assert len({index for batch in whole[:3] for _, index in batch}) == 9
    assert list(Batches(10, 3, epochs=3, seed=4, start=5)) == whole[5:]
    assert whole[:3] != whole[3:6]


def test_the_learning_rate_rises_and_falls():
    rates = [one_cycle(step / 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1
    assert 0 < rates[0] < 0.02
    assert 0 < rates[-1] < 0.01


def test_one_batch_can_be_learned_by_heart(store, photographs):
    dataset = make_dataset(store, photographs)
    batch = torch.utils.data.default_collate([dataset[0, index] for index in (0, 1)])
    torch.manual_seed(0)
    student = HFNet().train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    entropy = -(batch["score_map"].float() * batch["score_map"].float().clamp(1e-7).log()).sum(1)
    for step in range(60):
        losses = batch_losses(
            student, batch, dataset, ["detector", "descriptor"], torch.device("cpu")
        )
        if step == 0:
            first = losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["descriptor"] < 0.25 * first["descriptor"]
    excess = losses["detector"] - entropy.mean()
    assert excess < 0.25 * (first["detector"] - entropy.mean())


@pytest.mark.parametrize("crop", ["48x32", "whole"])
def test_validation_is_the_mean_over_single_photographs(store, photographs, crop):
    def batches_of(**changes) -> DistillationDataset:
        training = make_dataset(store, photographs, warp=1.0, photometric=1.0, **changes)
        return validation_dataset(training, training.names)

    # Two views of 48x32 of each of four photographs of 64x48; of whole ones not more than four.
    dataset = batches_of(batch_size=4, crop=crop, views=2)
    assert dataset.settings.batch_size == 4
    assert batches_of(batch_size=4, crop="48x32", views=1).settings.batch_size == 2
    assert batches_of(batch_size=1, crop="8x8").settings.batch_size == 1
    torch.manual_seed(0)
    student, names = HFNet(), ["detector", "descriptor"]
    found = validate(student, dataset, torch.device("cpu"))
    with torch.no_grad():
        batches = [torch.utils.data.default_collate([dataset[0, row]]) for row in range(6)]
        single = [
            batch_losses(student.eval(), batch, dataset, names, torch.device("cpu"))
            for batch in batches
        ]
    for name in names:
        mean = sum(losses[name].item() for losses in single) / 6
        assert found[name] == pytest.approx(mean, rel=1e-5)
    assert found["loss"] == pytest.approx(found["detector"] + found["descriptor"])


def test_no_more_photographs_are_validated_on_than_tell_something(train, tmp_path, monkeypatch):
    monkeypatch.setattr("hfnet_distill.student.training.MOST_VALIDATED", 2)
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    (tmp_path / "half.toml").write_text(text.replace("validation = 0.04", "validation = 0.6"))
    seen = []
    monkeypatch.setattr(
        "hfnet_distill.student.training.validate",
        lambda student, dataset, *others: seen.append([*dataset.names]) or {"loss": 0.0},
    )
    train("--epochs", 2, "--config", tmp_path / "half.toml")
    assert len(seen) == 2
    assert len(seen[0]) == 2
    assert seen[0] == seen[1]


def test_a_run_from_before_a_setting_was_there_can_be_resumed(train, tmp_path):
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    old = re.sub(r"(?m)^views_on = .*\n +#.*\n", "", text)
    assert "views_on" not in old
    (tmp_path / "old.toml").write_text(old)
    train("--epochs", 1, "--config", tmp_path / "old.toml")
    assert "views_on" not in (tmp_path / "run" / "run.json").read_text()
    train("--epochs", 1, "--resume")
    (tmp_path / "new.toml").write_text(text.replace('views_on = "loader"', 'views_on = "device"'))
    output = train("--epochs", 1, "--resume", "--config", tmp_path / "new.toml", code=1)
    assert "cannot resume: settings.views_on is nothing there and device here" in output
    train("--epochs", 1, "--config", tmp_path / "new.toml", output="device")


def test_a_run_folder_holds_all_that_is_needed(train, tmp_path):
    train("--epochs", 2)
    run = tmp_path / "run"
    student, info = load_checkpoint(run / "best.safetensors")
    assert student.config == HFNetConfig(detector_skip=True, context_block=True)
    assert info["teachers"][0]["teacher"] == "superpoint"
    assert json.loads((run / "best.json").read_text()) == info
    assert len(student.weights) == 64
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [1, 2]
    assert list((run / "tensorboard").iterdir())
    assert not list(run.glob("*.partial"))


def test_a_resumed_run_gives_the_same_numbers(train, tmp_path, monkeypatch):
    train("--epochs", 3, output="whole")
    steps = 0

    def interrupt(*arguments):
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step
        return batch_losses(*arguments)

    monkeypatch.setattr("hfnet_distill.student.training.batch_losses", interrupt)
    output = train("--epochs", 3, code=1)
    assert "interrupted after step 3, all of it is kept in" in output
    assert read_tensors(tmp_path / "run" / "resume.safetensors")[1]["step"] == 4 - 1
    monkeypatch.undo()
    left = beside(tmp_path / "run" / "resume.safetensors")
    left.write_bytes(b"that a killed run left")
    train("--epochs", 3, "--resume")
    assert not left.exists()
    for name in ("last.safetensors", "resume.safetensors"):
        whole, halves = (load_file(tmp_path / run / name) for run in ("whole", "run"))
        assert whole.keys() == halves.keys()
        for key in whole:
            assert torch.equal(whole[key], halves[key]), key


def test_sigterm_leaves_a_checkpoint_too(train, tmp_path, monkeypatch):
    def terminate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch_losses(*arguments)

    monkeypatch.setattr("hfnet_distill.student.training.batch_losses", terminate)
    assert "interrupted after step 1, all of it is kept" in train("--epochs", 3, code=1)
    assert read_tensors(tmp_path / "run" / "resume.safetensors")[1]["step"] == 1


def test_resume_starts_where_there_is_no_run(train, tmp_path):
    train("--epochs", 1, "--resume")
    lines = (tmp_path / "run" / "log.jsonl").read_text()
    train("--epochs", 1, "--resume")  # nothing is left to do
    assert (tmp_path / "run" / "log.jsonl").read_text() == lines


def test_the_result_is_the_average_with_statistics_of_its_own(train, tmp_path):
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    plain = re.sub(r"(?m)^(ema|norm_batches) = \S+", r"\1 = 0", text)
    assert plain != text
    (tmp_path / "plain.toml").write_text(plain)
    train("--epochs", 2, output="averaged")
    train("--epochs", 2, "--config", tmp_path / "plain.toml", output="plain")
    resume, result, other = (
        load_file(tmp_path / name)
        for name in (
            "averaged/resume.safetensors",
            "averaged/last.safetensors",
            "plain/last.safetensors",
        )
    )
    weight, mean = "stem.conv.weight", "stem.norm.running_mean"
    torch.testing.assert_close(resume[f"student/{weight}"], other[weight])  # the same training
    assert not torch.equal(result[weight], other[weight])
    assert torch.equal(resume[f"average/{weight}"], result[weight])
    assert not torch.allclose(result[mean], other[mean], rtol=0.1)


def test_the_statistics_of_a_network_are_those_of_what_it_saw():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(2)).eval()
    batches = [torch.randn(4, 2, 5, 5) * 3 + 1 for _ in range(3)]
    estimate_norms(network, batches[:2], nullcontext())
    seen = torch.stack(batches[:2])
    torch.testing.assert_close(network[0].running_mean, seen.mean((0, 1, 3, 4)))
    torch.testing.assert_close(network[0].running_var, seen.var((1, 3, 4)).mean(0))
    assert not network.training
    assert network[0].momentum == 0.1


def test_the_packaged_student_is_where_training_starts(store, photographs, tmp_path):
    default = load_checkpoint(checkpoint_path("default"))[0]
    settings = override(
        load_settings().train,
        epochs=1,
        batch_size=2,
        crop=(48, 32),
        num_workers=0,
        device="cpu",
        learning_rate=1e-12,
        precision="float32",
    )
    run = train_on([store], photographs, tmp_path / "run", settings, quiet=True)
    assert run == tmp_path / "run"
    student, info = load_checkpoint(run / "best.safetensors")
    assert info["init"] == default.weights
    torch.testing.assert_close(student.pixel_head[1].weight, default.pixel_head[1].weight)
    for size, start in (
        ("nano", load_checkpoint(checkpoint_path("nano"))[0].weights),
        ("base", ""),
    ):
        other = override(settings, networks={"light": {"size": size}})
        run = train_on([store], photographs, tmp_path / size, other, quiet=True)
        assert load_checkpoint(run / "best.safetensors")[1]["init"] == start


def test_settings_of_the_network_are_its_own(store, photographs, tmp_path):
    settings = load_settings().train
    wrong = override(settings, network="hfnet", networks={"hfnet": {"widht": 0.5}})
    with pytest.raises(InputError, match=r"\[train.networks.hfnet\]: .*widht"):
        train_on([store], photographs, tmp_path / "run", wrong, quiet=True)
    with pytest.raises(InputError, match="loss 'detektor': expected one of detector"):
        train_on(
            [store],
            photographs,
            tmp_path / "run",
            override(settings, loss_weights={"detektor": 1.0}, crop=(48, 32)),
            quiet=True,
        )


def test_the_strategies_that_compare_points(run_command, train, photographs, tmp_path):
    sparse = tmp_path / "sparse.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", sparse, "--fields"),
        *("sparse", "--top-k", 20, "--size", "64x48", "--quiet", "--device", "cpu"),
    )
    train("--epochs", 1, "--strategy", "sparse", output="sparse", stores=(sparse,))
    train("--epochs", 1, output="keypoints", stores=(sparse,))
    train("--epochs", 1, "--strategy", "upsample", output="upsample")
    for run in ("sparse", "keypoints", "upsample"):
        assert load_checkpoint(tmp_path / run / "best.safetensors")[0].config.descriptor_dim == 256
    assert "has no keypoints" in train("--strategy", "sparse", output="none", code=1)


def test_another_network_and_every_loss(run_command, train, photographs, tmp_path):
    sparse = tmp_path / "sparse.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", sparse, "--fields"),
        *("sparse", "--max-num-keypoints", 20, "--size", "64x48", "--quiet", "--device", "cpu"),
    )
    text = (Path(__file__).parent.parent / "recipes" / "small.toml").read_text()
    text = re.sub(r"(?m)^(\w+) = 0\.0$", r"\1 = 1.0", text)  # losses that are left out
    text = text.replace('"small"', '"nano"')
    (tmp_path / "all.toml").write_text(text)
    train(
        *("--config", tmp_path / "all.toml", "--network", "light", "--epochs", 1), stores=(sparse,)
    )
    student, info = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert type(student) is Light
    assert student.config == replace(CONFIGS["nano"], descriptor_dim=256)
    assert info["network"] == "light"
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert line.keys() >= {"detector", "occupied", "where", "descriptor", "similarity"}


def test_a_run_is_not_overwritten_or_mixed(train):
    train("--epochs", 1)
    assert "holds a run already; go on with --resume" in train("--epochs", 1, code=1)
    output = train("--epochs", 1, "--resume", "--seed", 5, code=1)
    assert "cannot resume: settings.seed is 0 there and 5 here" in output


def test_a_loss_that_is_no_number_stops_the_run(train, tmp_path, monkeypatch):
    steps = []

    def explode(*arguments):
        steps.append(1)
        factor = torch.nan if len(steps) == 2 else 1  # the losses are looked at after the third
        return {name: loss * factor for name, loss in batch_losses(*arguments).items()}

    train("--epochs", 1)
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    monkeypatch.setattr("hfnet_distill.student.training.batch_losses", explode)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy" / "resume.safetensors").unlink()
    output = train("--epochs", 1, "--resume", output="copy", code=1)
    assert "the loss became nan at step 1" in output
    assert (tmp_path / "copy" / "last.safetensors").read_bytes() == before


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_missing_compiler_is_named(train, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    (tmp_path / "compiled.toml").write_text(text.replace("compile = false", "compile = true"))

    def missing(*arguments):
        raise CppCompileError(["g++"], "no such file")

    monkeypatch.setattr("hfnet_distill.student.training.batch_losses", missing)
    output = train("--config", tmp_path / "compiled.toml", code=1)
    assert "torch.compile does not work here (C++ compile error" in output
    assert "or set compile = false" in output


def test_a_global_store_beside_a_local_one(train, store, tmp_path):
    names = RecordStore.open(store).names
    places = write_global_store(tmp_path / "places.zarr", names[1:])
    train("--epochs", 1, stores=(store, places))
    student, info = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert student.config.global_dim == 16
    assert info["photographs"] == 4  # five are in both stores, one of them validates


def test_learned_loss_weights_and_nothing_to_validate_on(train, tmp_path):
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    for old, new in (
        ('weighting = "fixed"', 'weighting = "uncertainty"'),
        ("validation = 0.04", "validation = 0.0"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "learned.toml").write_text(text)
    train("--epochs", 2, "--config", tmp_path / "learned.toml")
    tensors, _ = read_tensors(tmp_path / "run" / "resume.safetensors")
    weights = tensors["weighting/log_variances"]
    assert (weights != 1).all()
    assert load_checkpoint(tmp_path / "run" / "best.safetensors")[1]["epoch"] == 2


def test_starting_from_another_student(train, tmp_path):
    train("--epochs", 1)
    train("--epochs", 1, "--learning-rate", 1e-12, "--init", tmp_path / "run", output="second")
    first, second = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "second"))
    key = "detector_head.1.weight"
    torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=0)
    output = train("--init", tmp_path / "nothing", output="third", code=1)
    assert "no such checkpoint" in output


def test_photographs_that_are_not_those_of_the_store(train, photographs, tmp_path):
    (tmp_path / "others").mkdir()
    shutil.copy(photographs / "0.png", tmp_path / "others" / "other.png")
    output = train(images=tmp_path / "others", code=1)
    assert "holds none of the 6 photographs" in output


def test_stores_that_do_not_fit(train, store, tmp_path):
    names = RecordStore.open(store).names
    places = write_global_store(tmp_path / "places.zarr", names, size=(32, 32))
    assert "image size (32, 32)" in train(stores=(store, places), code=1)
    assert "a second store of the same kind" in train(stores=(store, store), code=1)
    places = write_global_store(tmp_path / "only.zarr", names)
    assert "holds only global descriptors" in train(stores=(places,), code=1)


def test_a_global_branch_alone(train, store, tmp_path):
    train("--epochs", 1)
    places = write_global_store(tmp_path / "places.zarr", RecordStore.open(store).names)
    train("--init", tmp_path / "run", "--epochs", 2, stores=(places,), output="places")
    first, second = (
        load_checkpoint(tmp_path / run / "last.safetensors")[0] for run in ("run", "places")
    )
    assert second.config == replace(first.config, global_dim=16, global_rank=128)
    image = torch.rand(1, 1, 48, 64)
    with torch.inference_mode():
        before, after = first(image), second(image)
        assert torch.equal(second.describe_globally(image), after.global_descriptor)
    assert torch.equal(before.score_logits, after.score_logits)
    assert torch.equal(before.descriptor_map, after.descriptor_map)


def test_a_store_that_is_not_finished(train, store):
    shutil.rmtree(store / "done" / "c")
    shutil.rmtree(store / "complete" / "c")
    assert "1 of 1 shards are not written yet; run the same export" in train(code=1)


def test_a_crop_larger_than_the_images(train):
    assert "crop 640x480 is larger than the store's images" in train("--crop", "640x480", code=1)


def test_too_few_photographs_for_a_batch(train):
    assert "do not fill a batch of 64" in train("--batch-size", 64, code=1)


def test_checkpoints_are_strict(tmp_path):
    path = tmp_path / "student.safetensors"
    save_checkpoint(path, HFNet(), {}, torch.float16)
    assert next(load_checkpoint(path)[0].parameters()).dtype == torch.float32
    tensors, metadata = read_tensors(path)
    write_tensors(path, {**tensors, "extra": torch.zeros(1)}, metadata)
    with pytest.raises(CheckpointError, match="not the network that it describes"):
        load_checkpoint(path)
    path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a checkpoint of this software"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_packaged_student_learns_the_places_of_its_new_teacher():
    rng = np.random.default_rng(0)
    shapes = {"words": (16, 128), "mean": (2048,), "projection": (256, 2048)}
    learned = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    places = SimpleNamespace(
        teacher=GlobalTeacher(256, (16, 128)), store=SimpleNamespace(parameters=learned)
    )
    settings = override(load_settings().train, init="small")
    student, digest = make_student(Targets(None, None, places), settings)
    small, _ = load_checkpoint(checkpoint_path("small"))
    assert digest == small.weights
    assert torch.equal(student.projection.weight, torch.from_numpy(learned["projection"]))
    assert torch.equal(student.fuse[0].weight, small.fuse[0].weight)


@pytest.mark.parametrize("size", ["nano", "base"])
def test_a_student_starts_from_one_of_another_size(size):
    local = SimpleNamespace(descriptor_dim=128, store=None)
    settings = override(
        load_settings().train, network="light", networks={"light": {"size": size}}, init="small"
    )
    student, digest = make_student(Targets(None, local), settings)
    small, _ = load_checkpoint(checkpoint_path("small"))
    assert digest == small.weights
    assert torch.equal(student.occupancy_head[1].weight, small.occupancy_head[1].weight)
    settings.networks["light"]["depths"] = [1, 1, 1, 1, 1]
    with pytest.raises(CheckpointError, match="make the network's settings equal to its own"):
        make_student(Targets(None, local), settings)


def test_places_from_the_students_own_descriptors(train, run_command, store, photographs, tmp_path):
    places = tmp_path / "vlad.zarr"
    run_command(
        export_teacher,
        *("--model", "vlad", "--from-store", store, "--store", places),
        *("--words", 4, "--dim", 3, "--quiet"),
    )
    train("--epochs", 1)
    packed = tmp_path / "packed.safetensors"
    run_command(pack, tmp_path / "run", packed, "--vlad", places)
    at_once, description = load_checkpoint(packed)
    assert description["config"]["global_dim"] == 3
    arguments = ("--init", tmp_path / "run", "--epochs", 1, "--learning-rate", 1e-9)
    train(*arguments, stores=(places,), output="places")
    student, _ = load_checkpoint(tmp_path / "places" / "last.safetensors")
    assert (student.config.global_pooling, student.config.clusters) == ("local", 4)
    vlad = VLAD.from_arrays(RecordStore.open(places).parameters)
    torch.testing.assert_close(student.vlad.words, torch.from_numpy(vlad.words))
    torch.testing.assert_close(student.projection.weight, torch.from_numpy(vlad.projection))
    for name, tensor in at_once.state_dict().items():  # as trained at no rate, in float16
        torch.testing.assert_close(tensor, student.state_dict()[name], rtol=1e-3, atol=1e-3)
    message = run_command(pack, tmp_path / "run", packed, "--vlad", store, code=1)
    assert "holds no VLAD; make one with export-teacher --model vlad --from-store" in message
