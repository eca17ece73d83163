"""What a GPU would refuse or wait for, found without one.

Fake tensors have a device and a shape but no values: whoever mixes devices or asks for a value (a
copy to the host, a mask, ``nonzero``) fails. The device is "lazy", which every PyTorch knows and
treats as it treats "cuda"; that one's gradients need a build for CUDA. What values decide,
such as which pixels are keypoints, is counted on the CPU instead.
"""

import contextlib
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import SIZE, store, write_global_store  # noqa: F401  (a fixture)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hfnet_distill.config import override, shipped_settings
from hfnet_distill.data.keypoints import KeypointChoice, refine_keypoints, sum_scores
from hfnet_distill.data.stores.quantize import quantize_fields
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.light import Light, LightConfig
from hfnet_distill.networks.silk import SiLK, SiLKConfig
from hfnet_distill.networks.superpoint import SuperPoint
from hfnet_distill.student.loader import DistillationDataset
from hfnet_distill.student.targets import STRATEGIES, choose_targets, find_strategy
from hfnet_distill.student.training import (
    Learner,
    batch_losses,
    make_student,
)
from hfnet_distill.teacher_export.cli import export_teacher
from hfnet_distill.teacher_export.shards import compute_batch
from hfnet_distill.teacher_export.silk_training import (
    SiLKTraining,
    ViewPair,
    compare_views,
    random_views,
)

DEVICE = torch.device("lazy:0")
WAITS = re.compile(
    r"_local_scalar_dense|item|_linalg_check_errors|linalg_inv$|nonzero|masked_select|unique"
    r"|^equal$|lift_fresh"
)


