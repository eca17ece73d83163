"""Views: what a teacher's maps say of a crop, and of a part seen through a homography."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.cells import cell_centers, from_pixels, to_pixels
from hfnet_distill.data.geometry import Homographies, unwarp_points, warp_points
from hfnet_distill.student.views import (
    ViewSampler,
    cells_seen,
    scatter_keypoints,
    shared_part,
    to_cells,
    view_descriptors,
    view_scores,
)


def shift(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]], dtype=torch.float64)


def test_an_upright_crop_is_cut_out_of_the_maps():
    descriptors = F.normalize(torch.randn(1, 16, 6, 8), dim=1)
    found = view_descriptors(descriptors, cell_centers((3, 4)), shift(16, 8))
    torch.testing.assert_close(found.mT.unflatten(2, (3, 4)), descriptors[:, :, 1:4, 2:6])
    cells = (torch.randn(1, 65, 6, 8) * 3).softmax(1)
    cells[:, :64][cells[:, :64] <= 1e-3] = 0
    cells[:, 64] = 1 - cells[:, :64].sum(1)
    torch.testing.assert_close(view_scores(cells, shift(16, 8), (3, 4)), cells[:, :, 1:4, 2:6])


def test_each_view_sees_the_maps_of_its_own_photograph():
    maps = F.normalize(torch.randn(2, 16, 6, 8), dim=1)
    views = torch.cat([shift(16, 8), shift(0, 0), shift(8, 24), shift(32, 16)])
    found = view_descriptors(maps, cell_centers((3, 4)), views)
    for seen, whole, view in zip(found, maps.repeat_interleave(2, 0), views, strict=True):
        alone = view_descriptors(whole[None], cell_centers((3, 4)), view[None])
        torch.testing.assert_close(seen, alone[0])


def test_a_keypoint_is_where_the_view_shows_it():
    rng = np.random.default_rng(0)
    form = Homographies(scale=(0.8, 1.2), rotation=30, perspective=0.2)
    (H,) = ViewSampler(1.0, form).draw(rng, (64, 48), (32, 24), 1)
    inside = warp_points([[15.5, 11.5]], H).round()
    column, row = inside[0].astype(int)
    score_map = torch.zeros(1, 1, 48, 64)
    score_map[0, 0, row, column] = 0.9
    cells = view_scores(to_cells(score_map), torch.from_numpy(H)[None], (3, 4))
    torch.testing.assert_close(cells.sum(1), torch.ones(1, 3, 4))
    seen = F.pixel_shuffle(cells[:, :64], 8)[0, 0]
    assert seen.sum() == pytest.approx(0.9, abs=1e-6)
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    center = [[(seen * x).sum() / 0.9, (seen * y).sum() / 0.9]]
    np.testing.assert_allclose(center, warp_points(inside, np.linalg.inv(H)), atol=1e-3)


def test_many_keypoints_in_one_cell_share_it():
    cells = torch.zeros(1, 65, 4, 4)
    cells[:, 0] = 0.75
    cells[:, 64] = 0.25
    half = torch.tensor([[[4.0, 0, 1.5], [0, 4, 1.5], [0, 0, 1]]], dtype=torch.float64)
    seen = view_scores(cells, half, (1, 1))
    torch.testing.assert_close(seen.sum(1), torch.ones(1, 1, 1))
    assert seen[0, 64, 0, 0] == 0


@pytest.mark.parametrize("border", [0, 9])
def test_probabilities_of_pixels_become_a_distribution(border):
    score_map = torch.zeros(1, 1, 48 - 2 * border, 64 - 2 * border)
    score_map[0, 0, 18 - border, 27 - border] = 0.5
    score_map[0, 0, 31 - border, 47 - border] = 0.9
    score_map[0, 0, 24 - border, 40 - border] = 1.0  # as float16 rounds what is nearly certain
    cells = to_cells(score_map, border)
    torch.testing.assert_close(cells.sum(1), torch.ones(1, 6, 8))
    # Odds of 1 for pixel (2, 3) of a cell, against 1 for none; of 9 and 999 in another.
    torch.testing.assert_close(cells[0, [2 * 8 + 3, 64], 2, 3], torch.tensor([0.5, 0.5]))
    expected = torch.tensor([9.0, 999.0, 1.0]) / 1009
    torch.testing.assert_close(cells[0, [63, 0, 64], 3, 5], expected, rtol=1e-3, atol=1e-6)


INSIDE = Homographies(scale=(0.5, 1.8), rotation=45, perspective=0.25, tilt=2.5)
ANYWHERE = replace(INSIDE, inside=False)
SIZE, CROP = (640, 480), (320, 240)


def test_views_lie_inside_the_photograph():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [31, 0], [31, 23], [0, 23]])
    form = Homographies(scale=(0.7, 3), rotation=45, perspective=0.3, tilt=3)
    for _ in range(25):
        for H in ViewSampler(0.5, form).draw(rng, (64, 48), (32, 24), 2):
            seen = warp_points(corners, H)
            assert (seen > -1).all()
            assert (seen < [64, 48]).all()


def measure(homographies: Homographies, overlap: float) -> dict[str, float]:
    """What 600 photographs' views are like under the settings that are shipped."""
    rng, sampler = np.random.default_rng(0), ViewSampler(0.6, homographies, overlap)
    center = np.array([159.5, 119.5]) + np.array([[0, 0], [1e-3, 0], [0, 1e-3]])
    scales, tilts, shared = [], [], []
    for _ in range(600):
        views = [*sampler.draw(rng, SIZE, CROP, 2)]
        shared.append(shared_part(*views, CROP))
        (H,) = ViewSampler(1.0, replace(homographies, perspective=0)).draw(rng, SIZE, CROP, 1)
        steps = warp_points(center, H)
        stretch = np.linalg.svd((steps[1:] - steps[0]) / 1e-3, compute_uv=False)
        scales.append(np.sqrt(stretch.prod()) / 2)  # of the photograph's sides
        tilts.append(stretch[0] / stretch[1])
    shared, tilts = np.array(shared), np.array(tilts)
    return {
        "scale": float(np.mean(scales)),
        "tilted": float((tilts > 2).mean()),
        "apart": float((shared == 0).mean()),
        "half": float((shared >= 0.5).mean()),
    }


