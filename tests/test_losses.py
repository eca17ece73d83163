"""The losses against the values that HF-Net's code gave, and by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.student.losses import (
    UncertaintyWeights,
    correspondence_loss,
    descriptor_loss,
    detector_loss,
    global_descriptor_loss,
    keypoint_loss,
    localization_loss,
    weighted_mean,
)
from hfnet_distill.student.views import cell_centres


class Recorded:
    """HF-Net's recorded inputs in our layout, and its losses."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name])).squeeze()

    def map(self, name: str) -> torch.Tensor:
        return self[name].permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def recorded(excerpt):
    return Recorded(excerpt("hfnet_losses"))


def check(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_losses_of_maps(recorded, masked):
    mask, suffix = (recorded["valid_mask"], "_masked") if masked else (None, "")
    descriptors = (
        recorded.map("pred/local_descriptor_map"),
        recorded.map("target/local_descriptor_map"),
    )
    check(descriptor_loss(*descriptors, mask), recorded[f"loss_local{suffix}"])
    cells = recorded.map("pred/logits"), recorded.map("target/dense_scores")
    check(detector_loss(*cells, mask), recorded[f"loss_detector_soft{suffix}"])


def test_loss_of_hard_keypoints(recorded):
    found = keypoint_loss(recorded.map("pred/logits"), recorded["keypoint_map"])
    check(found, recorded["loss_detector_hard"])


def test_loss_of_global_descriptors(recorded):
    found = global_descriptor_loss(
        recorded["pred/global_descriptor"], recorded["target/global_descriptor"]
    )
    check(found, recorded["loss_global"])


def test_totals(recorded):
    losses = {
        "global": recorded["loss_global"].mean(),
        "descriptor": recorded["loss_local"].mean(),
        "detector": recorded["loss_detector_soft"].mean(),
    }
    check(weighted_mean(losses, dict.fromkeys(losses, 1.0)), recorded["loss_total_weights_1_1_1"])
    weights = {"descriptor": 2.0, "global": 3.0, "detector": 0.5}
    check(weighted_mean(losses, weights), recorded["loss_total_weights_l2_g3_d0.5"])
    uncertainty = UncertaintyWeights([*losses])
    check(uncertainty(losses).detach(), recorded["loss_total_uncertainties_init1"])
    uncertainty.log_variances.data = recorded["uncertainty_w"]
    check(uncertainty(losses).detach(), recorded["loss_total_uncertainties_w"])


def test_a_perfect_student_has_no_descriptor_loss_and_the_teachers_entropy():
    descriptors = torch.nn.functional.normalize(torch.randn(2, 8, 3, 4), dim=1)
    assert descriptor_loss(descriptors, descriptors).tolist() == [0, 0]
    cells = torch.full((1, 65, 2, 2), 1 / 65)
    loss = detector_loss(torch.zeros(1, 65, 2, 2), cells)
    torch.testing.assert_close(loss, torch.log(torch.tensor([65.0])))


def logits_of(*keypoints, seed=0):
    """Logits of 64x48 pixels that say keypoints (x, y, probability) and nothing between them."""
    scores = torch.full((1, 1, 48, 64), 1e-6)
    for x, y, score in keypoints:
        scores[0, 0, y, x] = score
    cells = F.pixel_unshuffle(scores, 8)
    return torch.cat([cells, 1 - cells.sum(1, keepdim=True)], 1).log()


def test_localization_is_how_far_apart_two_views_see_a_keypoint():
    # Between (20, 21) and (22, 21) by their scores; a pixel lower in view 1, which is shifted.
    view0 = logits_of((20, 21, 0.6), (22, 21, 0.3), (50, 40, 0.8))
    view1 = logits_of((12, 22, 0.6), (14, 22, 0.3), (42, 40, 0.8))
    shift = torch.eye(3, dtype=torch.float64)[None]
    shift[:, 0, 2] = -8
    assert localization_loss((view0, view1), shift).item() == pytest.approx(0.5, abs=0.01)
    # By the centres of gravity, so that scores, not only their maxima, are drawn together.
    view1 = logits_of((12, 21, 0.6), (14, 21, 0.1), (42, 40, 0.8)).requires_grad_()
    loss = localization_loss((view0, view1), shift)
    assert loss.item() == pytest.approx((2 / 3 - 2 / 7) / 2, abs=0.01)
    loss.sum().backward()
    weaker = F.pixel_shuffle(view1.grad[:, :64], 8)[0, 0, 21, 14]
    assert weaker < 0  # it should be likelier
    # What one view alone sees does not count.
    shift[:, 0, 2] = 1000
    assert localization_loss((view0, view1), shift).item() == 0


def test_localization_is_measured_in_both_views():
    enlarged = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))[None]
    views = logits_of((10, 10, 0.8)), logits_of((22, 20, 0.8))
    loss = localization_loss(views, enlarged)  # 2 pixels in view 1, one in view 0
    assert loss.item() == pytest.approx(1.5, abs=0.01)


def test_an_image_of_which_nothing_counts_has_no_loss():
    mask = torch.tensor([False, True]).view(2, 1, 1).expand(2, 3, 4)
    logits = torch.randn(2, 65, 3, 4, requires_grad=True)
    loss = detector_loss(logits, torch.full((2, 65, 3, 4), 1 / 65), mask)
    loss.sum().backward()
    assert loss[0] == 0 < loss[1]
    assert (logits.grad[0] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_corresponding_points_are_told_from_all_others():
    maps = F.normalize(torch.randn(2, 32, 6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    shift = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    shift[:, 0, 2] = -8.0  # view 1 begins one cell to the right of view 0
    points = cell_centres((6, 8)).expand(2, -1, -1)
    weights = torch.ones(2, 48)
    same = correspondence_loss((maps, maps.roll(-1, 3)), points, weights, shift)
    other = correspondence_loss((maps, maps), points, weights, shift)
    assert (same < 0.1).all()
    assert (other > 1).all()
    # By hand: two cells, seen in both views, whose descriptors are at right angles.
    pair = torch.eye(2)[None, :, None]
    two, still = cell_centres((1, 2))[None], torch.eye(3, dtype=torch.float64)[None]
    loss = correspondence_loss((pair, pair), two, torch.ones(1, 2), still, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), rel=0.02)
    # Two points of nearly one place need not be told apart, however unlike a third is.
    three = torch.cat([two, two[:, :1] + 2], 1)
    loss = correspondence_loss((pair, pair), three, torch.ones(1, 3), still)
    assert 0 < loss < 0.01
    three[:, 2] += 1
    assert correspondence_loss((pair, pair), three, torch.ones(1, 3), still) > 0.03
    nothing = shift.clone()
    nothing[:, 0, 2] = 1000
    assert correspondence_loss((maps, maps), points, weights, nothing).tolist() == [0, 0]
