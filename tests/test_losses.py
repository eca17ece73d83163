"""The losses against the values that HF-Net's code gave, and by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.cells import cell_centers, from_pixels, with_nothing
from hfnet_distill.errors import InputError
from hfnet_distill.networks.base import StudentOutput
from hfnet_distill.student.losses import (
    LOSSES,
    FixedWeights,
    UncertaintyWeights,
    active_losses,
    compute_losses,
    contrast_loss,
    correspondence_loss,
    descriptor_loss,
    detector_loss,
    global_descriptor_loss,
    localization_loss,
    occupancy_loss,
    place_loss,
    register_loss,
    reward_loss,
    similarity_loss,
)
from hfnet_distill.student.targets import Lesson


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


def said(logits=None, maps=None, whole=None) -> StudentOutput:
    return StudentOutput(logits, maps, whole)


def lesson(**fields) -> Lesson:
    return Lesson(fields.pop("views", None), (6, 8), **fields)


def both(view0: torch.Tensor, view1: torch.Tensor) -> torch.Tensor:
    """What is said of two views of each of B photographs, (2 * B, ...)."""
    return torch.stack([view0, view1], 1).flatten(0, 1)


def moved(H_0to1: torch.Tensor) -> torch.Tensor:
    """``H_view_to_photo`` (2 * B, 3, 3) of pairs whose view 1 is the photograph."""
    return both(H_0to1, torch.eye(3, dtype=torch.float64).expand_as(H_0to1))


def check(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_losses_of_maps(recorded, masked):
    mask, suffix = (recorded["valid_mask"], "_masked") if masked else (None, "")
    descriptors = (
        recorded.map("pred/local_descriptor_map"),
        recorded.map("target/local_descriptor_map"),
    )
    learned = lesson(
        descriptors=descriptors[1].flatten(2).mT,
        weights=mask if mask is None else mask.flatten(1),
        cells=recorded.map("target/dense_scores"),
        known=mask,
    )
    found = said(recorded.map("pred/logits"), descriptors[0])
    check(descriptor_loss(found, learned), recorded[f"loss_local{suffix}"])
    check(detector_loss(found, learned), recorded[f"loss_detector_soft{suffix}"])


def test_loss_of_hard_keypoints(recorded):
    pixels = from_pixels(recorded["keypoint_map"].float())
    labels = with_nothing(pixels * (pixels.cumsum(1) == 1))  # of several in a cell the first
    found = detector_loss(said(recorded.map("pred/logits")), lesson(cells=labels))
    check(found, recorded["loss_detector_hard"])


def test_loss_of_global_descriptors(recorded):
    found = global_descriptor_loss(
        said(whole=recorded["pred/global_descriptor"]),
        lesson(global_descriptor=recorded["target/global_descriptor"]),
    )
    check(found, recorded["loss_global"])


def test_totals(recorded):
    losses = {
        "global": recorded["loss_global"].mean(),
        "descriptor": recorded["loss_local"].mean(),
        "detector": recorded["loss_detector_soft"].mean(),
    }
    equal = FixedWeights(dict.fromkeys(losses, 1.0))
    check(equal(losses), recorded["loss_total_weights_1_1_1"])
    weights = {"descriptor": 2.0, "global": 3.0, "detector": 0.5}
    check(FixedWeights(weights)(losses), recorded["loss_total_weights_l2_g3_d0.5"])
    uncertainty = UncertaintyWeights([*losses])
    check(uncertainty(losses).detach(), recorded["loss_total_uncertainties_init1"])
    uncertainty.log_variances.data = recorded["uncertainty_w"]
    check(uncertainty(losses).detach(), recorded["loss_total_uncertainties_w"])


def test_a_perfect_student_has_no_descriptor_loss_and_the_teachers_entropy():
    descriptors = torch.nn.functional.normalize(torch.randn(2, 8, 3, 4), dim=1)
    learned = lesson(descriptors=descriptors.flatten(2).mT)
    assert descriptor_loss(said(maps=descriptors), learned).tolist() == [0, 0]
    cells = torch.full((1, 65, 2, 2), 1 / 65)
    loss = detector_loss(said(torch.zeros(1, 65, 2, 2)), lesson(cells=cells))
    torch.testing.assert_close(loss, torch.log(torch.tensor([65.0])))


def logits_of(*keypoints, seed=0):
    """Logits of 64x48 pixels that say keypoints (x, y, probability) and nothing between them."""
    scores = torch.full((1, 1, 48, 64), 1e-6)
    for x, y, score in keypoints:
        scores[0, 0, y, x] = score
    cells = F.pixel_unshuffle(scores, 8)
    return torch.cat([cells, 1 - cells.sum(1, keepdim=True)], 1).log()


def localization(views, H_0to1, seen=None) -> torch.Tensor:
    """Of the logits of views 0 and 1."""
    seen = seen if seen is None else both(*seen)
    return localization_loss(said(both(*views)), lesson(views=moved(H_0to1), seen=seen))


def test_localization_is_how_far_apart_two_views_see_a_keypoint():
    # Between (20, 21) and (22, 21) by their scores; a pixel lower in view 1, which is shifted.
    view0 = logits_of((20, 21, 0.6), (22, 21, 0.3), (50, 40, 0.8))
    view1 = logits_of((12, 22, 0.6), (14, 22, 0.3), (42, 40, 0.8))
    shift = torch.eye(3, dtype=torch.float64)[None]
    shift[:, 0, 2] = -8
    assert localization((view0, view1), shift).item() == pytest.approx(0.5, abs=0.01)
    # By the centers of gravity, so that scores, not only their maxima, are drawn together.
    view1 = logits_of((12, 21, 0.6), (14, 21, 0.1), (42, 40, 0.8)).requires_grad_()
    loss = localization((view0, view1), shift)
    assert loss.item() == pytest.approx((2 / 3 - 2 / 7) / 2, abs=0.01)
    loss.sum().backward()
    weaker = F.pixel_shuffle(view1.grad[:, :64], 8)[0, 0, 21, 14]
    assert weaker < 0  # it should be likelier
    # What one view alone sees does not count.
    shift[:, 0, 2] = 1000
    assert localization((view0, view1), shift).item() == 0


def test_localization_is_measured_in_both_views():
    enlarged = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))[None]
    views = logits_of((10, 10, 0.8)), logits_of((22, 20, 0.8))
    loss = localization(views, enlarged)  # 2 pixels in view 1, one in view 0
    assert loss.item() == pytest.approx(1.5, abs=0.01)


def test_an_image_of_which_nothing_counts_has_no_loss():
    mask = torch.tensor([False, True]).view(2, 1, 1).expand(2, 3, 4)
    logits = torch.randn(2, 65, 3, 4, requires_grad=True)
    learned = lesson(cells=torch.full((2, 65, 3, 4), 1 / 65), known=mask)
    loss = detector_loss(said(logits), learned)
    loss.sum().backward()
    assert loss[0] == 0 < loss[1]
    assert (logits.grad[0] == 0).all()
    assert torch.isfinite(logits.grad).all()


def peaks_at(*places: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Logits (1, 65, *shape) whose cells are surely keypoints at pixels (x, y), else anywhere."""
    pixels = torch.full((1, shape[0] * 8, shape[1] * 8), 0.0)
    for x, y in places:
        pixels[0, y, x] = 20.0
    return torch.cat([from_pixels(pixels), torch.full((1, 1, *shape), -20.0)], 1)