class Traffic(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, and copies between the two.

    Attributes:
        found: Counter of operators, on fake tensors of those on the device. ``lift_fresh`` makes a
            tensor of Python's numbers, which is copied before it meets others on a GPU.
        blocking: Counter of those copies among them that end before the host goes on.
    """

    def __init__(self):
        super().__init__()
        self.found, self.blocking = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            name = "index nonzero"
        if name in ("to", "_to_copy", "copy_"):
            source = args[1 if name == "copy_" else 0]
            if source.device != result.device:
                way = f"{source.device.type} to {result.device.type}"
                self.found[way] += 1
                self.blocking[way] += not (kwargs.get("non_blocking") or args[2:3] == (True,))
        elif WAITS.search(name) and not any(
            isinstance(value, FakeTensor) and value.is_cpu for value in (args[0], result)
        ):
            self.found[name] += 1
        return result


def move(module: nn.Module, device: torch.device, **form) -> nn.Module:
    """``Module.to`` for fake tensors, which its own cannot swap."""
    for child in module.modules():
        for name, value in child._parameters.items():
            if value is not None:
                moved = value.detach().to(device)
                child._parameters[name] = nn.Parameter(moved, value.requires_grad)
        for name, value in child._buffers.items():
            child._buffers[name] = value.to(device)
    return module


@pytest.fixture
def fake(monkeypatch):
    """Fake tensors; modules, autocast and autograd that know what to do with them."""
    monkeypatch.setattr(nn.Module, "to", move)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    for module in ("student.training", "teacher_export.silk_training", "networks.base"):
        monkeypatch.setattr(f"hfnet_distill.{module}.autocast", lambda *_: contextlib.nullcontext())
    with torch.autograd.set_multithreading_enabled(False):
        yield FakeTensorMode()


@pytest.fixture
def stores(run_command, store, photographs, tmp_path) -> dict[str, list[RecordStore]]:  # noqa: F811
    sparse = tmp_path / "sparse.zarr"
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", sparse, "--fields"),
        *("sparse", "--max-num-keypoints", 20, "--size", "64x48", "--quiet", "--device", "cpu"),
    )
    whole = write_global_store(tmp_path / "places.zarr", RecordStore.open(sparse).names)
    opened = {"dense": store, "sparse": sparse, "global": whole}
    return {name: RecordStore.open(path) for name, path in opened.items()}


def train_settings(**changes):
    """All losses, and two views of each photograph that may show what lies beyond it."""
    settings = shipped_settings().train
    values = {"batch_size": 2, "crop": (48, 32), "init": "none", "precision": "float32"}
    weights = dict.fromkeys(settings.loss_weights, 1.0)
    return override(settings, **{**values, "loss_weights": weights, **changes})


def prepare(stores, settings, photographs):
    targets = choose_targets(stores, settings.detector_target, settings.descriptor_target)
    dataset = DistillationDataset(photographs, stores[0].names, targets, settings)
    batch = torch.utils.data.default_collate([dataset[0, 0], dataset[0, 1]])
    return targets, dataset, batch


@pytest.mark.parametrize("network", ["hfnet", "light"])
@pytest.mark.parametrize(
    ("weighting", "views_on"),
    [("fixed", "loader"), ("uncertainty", "loader"), ("fixed", "device")],
)
def test_a_step_of_a_student(fake, stores, photographs, network, weighting, views_on):
    settings = train_settings(network=network, weighting=weighting, views_on=views_on)
    targets, dataset, batch = prepare([stores["sparse"], stores["global"]], settings, photographs)
    with fake, Traffic() as traffic:
        student, _ = make_student(targets, settings)
        learner = Learner(student, dataset, DEVICE)
        traffic.found.clear()
        batch = {name: fake.from_tensor(values) for name, values in batch.items()}
        for number in (1, 2):
            values = learner.step(batch, number, 1e-3)
    assert values.keys() == {"loss", *settings.loss_weights}
    assert {value.device for value in values.values()} == {DEVICE}
    assert traffic.found == {"cpu to lazy": 2 * len(batch)}


@pytest.mark.parametrize("views_on", ["loader", "device"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_step_of_a_student_waits_for(stores, photographs, strategy, views_on):
    """A mask of booleans is ``nonzero``, too."""
    settings = train_settings(network="light", views_on=views_on, **find_strategy(strategy))
    if settings.detector_target == "cells":
        weights = {**settings.loss_weights, "contrast": 0.0, "reward": 0.0}
        settings = override(settings, loss_weights=weights)
    kind = "sparse" if strategy in ("sparse", "keypoints") else "dense"
    targets, dataset, batch = prepare([stores[kind]], settings, photographs)
    student, _ = make_student(targets, settings)
    learner = Learner(student, dataset, torch.device("cpu"))
    with Traffic() as traffic:
        losses = batch_losses(student.train(), batch, dataset, learner.names, learner.device)
        learner.weighting(losses).backward()
        learner.average.update(student, 1)
    assert traffic.found == ({"nonzero": 1} if settings.detector_target == "cells" else {})


SILK = SiLKTraining(
    network=SiLKConfig(channels=(8,), lateral=8, descriptor_dim=8), grid=12, precision="float32"
)


def test_a_step_of_silk(fake, photographs):
    pair = random_views(photographs / "0.png", np.random.default_rng(0), SILK)
    with fake, Traffic() as traffic:
        network = SiLK(SILK.network).to(DEVICE)
        traffic.found.clear()
        pair = ViewPair(*(fake.from_tensor(part) for part in pair))
        loss, values = compare_views(network, pair, replace(SILK, device=str(DEVICE)))
        loss.backward()
    assert {value.device for value in (loss, *values.values())} == {DEVICE}
    assert traffic.found == {"cpu to lazy": 2}


def test_what_a_step_of_silk_waits_for(photographs):
    pair = random_views(photographs / "0.png", np.random.default_rng(0), SILK)
    network = SiLK(SILK.network)
    with Traffic() as traffic:
        compare_views(network, pair, SILK)[0].backward()
    assert not traffic.found


NETWORKS = {
    "superpoint": SuperPoint,
    "silk": SiLK,
    "hfnet": lambda: HFNet(HFNetConfig(detector_skip=True, context_block=True, global_dim=8)),
    "light": lambda: Light(LightConfig(global_dim=8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_and_descriptors_of_a_network(fake, name):
    """All of export and ``extract`` but the choice of keypoints, which values decide."""
    with fake, torch.no_grad(), Traffic() as traffic:
        network = NETWORKS[name]().eval().to(DEVICE)
        groups = ["sparse", "score_map", "descriptor_map"]
        keypoints = [(torch.zeros(20, 2, device=DEVICE), torch.zeros(20, device=DEVICE))] * 2
        images, choice = torch.zeros(2, network.channels, 48, 64), KeypointChoice(0, 4, 4, 20, 3, 1)
        traffic.found.clear()
        maps = network.maps(images)
        pixels = sum_scores(maps.pixel_scores(), choice.rank_radius)
        refined = refine_keypoints(pixels[0], keypoints[0][0], choice.refine_radius)
        described = network.describe(maps, 1, refined)
        assert traffic.found == {"cpu to lazy": 1}
        arrays = network.export(images, groups, choice, keypoints)
    assert pixels.device == described.device == DEVICE
    assert arrays.pop("count").is_cpu  # what the host knows already
    assert {array.device for array in arrays.values()} == {DEVICE}
    assert traffic.found == {"cpu to lazy": 2}


def test_what_a_choice_of_keypoints_waits_for():
    """Suppression asks in each of a few rounds how many pixels still stand, of all images once."""
    scores = torch.rand(2, 120, 160, generator=torch.Generator().manual_seed(0))
    waits = []
    for images in (scores, scores.repeat(4, 1, 1)):
        with Traffic() as traffic:
            KeypointChoice(0.005, 4, 4, 100, 3, 1)(images)
        waits.append(traffic.found.total())
    assert waits[0] == waits[1] <= 14


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("groups", [["score_map", "descriptor_map"], ["sparse"]])
def test_a_batch_of_an_export(fake, groups, number):
    """Eight bits go there, eight bits come back; nothing waits, and nothing is on another GPU."""
    device = torch.device("lazy", number)
    fields = quantize_fields(SuperPoint().fields(groups, (64, 48), 20))
    with fake:
        network = SuperPoint().eval().to(device)
        keypoints = [(torch.zeros(20, 2), torch.zeros(20))] * 3 if groups == ["sparse"] else None
        pixels = torch.zeros(3, 48, 64, dtype=torch.uint8)
        places = [
            (rows, {k: torch.empty(n, *f.shape, dtype=getattr(torch, f.dtype)) for k, f in parts})
            for rows, n, parts in (
                (slice(0, 1), 1, fields.items()),
                (slice(1, 3), 2, fields.items()),
            )
        ]
        choice = KeypointChoice(0, 4, 4, 20)
        with Traffic() as traffic:
            compute_batch(network, pixels, groups, choice, keypoints, fields, places)
    there, back = f"cpu to {device.type}", f"{device.type} to cpu"
    assert traffic.found.keys() == {there, back}
    assert not traffic.blocking.total()
    assert traffic.found[back] == 2 * len(fields.keys() - {"count"})
