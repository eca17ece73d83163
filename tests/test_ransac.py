"""The replayed RANSAC against OpenCV's own: not near it, but the same to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfnet_distill.data.geometry import Homographies, warp_points
from hfnet_distill.evaluation import ransac
from hfnet_distill.evaluation.ransac import find_homography

pytest.importorskip("numba")
replay = pytest.importorskip("hfnet_distill.evaluation.replay")


def ask_opencv(points0, points1):
    return cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)[0]


def draw_matches(seed, num=300, share_correct=0.3, noise=1.0):
    """Points (num, 2) float32 of two views, the first of them matched right."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform(0, 640, (num, 2))
    points1 = warp_points(points0, Homographies().draw(rng, (640, 480)))
    points1 += noise * rng.standard_normal(points1.shape)
    wrong = round(num * share_correct)
    points1[wrong:] = rng.uniform(0, 640, (num - wrong, 2))
    return points0.astype(np.float32), points1.astype(np.float32)


@pytest.fixture
def unasked(monkeypatch):
    """OpenCV's RANSAC must not be needed."""
    assert ransac._find_replay() is replay.replay
    monkeypatch.delattr(ransac, "ask_opencv")


@pytest.mark.parametrize("share_correct", [0, 0.05, 0.15, 0.4, 0.9])
@pytest.mark.parametrize("num", [100, 300, 1000])
def test_random_matches(unasked, share_correct, num):
    for seed in range(3):
        points = draw_matches(seed, num, share_correct)
        np.testing.assert_array_equal(find_homography(*points), ask_opencv(*points))


def test_whole_pixels_and_matches_that_come_twice(unasked):
    points0, points1 = (np.round(points) for points in draw_matches(0))
    points0[100:150], points1[100:150] = points0[:50], points1[:50]
    np.testing.assert_array_equal(find_homography(points0, points1), ask_opencv(points0, points1))


@pytest.mark.parametrize("num", [4, 5, 8, 20])
def test_few_matches(num):
    points = draw_matches(1, num, share_correct=0.8)
    np.testing.assert_array_equal(find_homography(*points), ask_opencv(*points))


def test_fewer_than_four_matches_have_no_homography():
    assert find_homography(*draw_matches(2, 3)) is None


@pytest.mark.parametrize("side", [0, 1])
def test_points_on_a_line(side):
    points = draw_matches(3)
    points[side][:, 1] = points[side][:, 0]
    assert ask_opencv(*points) is None
    assert find_homography(*points) is None


def test_all_matches_go_to_four_places():
    points0, points1 = draw_matches(4)
    points1[:] = points1[np.arange(300) % 4]
    expected = ask_opencv(points0, points1)
    np.testing.assert_array_equal(find_homography(points0, points1), expected)


def errors_in_float64(H_0to1, pixels):
    return ((warp_points(pixels[:2].T, H_0to1) - pixels[2:].T) ** 2).sum(axis=1)


@pytest.mark.parametrize(
    ("name", "other"),
    [("_squared_errors", errors_in_float64), ("SEED", 1), ("MAX_ITERATIONS", 10)],
)
def test_another_opencv_is_noticed_and_asked(monkeypatch, name, other):
    points = draw_matches(5)
    expected = ask_opencv(*points)
    with monkeypatch.context() as patch:
        patch.setattr(replay, name, other)
        assert ransac._find_replay.__wrapped__() is None
    monkeypatch.setattr(ransac, "_find_replay", lambda: None)
    np.testing.assert_array_equal(find_homography(*points), expected)


def test_draws_are_the_generators():
    """OpenCV's multiplication with carry; four numbers each, none twice in a subset."""
    state, rows = np.array([replay.SEED], np.uint64), np.empty(4, np.intp)
    number = replay.SEED
    for _ in range(2000):
        subset = []
        while len(subset) < 4:
            number = (number % 2**32 * 4164903690 + (number >> 32)) % 2**64
            if number % 2**32 % 40 not in subset:
                subset.append(number % 2**32 % 40)
        replay._draw(state, 40, rows)
        assert rows.tolist() == subset


def test_inliers_are_between_the_bounds():
    """Even where a subset is nearly degenerate, and so its model uncertain."""
    points0, points1 = draw_matches(6, num=120, share_correct=0.5)
    points0[:40, 1] = points0[:40, 0] + np.float32(1e-3) * points0[::-1][:40, 1]
    pixels = np.concatenate([points0, points1], axis=1).T.copy()
    exact = pixels.astype(np.float64)
    largest = np.abs(exact).max(axis=1)
    state, rows = np.array([replay.SEED], np.uint64), np.empty(4, np.intp)
    iteration, certain = 0, 0
    while iteration < 1500:
        iteration, fewest, most = replay._next_likely(
            pixels, exact, largest, state, rows, iteration, 2000, -1
        )
        found = np.count_nonzero(replay._inliers(points0, points1, rows, pixels))
        assert fewest <= found <= most
        certain += fewest == most
    assert certain > 500


def test_without_numba_opencv_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "hfnet_distill.evaluation.replay", None)
    assert ransac._find_replay.__wrapped__() is None


def test_nothing_is_written_beside_the_installation(tmp_path):
    """Compiled code goes to the user's cache folder; where that cannot be, nowhere."""
    code = "from hfnet_distill.evaluation.replay import replays_this_opencv as f; assert f()"
    beside = Path(replay.__file__).parent
    before = sorted(beside.rglob("*"))
    (tmp_path / "file").touch()
    for cache in (tmp_path / "cache", tmp_path / "file"):
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list((tmp_path / "cache").rglob("*.nbc"))
    assert sorted(beside.rglob("*")) == before
