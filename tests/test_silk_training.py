import json
import os
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.networks.silk import SiLK, SiLKConfig
from hfnet_distill.teacher_export.silk_training import (
    SiLKTraining,
    compare_views,
    random_views,
    train_silk,
)

SETTINGS = SiLKTraining(
    network=SiLKConfig(channels=(8,), lateral=8, descriptor_dim=8),
    grid=12,
    steps=6,
    warmup=2,
    validate_every=3,
    precision="float32",
)


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for index in range(3):
        image = cv2.resize(rng.integers(0, 256, (12, 16), np.uint8), (64, 48))
        paths.append(tmp_path / f"photo{index}.png")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def test_corresponding_positions_show_the_same(tmp_path):
    y, x = np.mgrid[:48, :64]
    cv2.imwrite(str(tmp_path / "ramp.png"), (2 * x + 2 * y).astype(np.uint8))
    plain = replace(SETTINGS, photometric=0.0)
    for seed in range(5):
        pair = random_views(tmp_path / "ramp.png", np.random.default_rng(seed), plain)
        assert pair.images.shape == (2, 1, 18, 18)
        inner = (255 * pair.images[:, 0, 3:-3, 3:-3]).reshape(2, -1)
        covisible = pair.correspondences >= 0
        assert covisible.sum() > 20
        error = inner[0, covisible] - inner[1, pair.correspondences[covisible]]
        # Half an element at most on each axis, of up to 2 pixels in which gray rises by 2.
        assert error.abs().max() < 5
        assert error.mean().abs() < 0.7


def test_views_follow_from_the_seed(photographs):
    one, same, other = (
        random_views(photographs[0], np.random.default_rng(seed), SETTINGS) for seed in (1, 1, 2)
    )
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_overfits_one_pair(photographs):
    torch.manual_seed(0)
    pair = random_views(photographs[0], np.random.default_rng(1), replace(SETTINGS, photometric=0))
    network = SiLK(SETTINGS.network).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(40):
        loss, values = compare_views(network, pair, SETTINGS)
        if step == 0:
            first = values
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values["descriptor"] < 0.7 * first["descriptor"]
    assert values["round_trip"] > first["round_trip"] + 0.2


def test_bfloat16_agrees(photographs):
    torch.manual_seed(0)
    network = SiLK(SETTINGS.network).train()
    pair = random_views(photographs[0], np.random.default_rng(0), SETTINGS)
    gradients = []
    for precision in ("float32", "bfloat16"):
        network.zero_grad()
        compare_views(network, pair, replace(SETTINGS, precision=precision))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


def interrupt_at(step):
    def advance(steps, note):
        advance.done += steps
        if advance.done == step:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    advance.done = 0
    return advance


def test_a_resumed_run_takes_the_same_steps(photographs, tmp_path):
    train_silk(photographs[1:], photographs[:1], tmp_path / "whole", SETTINGS, resume=True)
    halves = tmp_path / "halves"
    with pytest.raises(KeyboardInterrupt):
        train_silk(photographs[1:], photographs[:1], halves, SETTINGS, advance=interrupt_at(4))
    train_silk(photographs[1:], photographs[:1], halves, SETTINGS, resume=True)
    whole, other = (SiLK.read(tmp_path / n / "silk.safetensors") for n in ("whole", "halves"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name

    lines = [json.loads(line) for line in (halves / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [3, 6]
    assert lines[-1].keys() >= {"loss", "round_trip", "match_precision", "detector_recall"}


def test_a_run_is_not_mixed_with_another(photographs, tmp_path):
    short = replace(SETTINGS, steps=2)
    train_silk(photographs, photographs[:1], tmp_path / "run", short)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train_silk(photographs, photographs[:1], tmp_path / "run", short)
    other = replace(short, temperature=0.1)
    with pytest.raises(
        ValueError, match=r"cannot resume: settings\.temperature is 0\.05 there and 0\.1 here"
    ):
        train_silk(photographs, photographs[:1], tmp_path / "run", other, resume=True)
    longer = replace(short, steps=3)
    train_silk(photographs, photographs[:1], tmp_path / "run", longer, resume=True)


def test_similarities_beyond_float32_are_refused(photographs, tmp_path):
    hot = replace(SETTINGS, temperature=0.01)
    with pytest.raises(ValueError, match=r"reach 100, expected at most 60; raise it to 0\.017"):
        train_silk(photographs, photographs[:1], tmp_path / "run", hot)


def test_a_small_photograph_is_named(photographs, tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((17, 40), np.uint8))
    with pytest.raises(ValueError, match=r"small\.png: 40x17 pixels, smaller than a view of 18x18"):
        train_silk(photographs, [tmp_path / "small.png"], tmp_path / "run", SETTINGS)
    with pytest.raises(ValueError, match="3 photographs to train on and 0 to validate on"):
        train_silk(photographs, [], tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run(photographs, tmp_path, monkeypatch):
    def poisoned(network, pair, settings):
        loss, values = compare_views(network, pair, settings)
        return (loss * torch.nan if network.training and poisoned.calls == 4 else loss), values

    def counted(*arguments):
        poisoned.calls += 1
        return poisoned(*arguments)

    poisoned.calls = -1  # the validation after step 3 is a call, too
    monkeypatch.setattr("hfnet_distill.teacher_export.silk_training.compare_views", counted)
    with pytest.raises(RuntimeError, match=r"the loss became nan at step 3; .* are sound"):
        train_silk(photographs, photographs[:1], tmp_path / "run", SETTINGS)
    network = SiLK.read(tmp_path / "run" / "silk.safetensors")
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