def correspondence(logits, maps, H_0to1) -> torch.Tensor:
    """Of the logits of views 0, and the descriptor maps of views 0 and 1."""
    return correspondence_loss(
        said(both(logits, torch.zeros_like(logits)), both(*maps)), lesson(views=moved(H_0to1))
    )


def test_corresponding_points_are_told_from_all_others(monkeypatch):
    maps = F.normalize(torch.randn(2, 32, 6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    shift = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    shift[:, 0, 2] = -8.0  # view 1 begins one cell to the right of view 0
    middle = [(8 * column + 4, 8 * row + 4) for row in range(6) for column in range(8)]
    logits = peaks_at(*middle, shape=(6, 8)).expand(2, -1, -1, -1)
    same = correspondence(logits, (maps, maps.roll(-1, 3)), shift)
    other = correspondence(logits, (maps, maps), shift)
    assert (same < 0.1).all()
    assert (other > 1).all()
    nothing = shift.clone()
    nothing[:, 0, 2] = 1000
    assert correspondence(logits, (maps, maps), nothing).tolist() == [0, 0]
    # By hand: two cells, seen in both views, whose descriptors are at right angles.
    pair, still = torch.eye(2)[None, :, None], torch.eye(3, dtype=torch.float64)[None]
    ends = peaks_at((0, 3), (15, 3), shape=(1, 2))
    monkeypatch.setattr("hfnet_distill.student.losses.TEMPERATURE", 0.1)
    loss = correspondence(ends, (pair, pair), still)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), rel=0.02)
    # Two points of nearly one place need not be told apart, in whichever cells they are.
    monkeypatch.undo()
    assert correspondence(peaks_at((5, 3), (8, 3), shape=(1, 2)), (pair, pair), still) < 1e-6
    loss = correspondence(peaks_at((4, 3), (8, 3), shape=(1, 2)), (pair, pair), still)
    cosine = (15 * 7 + 1 * 9) / (math.hypot(15, 1) * math.hypot(7, 9))  # between the two cells
    assert loss.item() == pytest.approx(math.log(1 + math.exp((cosine - 1) / 0.05)), rel=1e-3)


