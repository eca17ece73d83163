"""The coordinate convention, worked by hand."""

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.data.geometry import (
    CELL_MAP,
    Homographies,
    MapGeometry,
    is_inside,
    resize_homography,
    resize_matrix,
    resize_points,
    sample_map,
    unwarp_points,
    warp_points,
)


def test_a_cell_lies_at_the_center_of_its_pixels():
    assert CELL_MAP.to_image(np.array([0.0, 1.0])).tolist() == [3.5, 11.5]
    assert CELL_MAP.to_map(np.array([3.5, 11.5])).tolist() == [0.0, 1.0]


def test_resizing_keeps_the_image_edge():
    # The outer edges of the first and the last pixel, and the center of the first.
    points = np.array([[-0.5, -0.5], [3.5, 1.5], [0, 0]])
    resized = resize_points(points, (4, 2), (8, 8))
    np.testing.assert_allclose(resized, [[-0.5, -0.5], [7.5, 7.5], [0.5, 1.5]])
    np.testing.assert_allclose(warp_points(points, resize_matrix((4, 2), (8, 8))), resized)


def test_tilt_foreshortens_and_keeps_the_area():
    rng = np.random.default_rng(0)
    tilts = []
    for _ in range(200):
        H = Homographies(scale=(0.3, 0.3), perspective=0, tilt=3).draw(rng, (640, 480))
        stretch = np.linalg.svd(H[:2, :2], compute_uv=False)
        assert stretch.prod() == pytest.approx(0.3**2)
        tilts.append(stretch[0] / stretch[1])
    assert 1 <= min(tilts) < 1.1
    assert 2.8 < max(tilts) <= 3
    np.testing.assert_allclose(np.median(tilts), np.sqrt(3), rtol=0.1)


def test_resizing_agrees_with_opencv():
    ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    halved = cv2.resize(ramp, (4, 4), interpolation=cv2.INTER_AREA)
    # The value of the ramp is its x: each pixel of the result shows where it came from.
    x = resize_points([[i, 0] for i in range(4)], (4, 4), (8, 8))[:, 0]
    np.testing.assert_allclose(halved[0], x)


def test_a_resized_homography_maps_resized_points():
    H = np.array([[0.9, 0.1, 5], [-0.1, 1.1, 3], [1e-4, 2e-4, 1]])
    points = np.random.default_rng(0).uniform(0, 60, (20, 2))
    H_small = resize_homography(H, (64, 48), (32, 20), (100, 80), (50, 90))
    expected = resize_points(warp_points(points, H), (100, 80), (50, 90))
    found = warp_points(resize_points(points, (64, 48), (32, 20)), H_small)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_point_on_the_horizon_is_infinitely_far():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 1]])
    assert not np.isfinite(warp_points([[1, 2]], H)).any()


def test_tensors_are_warped_as_arrays_are():
    rng = np.random.default_rng(0)
    points, H = rng.uniform(0, 60, (20, 2)), Homographies(tilt=2).draw(rng, (64, 48))
    batch = torch.from_numpy(np.stack([points, points[::-1]])), torch.from_numpy(np.stack([H, H]))
    found = warp_points(*batch)
    np.testing.assert_allclose(found[0], warp_points(points, H))
    np.testing.assert_allclose(found[1], found[0].flip(0))
    np.testing.assert_allclose(unwarp_points(found, batch[1]), batch[0], atol=1e-4)


def test_an_image_ends_where_its_last_pixels_do():
    points = np.array([[-0.4, 0], [-0.6, 0], [7.4, 5.4], [7.4, 5.6], [np.nan, 0]])
    expected = [True, False, True, False, False]
    assert is_inside(points, (8, 6)).tolist() == expected
    assert is_inside(torch.from_numpy(points), (8, 6)).tolist() == expected


def test_views_that_may_leave_the_photograph_keep_their_form():
    rng, corners = np.random.default_rng(3), [[0, 0], [639, 0], [639, 479], [0, 479]]
    form = Homographies(scale=(1.2, 1.2), rotation=0, perspective=0, inside=False)
    for _ in range(20):  # larger than the photograph on either axis: it sees all of it
        low, _, high, _ = warp_points(corners, form.draw(rng, (640, 480)))
        np.testing.assert_allclose(high - low, [1.2 * 639, 1.2 * 479])
        assert (low <= 0).all()
        assert (high >= [639, 479]).all()


def test_random_views_stay_inside_the_photograph():
    rng = np.random.default_rng(3)
    corners = [[0, 0], [639, 0], [639, 479], [0, 479]]
    for _ in range(100):
        H = Homographies(scale=(0.7, 1.0), rotation=180).draw(rng, (640, 480))
        inside = warp_points(corners, H)
        assert (inside >= -1e-6).all()
        assert (inside <= np.array([639, 479]) + 1e-6).all()


def test_a_view_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="no view fits"):
        Homographies(scale=(500, 500)).draw(np.random.default_rng(0), (640, 480))


@pytest.mark.parametrize("geometry", [CELL_MAP, MapGeometry(1, 9)])
def test_sampling_reads_x_from_x_and_y_from_y(geometry):
    columns, rows = np.meshgrid(np.arange(12.0), np.arange(7.0))
    values = torch.from_numpy(geometry.to_image(np.stack([columns, rows]))).float()
    points = torch.from_numpy(
        geometry.to_image(np.random.default_rng(0).uniform(0, 6, (1, 50, 2)))
    ).float()
    torch.testing.assert_close(sample_map(values[None], points, geometry), points)


def test_sampling_outside_the_map():
    ones = torch.ones(1, 1, 3, 3)
    far = torch.tensor([[[100.0, 100.0]]])
    assert sample_map(ones, far, CELL_MAP).item() == 1
    assert sample_map(ones, far, CELL_MAP, padding="zeros").item() == 0
