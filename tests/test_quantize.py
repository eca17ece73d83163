"""Eight bits a value: worked by hand, close to what went in, through a store and into training."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.config import load_settings, override
from hfnet_distill.data.geometry import CELL_MAP
from hfnet_distill.data.stores.quantize import dequantize, quantize, quantize_fields
from hfnet_distill.data.stores.store import Field, RecordStore
from hfnet_distill.networks.base import StudentOutput
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.student.loader import DistillationDataset
from hfnet_distill.student.losses import detector_loss
from hfnet_distill.student.targets import Lesson, choose_targets
from hfnet_distill.student.training import batch_losses
from hfnet_distill.teacher_export.cli import export_teacher

FLOATS = {
    "score_map": Field(shape=(65, 6, 8), dtype="float16", geometry=CELL_MAP),
    "descriptor_map": Field(shape=(256, 6, 8), dtype="float16", geometry=CELL_MAP),
    "keypoints": Field(shape=(20, 2), dtype="float32"),
    "descriptors": Field(shape=(20, 128), dtype="float16"),
    "count": Field(shape=(), dtype="int32"),
    "global_descriptor": Field(shape=(64,), dtype="float16"),
}
FIELDS = quantize_fields(FLOATS)


def make_arrays(batch: int = 2) -> dict[str, torch.Tensor]:
    """Such as a teacher gives: most cells hold little beside "no keypoint", some one keypoint."""
    draw = torch.Generator().manual_seed(0)

    def normal(name: str) -> torch.Tensor:
        return torch.randn(batch, *FLOATS[name].shape, generator=draw)

    logits = 2 * normal("score_map")
    logits[:, 64] += 9
    logits[:, 20, ::2] += 10
    return {
        "score_map": logits.softmax(1),
        "descriptor_map": F.normalize(normal("descriptor_map"), dim=1),
        "keypoints": normal("keypoints"),
        "descriptors": F.normalize(normal("descriptors"), dim=2),
        "count": torch.tensor([20, 3], dtype=torch.int32),
        "global_descriptor": F.normalize(normal("global_descriptor"), dim=1),
    }


def test_worked_by_hand():
    fields = quantize_fields({"descriptors": Field(shape=(2, 2), dtype="float16")})
    stored = quantize(fields, {"descriptors": torch.tensor([[0.6, -0.8], [0.0, 0.0]])})
    # 0.8 / 127 in float16 is 0.0063, a little above; 0.6 is 95.25 steps of 0.8 / 127.
    assert stored["descriptors"].tolist() == [[95, -127], [0, 0]]
    assert stored["descriptors_scale"].tolist() == pytest.approx([0.8 / 127, 2**-14], rel=5e-4)
    expected = torch.tensor([[95 / 127 * 0.8, -0.8], [0, 0]])
    assert torch.allclose(dequantize(stored)["descriptors"], expected, rtol=5e-4)

    fields = quantize_fields({"score_map": Field(shape=(1, 1, 3), dtype="float16")})
    stored = quantize(fields, {"score_map": torch.tensor([[[0.0, 0.0625, 1.0]]])})
    assert stored["score_map"].tolist() == [[[0, 128, 255]]]
    expected = torch.tensor([[[0, (128 / 255) ** 4, 1]]])
    assert torch.allclose(dequantize(stored)["score_map"], expected)


def test_the_fields_a_store_gets():
    assert [*FIELDS] == [
        *("score_map", "descriptor_map", "descriptor_map_scale", "keypoints"),
        *("descriptors", "descriptors_scale", "count", "global_descriptor"),
    ]
    assert FIELDS["descriptor_map_scale"].shape == (6, 8)
    assert FIELDS["descriptors_scale"].shape == (20,)
    for name, values in quantize(FIELDS, make_arrays()).items():
        assert values.shape[1:] == FIELDS[name].shape
        assert str(values.dtype) == f"torch.{FIELDS[name].dtype}"


@pytest.mark.parametrize("batched", [True, False])
def test_what_comes_back_is_close(batched):
    arrays = make_arrays()
    if not batched:
        arrays = {name: values[0] for name, values in arrays.items()}
    found = dequantize(quantize(FIELDS, arrays))
    assert found.keys() == arrays.keys()
    for name, axis in (("descriptor_map", -3), ("descriptors", -1)):
        assert F.cosine_similarity(found[name], arrays[name], dim=axis).mean() > 0.9999
        assert torch.allclose(found[name].norm(dim=axis), torch.ones(()), atol=3e-3)
    variation = (found["score_map"] - arrays["score_map"]).abs().sum(-3) / 2
    assert variation.mean() < 2e-3
    assert variation.max() < 0.01
    assert torch.allclose(found["score_map"].sum(-3), torch.ones(()))
    for name in ("keypoints", "count"):
        assert torch.equal(found[name], arrays[name])


def test_the_loss_and_its_gradient_hardly_change():
    exact = make_arrays()["score_map"]
    near = dequantize(quantize(FIELDS, {"score_map": exact}))["score_map"]
    logits = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for target in (exact, near):
        leaf = logits.clone().requires_grad_()
        lesson = Lesson(None, (6, 8), cells=target)
        losses.append(detector_loss(StudentOutput(leaf, None, None), lesson).mean())
        gradients.append(torch.autograd.grad(losses[-1], leaf)[0])
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-3)
    assert (gradients[1] - gradients[0]).norm() < 5e-3 * gradients[0].norm()


@pytest.fixture(params=["zarr", "hdf5"])
def stores(request, run_command, photographs, tmp_path):
    """The same export, kept in float16 and in eight bits."""
    for quantisation in ("none", "int8"):
        run_command(
            export_teacher,
            *("--model", "superpoint", "--images", photographs, "--format", request.param),
            *("--store", tmp_path / quantisation, "--quantisation", quantisation),
            *("--fields", "score_map,descriptor_map,sparse", "--size", "64x48", "--quiet"),
        )
    return RecordStore.open(tmp_path / "none"), RecordStore.open(tmp_path / "int8")


def test_a_record_comes_back_in_floats(stores):
    exact, near = (store.record("walk/5.png") for store in stores)
    assert stores[1].read("walk/5.png", "descriptor_map").dtype == np.int8
    assert near["descriptor_map"].dtype == near["score_map"].dtype == np.float32
    np.testing.assert_allclose(near["descriptor_map"], exact["descriptor_map"], atol=3e-3)
    np.testing.assert_allclose(near["score_map"], exact["score_map"], atol=8e-3)
    np.testing.assert_array_equal(near["keypoints"], exact["keypoints"])
    np.testing.assert_allclose(near["descriptors"], exact["descriptors"], atol=3e-3)
    assert stores[1].corrupt_records(0) == []


def test_a_student_learns_the_same_from_either(stores, photographs):
    plain = {
        "crop": (48, 32),
        "views": 1,
        "warp": 0.0,
        "photometric": 0.0,
        "full_resolution": False,
    }
    settings = override(load_settings().train, precision="float32", seed=3, **plain)
    losses = []
    for store in stores:
        torch.manual_seed(0)
        targets = choose_targets([store], "cells", "peaks")
        data = DistillationDataset(photographs, store.names, targets, settings)
        batch = {name: values[None] for name, values in data[0, 0].items()}
        assert batch["descriptor_map"].dtype == getattr(
            torch, store.schema.fields["descriptor_map"].dtype
        )
        student = HFNet(HFNetConfig(width=0.35, descriptor_dim=256)).eval()
        names, device = ("detector", "descriptor"), torch.device("cpu")
        losses.append(batch_losses(student, batch, data, names, device))
    for name in losses[0]:
        assert losses[1][name].item() == pytest.approx(losses[0][name].item(), rel=2e-3)