def test_occupied_and_where_are_what_one_softmax_is_made_of():
    torch.manual_seed(0)
    logits = torch.randn(2, 65, 3, 4)
    target = with_nothing(torch.rand(2, 64, 3, 4) / 40)
    mask = torch.rand(2, 3, 4) > 0.3
    mass = (1 - target[:, 64]) * mask
    for chosen, share in (
        (None, (1 - target[:, 64]).mean((1, 2))),
        (mask, mass.sum((1, 2)) / mask.sum((1, 2))),
    ):
        given = said(logits), lesson(cells=target, known=chosen)
        parts = occupancy_loss(*given) + share * place_loss(*given)
        torch.testing.assert_close(parts, detector_loss(*given))


def test_where_counts_keypoints_not_cells():
    logits = torch.zeros(1, 65, 1, 3)
    logits[0, 5, 0, 0] = 100.0
    target = torch.zeros(1, 65, 1, 3)
    target[0, 5, 0, 0], target[0, 9, 0, 1] = 0.8, 0.2  # the third cell has none
    target[0, 64] = 1 - target[0, :64].sum(0)
    expected = 0.2 * math.log(64)
    found = place_loss(said(logits), lesson(cells=target))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def similarity(student, teacher, weights) -> torch.Tensor:
    """Of descriptors (N, P, D) at the centers of P cells."""
    maps = student.mT[:, :, None]
    return similarity_loss(said(maps=maps), lesson(descriptors=teacher, weights=weights))


def test_a_student_that_chooses_as_its_teacher_has_no_similarity_loss():
    torch.manual_seed(0)
    teacher = F.normalize(torch.randn(2, 6, 16), dim=2)
    weights = torch.rand(2, 6)
    assert similarity(teacher, teacher, weights).abs().max() < 1e-5
    mistaken = teacher.roll(1, 1).requires_grad_()
    loss = similarity(mistaken, teacher, weights)
    assert (loss > 5).all()
    loss.sum().backward()
    assert mistaken.grad.isfinite().all()
    # A point that is not there neither counts nor can be chosen.
    weights[:, 3:] = 0
    fewer = similarity(teacher[:, :3].roll(1, 1), teacher[:, :3], weights[:, :3])
    padded = torch.cat([teacher[:, :3].roll(1, 1), teacher[:, 3:]], 1)
    torch.testing.assert_close(similarity(padded, teacher, weights), fewer)


def test_what_no_view_saw_is_not_localized():
    views = logits_of((20, 21, 0.6), (50, 40, 0.8)), logits_of((22, 21, 0.6), (50, 41, 0.8))
    still, seen = torch.eye(3, dtype=torch.float64)[None], torch.ones(1, 6, 8, dtype=torch.bool)
    assert localization(views, still).item() == pytest.approx(1.5, abs=0.01)
    assert localization(views, still, (seen, seen)).item() == pytest.approx(1.5, abs=0.01)
    hidden = seen.clone()
    hidden[:, 5, 6] = False  # where (50, 40) is
    assert localization(views, still, (seen, hidden)).item() == pytest.approx(2, abs=0.01)


