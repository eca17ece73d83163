import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.geometry import PIXEL_MAP, MapGeometry
from hfnet_distill.teacher_export.silk_loss import (
    homography_correspondences,
    match_rates,
    mutual_correspondences,
    nearest_positions,
    pair_losses,
)


def check_reference(recorded, block_size, bfloat16=False):
    tensors = [
        torch.from_numpy(recorded[name]).requires_grad_()
        for name in ("desc_0", "desc_1", "logits_0", "logits_1")
    ]
    correspondences = torch.from_numpy(recorded["corr_forward"]).long()
    found = [
        pair_losses(*pair, temperature=0.1, block_size=block_size, bfloat16=bfloat16)
        for pair in zip(*tensors, correspondences, strict=True)
    ]
    (sum(losses.descriptor + losses.keypoint for losses in found) / len(found)).backward()
    prefix = "ghost_none/block_none"
    for item, losses in enumerate(found):
        rates = match_rates(losses.matches, correspondences[item], tensors[2][item])
        ours = [losses.descriptor, losses.keypoint, rates["precision"], rates["recall"]]
        torch.testing.assert_close(
            torch.stack(ours), torch.from_numpy(recorded[f"{prefix}/item{item}"]), rtol=1e-5, atol=0
        )
    for name, tensor in zip(("desc_0", "desc_1", "logits_0", "logits_1"), tensors, strict=True):
        theirs = torch.from_numpy(recorded[f"{prefix}/grad_{name}"])
        torch.testing.assert_close(
            tensor.grad, theirs, rtol=0, atol=(1e-2 if bfloat16 else 2e-6) * theirs.abs().max()
        )


@pytest.mark.parametrize("block_size", [1, 50, 144, 1000])
def test_excerpt(excerpt, block_size):
    check_reference(excerpt("silk_loss"), block_size)


def test_excerpt_in_bfloat16(excerpt):
    check_reference(excerpt("silk_loss"), 50, bfloat16=True)


def test_full_reference(golden):
    recorded = golden("silk_loss")
    for name in ("descriptor_loss", "grad_desc_0"):
        one, other = (recorded[f"ghost_none/block_{block}/{name}"] for block in ("none", "50"))
        np.testing.assert_allclose(one, other, atol=1e-6)
    check_reference(recorded, 50)


def test_excerpt_correspondences(excerpt):
    recorded = excerpt("silk_loss")
    for item in range(2):
        # SiLK's positions count from the corner of the first element.
        forward, backward = (
            nearest_positions(recorded[f"positions_xy_{way}"][item] - 0.5, (12, 12))
            for way in ("forward", "backward")
        )
        np.testing.assert_array_equal(forward, recorded["corr_uni_forward"][item])
        np.testing.assert_array_equal(backward, recorded["corr_uni_backward"][item])
        mutual = mutual_correspondences(forward, backward)
        np.testing.assert_array_equal(mutual, recorded["corr_forward"][item])


def test_correspondences_of_a_shift():
    H_0to1 = np.array([[1, 0, 2], [0, 1, -1], [0, 0, 1]])  # 2 right, 1 up
    for geometry in (PIXEL_MAP, MapGeometry(1, 9)):
        found = homography_correspondences(H_0to1, geometry, (3, 4)).reshape(3, 4)
        assert found.tolist() == [[-1, -1, -1, -1], [2, 3, -1, -1], [6, 7, -1, -1]]


def test_correspondences_of_a_rotation_mind_the_border():
    # By 90 degrees about the center of an image of 24x24 pixels, so of its map of 6x6 as well.
    H_0to1 = np.array([[0, -1, 23], [1, 0, 0], [0, 0, 1]])
    found = homography_correspondences(H_0to1, MapGeometry(1, 9), (6, 6)).reshape(6, 6)
    rows, columns = np.indices((6, 6))
    np.testing.assert_array_equal(found, columns * 6 + 5 - rows)


def random_pair(count=40, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    descriptors0 = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    noise = torch.randn(count, dim, generator=generator)
    order = torch.randperm(count, generator=generator)
    descriptors1 = F.normalize(descriptors0 + 0.3 * noise, dim=1)[order]
    correspondences = order.argsort().clone()
    correspondences[::3] = -1
    logits = torch.randn(2, count, generator=generator)
    return [descriptors0, descriptors1, logits[0], logits[1], correspondences]


def test_gradient():
    torch.manual_seed(0)
    *tensors, correspondences = random_pair(count=9, dim=3)
    tensors = [tensor.double().requires_grad_() for tensor in tensors]

    def losses(*inputs):
        return pair_losses(*inputs, correspondences, temperature=0.5, block_size=4)[:2]

    assert torch.autograd.gradcheck(losses, tensors)


def test_views_of_different_size():
    descriptors0, descriptors1, logits0, logits1, correspondences = random_pair()
    kept = pair_losses(
        descriptors0[:25],
        descriptors1,
        logits0[:25],
        logits1,
        correspondences[:25],
        temperature=0.1,
    )
    assert kept.matches.shape == (25,)
    assert torch.isfinite(kept.descriptor + kept.keypoint).all()


def test_equal_descriptors_are_matched_once():
    descriptors = F.normalize(torch.ones(6, 4), dim=1)
    logits = torch.zeros(6)
    losses = pair_losses(descriptors, descriptors, logits, logits, torch.arange(6), temperature=0.1)
    assert losses.matches.tolist() == [0, -1, -1, -1, -1, -1]


def test_rates_by_hand():
    correspondences = torch.tensor([0, 1, 2, 3, -1, -1])
    matches = torch.tensor([0, 1, 5, -1, 4, -1])
    logits = torch.tensor([1.0, -1, 1, -1, 1, 1])
    rates = match_rates(matches, correspondences, logits)
    assert {name: round(rate.item(), 4) for name, rate in rates.items()} == {
        "precision": 0.75,  # of 4 matched, 3 have a correspondence
        "recall": 0.75,  # of 4 with a correspondence, 3 are matched
        "round_trip": 0.5,  # of them 2 correctly
        "match_precision": 0.6667,
        "detector_precision": 0.5,  # positions 0 and 2 score above 0
        "detector_recall": 0.5,
    }


def test_views_without_overlap_teach_nothing():
    tensors = random_pair()
    tensors[0].requires_grad_()
    losses = pair_losses(*tensors[:4], torch.full((40,), -1), temperature=0.1)
    (losses.descriptor + losses.keypoint).backward()
    assert losses.descriptor.item() == losses.keypoint.item() == 0
    assert not tensors[0].grad.any()