def test_rejection_makes_strong_views_rare_and_places_after_forms_do_not():
    rejected, placed = measure(INSIDE, 0.0), measure(ANYWHERE, 0.5)
    drawn = (0.25 + 0.9) / 2, 1 - np.log(2) / np.log(2.5)  # what the settings ask for
    assert rejected["scale"] < drawn[0] - 0.08
    assert rejected["tilted"] < 0.85 * drawn[1]
    assert placed["scale"] == pytest.approx(drawn[0], abs=0.02)
    assert placed["tilted"] == pytest.approx(drawn[1], abs=0.04)
    assert rejected["apart"] > 0.03
    assert rejected["half"] < 0.7
    assert placed["apart"] == 0
    assert placed["half"] > 0.98


def test_a_close_up_shares_all_with_the_view_around_it():
    close = np.array([[0.5, 0, 80], [0, 0.5, 60], [0, 0, 1.0]])
    assert shared_part(np.eye(3), close, CROP) == 1
    beside = np.array([[1, 0, 160], [0, 1, 0], [0, 0, 1.0]])
    assert shared_part(np.eye(3), beside, CROP) == pytest.approx(0.5)


def test_cells_that_show_what_lies_beyond_the_photograph_are_known():
    views = torch.cat([shift(-8, 0), shift(48, 24), shift(0, 0)])
    seen = cells_seen(views, (3, 4), (64, 48))
    assert seen[0].tolist() == [[False, True, True, True]] * 3
    assert seen[1].tolist() == [[True, True, False, False]] * 3
    assert seen[2].all()
    inner = cells_seen(shift(0, 0), (6, 8), (64, 48), border=9)
    assert inner[0].float().sum() == 2 * 4  # 9 pixels reach into the second cell on each side
    assert inner[0, 2:4, 2:6].all()


def test_keypoints_are_scattered_as_maps_are():
    rng = np.random.default_rng(0)
    pixels = torch.zeros(2, 1, 48, 64)
    keypoints = torch.from_numpy(rng.integers([2, 2], [62, 46], (2, 30, 2)))
    probability = torch.rand(2, 30) * 0.2 + 0.1
    for image, points, likely in zip(pixels, keypoints, probability, strict=True):
        for (x, y), p in zip(points.tolist(), likely.tolist(), strict=True):
            image[0, y, x] += p
    cells = torch.cat([from_pixels(pixels[:, 0]), torch.zeros(2, 1, 6, 8)], 1)
    views = torch.from_numpy(
        np.stack([next(iter(ViewSampler(1.0, INSIDE).draw(rng, (64, 48), (32, 24), 1)))] * 2)
    )
    expected = view_scores(cells, views, (3, 4))
    points = unwarp_points(keypoints, views)
    torch.testing.assert_close(
        scatter_keypoints(points, probability, (3, 4)), expected, atol=1e-5, rtol=0
    )


def test_keypoints_far_outside_or_on_the_horizon_are_nowhere():
    points = torch.tensor([[[1e9, 3], [torch.nan, 4], [-torch.inf, 1], [-0.5, 2.25], [9.5, 4]]])
    cells = scatter_keypoints(points, torch.tensor([[1.0, 1, 1, 0.8, 0.4]]), (1, 2))
    found = to_pixels(cells)[0]
    assert found.sum() == pytest.approx(0.4 + 0.4)  # half of the fourth lies off the left edge
    assert found[2, 0] == pytest.approx(0.3)
    assert found[3, 0] == pytest.approx(0.1)
    assert found[4, 9:11].tolist() == pytest.approx([0.2, 0.2])


def test_a_sure_keypoint_stays_surer_than_a_faint_one():
    cells = scatter_keypoints(
        torch.tensor([[[3.0, 3], [11, 3]]]), torch.tensor([[0.9, 0.1]]), (1, 2)
    )
    torch.testing.assert_close(cells[0, 64, 0], torch.tensor([0.1, 0.9]))