def test_a_loss_of_ones_own_is_a_function_and_a_line(monkeypatch):
    monkeypatch.setattr(LOSSES, "entries", dict(LOSSES.entries))

    @register_loss("entropy")
    def entropy(said, lesson):
        logits = said.score_logits
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean((1, 2))

    weights = {"detector": 1.0, "where": 0.0, "entropy": 0.5, "correspondence": 1.0}
    assert active_losses(weights, {"local"}) == ["detector", "entropy"]
    assert active_losses(weights, {"local", "pair"}) == ["detector", "correspondence", "entropy"]
    found = compute_losses(["entropy"], said(torch.zeros(2, 65, 3, 4)), None)
    assert found["entropy"].item() == pytest.approx(math.log(65))
    with pytest.raises(InputError, match="loss 'entropie': expected one of detector, "):
        active_losses({"entropie": 1.0}, {"local"})
    with pytest.raises(InputError, match="loss entropy: already registered by"):
        register_loss("entropy")(contrast_loss)


def contrast(maps, points, weights) -> torch.Tensor:
    """Of descriptor maps and keypoints of views 0 and 1, as likely in both."""
    learned = lesson(keypoints=both(points, points), probability=both(weights, weights))
    return contrast_loss(said(maps=both(*maps)), learned)


def test_a_keypoint_is_found_among_those_of_the_batch(monkeypatch):
    # Two photographs with two keypoints each, at cells' centers, all descriptors at right angles.
    maps = torch.eye(4).view(4, 2, 1, 2).transpose(0, 1).contiguous()
    points = cell_centers((1, 2)).float().expand(2, -1, -1)
    weights = torch.ones(2, 2)
    monkeypatch.setattr("hfnet_distill.student.losses.TEMPERATURE", 0.1)
    loss = contrast((maps, maps), points, weights)
    # Against the correct one: three others of the other view, and three of its own.
    expected = math.log(1 + 6 * math.exp(-10))
    assert loss.tolist() == pytest.approx([expected, expected], rel=0.02)
    wrong = contrast((maps, maps.flip(0)), points, weights)
    assert (wrong > 9).all()
    # One that is not there is no negative; its own loss does not count.
    weights[1, 1] = 0
    fewer = contrast((maps, maps), points, weights)
    expected = math.log(1 + 4 * math.exp(-10))
    assert fewer.tolist() == pytest.approx([expected, expected], rel=0.02)
    # Two that are nearly one need not be told apart.
    monkeypatch.undo()
    weights[:] = 1
    close = points.clone()
    close[:, 1] = close[:, 0] + 2
    loss = contrast((maps[:1], maps[:1]), close[:1], weights[:1])
    assert loss.item() == pytest.approx(0, abs=1e-6)
    # One that a view does not show is as if it were not there.
    outside = points.clone()
    outside[1, 1] += 100
    hidden = contrast((maps, maps), outside, weights)
    weights[1, 1] = 0
    torch.testing.assert_close(hidden, contrast((maps, maps), points, weights))
    with pytest.raises(InputError, match="loss contrast: needs a detector_target with keypoints"):
        contrast_loss(said(maps=maps), lesson())


def test_keypoints_that_are_surely_matched_get_likelier():
    # Of each photograph's two keypoints the second looks like that of the other photograph.
    maps = torch.eye(3)[[0, 1, 2, 1]].view(2, 1, 2, 3).movedim(3, 1)
    points = cell_centers((1, 2)).float().expand(4, -1, -1)
    learned = lesson(keypoints=points, probability=torch.ones(4, 2))
    logits = torch.zeros(4, 65, 1, 2, requires_grad=True)
    loss = reward_loss(said(logits, both(maps, maps)), learned)
    # One is matched surely, the other by half from either side: both are as far from the mean.
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)
    loss.sum().backward()
    middle = 3 * 8 + 3
    assert (logits.grad[:, middle, 0, 0] < 0).all()
    assert (logits.grad[:, middle, 0, 1] > 0).all()
    # Without the second of photograph 0, whose twin is then sure, nothing is left to tell apart.
    learned.probability[0, 1] = 0
    loss = reward_loss(said(logits, both(maps, maps)), learned)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="loss reward: needs a detector_target with keypoints"):
        reward_loss(said(logits, both(maps, maps)), lesson())
