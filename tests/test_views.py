"""Views: what a teacher's maps say of a crop, and of a part seen through a homography."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.geometry import warp_points
from hfnet_distill.student.views import (
    cell_centres,
    cell_peaks,
    random_crop,
    random_view,
    to_cells,
    view_descriptors,
    view_scores,
)


def shift(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]], dtype=torch.float64)


def test_an_upright_crop_is_cut_out_of_the_maps():
    descriptors = F.normalize(torch.randn(1, 16, 6, 8), dim=1)
    found = view_descriptors(descriptors, cell_centres((3, 4)), shift(16, 8))
    torch.testing.assert_close(found.mT.unflatten(2, (3, 4)), descriptors[:, :, 1:4, 2:6])
    cells = (torch.randn(1, 65, 6, 8) * 3).softmax(1)
    cells[:, :64][cells[:, :64] <= 1e-3] = 0
    cells[:, 64] = 1 - cells[:, :64].sum(1)
    torch.testing.assert_close(view_scores(cells, shift(16, 8), (3, 4)), cells[:, :, 1:4, 2:6])


def test_each_view_sees_the_maps_of_its_own_photograph():
    maps = F.normalize(torch.randn(2, 16, 6, 8), dim=1)
    views = torch.cat([shift(16, 8), shift(0, 0), shift(8, 24), shift(32, 16)])
    found = view_descriptors(maps, cell_centres((3, 4)), views)
    for seen, whole, view in zip(found, maps.repeat_interleave(2, 0), views, strict=True):
        alone = view_descriptors(whole[None], cell_centres((3, 4)), view[None])
        torch.testing.assert_close(seen, alone[0])


def test_a_keypoint_is_where_the_view_shows_it():
    rng = np.random.default_rng(0)
    H = random_view(rng, (64, 48), (32, 24), zoom=(0.8, 1.2), rotation=30, perspective=0.2, tilt=1)
    inside = warp_points([[15.5, 11.5]], H).round()
    column, row = inside[0].astype(int)
    score_map = torch.zeros(1, 1, 48, 64)
    score_map[0, 0, row, column] = 0.9
    cells = view_scores(to_cells(score_map, (6, 8)), torch.from_numpy(H)[None], (3, 4))
    torch.testing.assert_close(cells.sum(1), torch.ones(1, 3, 4))
    seen = F.pixel_shuffle(cells[:, :64], 8)[0, 0]
    assert seen.sum() == pytest.approx(0.9, abs=1e-6)
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    centre = [[(seen * x).sum() / 0.9, (seen * y).sum() / 0.9]]
    np.testing.assert_allclose(centre, warp_points(inside, np.linalg.inv(H)), atol=1e-3)


def test_the_peak_of_a_cell_is_its_likeliest_pixel():
    logits = torch.zeros(1, 65, 2, 3)
    logits[:, 64] = 9.0  # "no keypoint", whatever else
    logits[0, 8 * 5 + 2, 1, 0] = 1.0
    logits[0, 7, 0, 2] = 1.0
    peaks = cell_peaks(logits)
    assert peaks.dtype == torch.float64
    assert peaks[0].tolist() == [[0, 0], [8, 0], [23, 0], [2, 13], [8, 8], [16, 8]]


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
    cells = to_cells(score_map, (6, 8))
    torch.testing.assert_close(cells.sum(1), torch.ones(1, 6, 8))
    # Odds of 1 for pixel (2, 3) of a cell, against 1 for none; of 9 and 999 in another.
    torch.testing.assert_close(cells[0, [2 * 8 + 3, 64], 2, 3], torch.tensor([0.5, 0.5]))
    expected = torch.tensor([9.0, 999.0, 1.0]) / 1009
    torch.testing.assert_close(cells[0, [63, 0, 64], 3, 5], expected, rtol=1e-3, atol=1e-6)


def test_views_lie_inside_the_photograph():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [31, 0], [31, 23], [0, 23]])
    for _ in range(50):
        for H in (
            random_crop(rng, (64, 48), (32, 24)),
            random_view(
                rng, (64, 48), (32, 24), zoom=(0.7, 3), rotation=45, perspective=0.3, tilt=3
            ),
        ):
            seen = warp_points(corners, H)
            assert (seen > -1).all()
            assert (seen < [64, 48]).all()
