"""OpenCV's RANSAC homography, replayed by a compiled loop: the same result, far sooner.

``cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)`` draws up to 2000 subsets of four matches
from a generator with a fixed seed, skips those that no camera could see, solves each for a
homography and counts the matches within 3 px of it. What has more than the best so far becomes the
best and lowers the number of subsets still to come; the last best one's inliers are fitted
together. Nearly all of its time goes into models that never are the best. Here

* ``_draw`` draws the same subsets and ``_is_usable`` skips the same ones;
* ``_solve`` gives their homographies in closed form, ``_count`` the inliers at least and at most,
  for what rounding can do is taken from or granted to each match;
* where these two leave open whether a model is the best, and for the inliers of the last best one,
  it is solved and counted as OpenCV does it: by OpenCV's own solver, and in its order of float32
  operations.

So each decision is taken in OpenCV's arithmetic, and the result is OpenCV's to the last bit. Where
that is not certain OpenCV itself is asked: few matches or inliers, and, tried out once in every
process, an OpenCV that does it otherwise.

Numba compiles the loop on its first call and keeps it in the user's cache folder, if it can.
"""

import math
import os
import sys
from collections.abc import Callable

import cv2
import numba
import numpy as np
from platformdirs import user_cache_dir

from .ransac import THRESHOLD, ask_opencv

__all__ = ["replay", "replays_this_opencv"]

MAX_ITERATIONS, MAX_ATTEMPTS, CONFIDENCE, FLT_EPSILON = 2000, 10000, 0.995, 2.0**-23
SEED = 2**64 - 1
MIN_MATCHES = 32
MARGIN, ROUNDING, SOLVER_ERROR = 1.002, 2.0**-21, 1e-13
"""OpenCV's residuals and ours differ by errors in float32 of less than ROUNDING times the sum of a
coordinate's absolute terms, and in its solver of less than SOLVER_ERROR times the square of a box
over a triangle in it; see ``_doubt`` for MARGIN."""


def _compiled(function: Callable) -> Callable:
    """The function compiled by Numba, which would keep its work beside the installation."""
    before = numba.config.CACHE_DIR
    folder = numba.config.CACHE_DIR = before or user_cache_dir("hfnet-distill")
    try:
        os.makedirs(folder, exist_ok=True)
        can_keep = os.access(folder, os.W_OK)
    except OSError:
        can_keep = False
    try:
        return numba.njit(cache=can_keep, error_model="numpy", nogil=True)(function)
    finally:
        numba.config.CACHE_DIR = before


def replays_this_opencv() -> bool:
    """Whether both agree on matches of which most lie 3 px off: rounding decides on each."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        points0 = rng.uniform(0, 640, (100, 2)).astype(np.float32)
        points1 = points0 @ np.array([[0.9, 0.2], [-0.1, 1.1]]) + 20
        angles = rng.uniform(0, 2 * math.pi, 60)
        points1[:60] += THRESHOLD * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points1[60:90] = rng.uniform(0, 640, (30, 2))
        points1 = points1.astype(np.float32)
        H_0to1 = replay(points0, points1)
        if H_0to1 is None or not np.array_equal(H_0to1, ask_opencv(points0, points1)):
            return False
    return True


def replay(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """What ``ransac.find_homography`` returns; None where only OpenCV can tell."""
    if len(points0) < MIN_MATCHES:
        return None
    pixels = np.concatenate([points0, points1], axis=1).T.astype(np.float32, order="C")
    exact = pixels.astype(np.float64)
    largest = np.abs(exact).max(axis=1)
    state, rows, best_rows = np.array([SEED], np.uint64), np.empty(4, np.intp), None
    best, iteration, limit = 3, 0, MAX_ITERATIONS
    while True:
        iteration, fewest, most = _next_likely(
            pixels, exact, largest, state, rows, iteration, limit, best
        )
        if not iteration:
            break
        if fewest < most:
            fewest = np.count_nonzero(_inliers(points0, points1, rows, pixels))
        if fewest > best:
            best, best_rows = fewest, rows.copy()
            limit = _num_iterations(best, len(points0), limit)
    if best <= 4:  # a fit to four matches is refined by OpenCV's RANSAC alone
        return None
    inliers = _inliers(points0, points1, best_rows, pixels)
    if np.count_nonzero(inliers) != best:
        return None
    return cv2.findHomography(points0[inliers], points1[inliers], 0)[0]


@_compiled
def _next_likely(pixels, exact, largest, state, rows, iteration, limit, best):
    """Go on to the next subset whose model may have more than ``best`` inliers.

    Args:
        pixels, exact: (4, N) float32 and float64: x0, y0, x1, y1 of the matches.
        largest: (4,), the most that each row of ``exact`` comes to.
        state, rows: (1,) uint64 and (4,) intp, are overwritten: the generator's, and the subset.
        iteration, limit: usable subsets so far, and at most.

    Returns:
        The usable subsets with this one, and how many inliers it has at least and at most; 0, 0, 0
        where there is none.
    """
    attempts = 0
    while iteration < limit and attempts < MAX_ATTEMPTS:
        _draw(state, pixels.shape[1], rows)
        attempts += 1
        if _is_usable(pixels, exact, rows):
            iteration += 1
            attempts = 0
            H_0to1, error = _solve(exact, rows)
            doubt = _doubt(H_0to1, error, largest)
            most = _count(H_0to1, MARGIN, doubt, exact)
            if most > best:
                fewest = _count(H_0to1, 1 / MARGIN, -doubt / MARGIN, exact)
                return iteration, fewest if doubt < np.inf else 0, most
    return 0, 0, 0


@_compiled
def _draw(state, num, rows):
    """Four different numbers below ``num``, by multiplication with carry."""
    drawn = 0
    while drawn < 4:
        low, high = state[0] & np.uint64(0xFFFFFFFF), state[0] >> np.uint64(32)
        state[0] = low * np.uint64(4164903690) + high
        rows[drawn] = (state[0] & np.uint64(0xFFFFFFFF)) % np.uint64(num)
        drawn += 0 if rows[drawn] in rows[:drawn] else 1


@_compiled
def _is_usable(pixels, exact, rows):
    """Whether OpenCV solves a subset.

    The last point must not lie on a line with two others, and of the four triangles all or none
    must be turned over from one view to the other.
    """
    turned = 0
    for number, (i, j, k) in enumerate(((0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3)), 1):
        orientation = 1.0
        for x, y in ((0, 1), (2, 3)):
            ax, ay = exact[x, rows[i]], exact[y, rows[i]]
            bx, by = exact[x, rows[j]], exact[y, rows[j]]
            cx, cy = exact[x, rows[k]], exact[y, rows[k]]
            orientation *= ax * (by - cy) - ay * (bx - cx) + (bx * cy - cx * by)
            if k == 3:
                # OpenCV subtracts before it turns to float64.
                ax = np.float64(pixels[x, rows[i]] - pixels[x, rows[k]])
                ay = np.float64(pixels[y, rows[i]] - pixels[y, rows[k]])
                bx = np.float64(pixels[x, rows[j]] - pixels[x, rows[k]])
                by = np.float64(pixels[y, rows[j]] - pixels[y, rows[k]])
                if abs(ax * by - ay * bx) <= FLT_EPSILON * (abs(ax) + abs(ay) + abs(bx) + abs(by)):
                    return False
        turned += orientation < 0
        if 0 < turned < number:
            return False
    return True


@_compiled
def _triangles(x, y, rows):
    """Of one view the first three points of a subset, seen from the last one, and twice the signed
    areas opposite to them; and how little of its box the smallest of the four triangles takes."""
    x = x[rows[0]] - x[rows[3]], x[rows[1]] - x[rows[3]], x[rows[2]] - x[rows[3]]
    y = y[rows[0]] - y[rows[3]], y[rows[1]] - y[rows[3]], y[rows[2]] - y[rows[3]]
    a, b, c = x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]
    width = max(x[0], x[1], x[2], 0.0) - min(x[0], x[1], x[2], 0.0)
    height = max(y[0], y[1], y[2], 0.0) - min(y[0], y[1], y[2], 0.0)
    share = min(abs(a), abs(b), abs(c), abs(a + b + c)) / (width * height)
    return x, y, (a, b, c), share


@_compiled
def _solve(exact, rows):
    """The rows of the homography through a subset, up to scale, and how far OpenCV's may be off.

    Seen from the last point, the other three are a basis in which the homography is diagonal: the
    ratios of the areas opposite to them.
    """
    x0, y0, areas0, share0 = _triangles(exact[0], exact[1], rows)
    x1, y1, areas1, share1 = _triangles(exact[2], exact[3], rows)
    ux = uy = vx = vy = wx = wy = w = 0.0
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        ratio = areas1[i] / areas0[i]
        x, y = (y0[j] - y0[k]) * ratio, (x0[k] - x0[j]) * ratio
        ux, uy = ux + x1[i] * x, uy + x1[i] * y
        vx, vy = vx + y1[i] * x, vy + y1[i] * y
        wx, wy, w = wx + x, wy + y, w + areas1[i]
    x, y = exact[0, rows[3]], exact[1, rows[3]]
    u, v, w = -ux * x - uy * y, -vx * x - vy * y, w - wx * x - wy * y
    x, y = exact[2, rows[3]], exact[3, rows[3]]
    ux, uy, u = ux + x * wx, uy + x * wy, u + x * w
    vx, vy, v = vx + y * wx, vy + y * wy, v + y * w
    error = ROUNDING + SOLVER_ERROR / min(share0, share1) ** 2
    return ((ux, uy, u), (vx, vy, v), (wx, wy, w)), error


@_compiled
def _doubt(H_0to1, error, largest):
    """What the error of a squared residual, times the depth's square, adds to its bounds.

    Where residuals r and s differ by at most d, s may be within t unless r^2 > M t^2 + D, and is if
    r^2 <= (t^2 - D) / M, with M = MARGIN and D = M / (M - 1) d^2.
    """
    (a, b, c), (d, e, f), (g, h, i) = H_0to1
    w = abs(g) * largest[0] + abs(h) * largest[1] + abs(i)
    u = abs(a) * largest[0] + abs(b) * largest[1] + abs(c) + largest[2] * w
    v = abs(d) * largest[0] + abs(e) * largest[1] + abs(f) + largest[3] * w
    return MARGIN / (MARGIN - 1) * error**2 * (u**2 + v**2)


@_compiled
def _count(H_0to1, share, doubt, exact):
    """How many squared residuals are not above ``share`` of the threshold's square and a doubt."""
    (a, b, c), (d, e, f), (g, h, i) = H_0to1
    count = 0
    for n in range(exact.shape[1]):  # of zip(*exact) no vector instructions would be made
        x0, y0, x1, y1 = exact[0, n], exact[1, n], exact[2, n], exact[3, n]
        w = g * x0 + h * y0 + i
        u = a * x0 + b * y0 + c - x1 * w
        v = d * x0 + e * y0 + f - y1 * w
        count += not u * u + v * v > share * THRESHOLD**2 * w * w + doubt
    return count


def _inliers(points0, points1, rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Which matches (N,) bool OpenCV takes for inliers of the model through a subset."""
    H_0to1 = cv2.findHomography(points0[rows], points1[rows], 0)[0]
    if H_0to1 is None:
        return np.zeros(len(points0), bool)
    return _squared_errors(H_0to1, pixels) <= np.float32(THRESHOLD**2)


def _squared_errors(H_0to1: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Squared distances (N,) float32 as OpenCV computes them, operation by operation."""
    h = H_0to1.astype(np.float32)
    with np.errstate(all="ignore"):
        warped = h[:, :1] * pixels[0] + h[:, 1:2] * pixels[1] + h[:, 2:]
        misses = warped[:2] * (np.float32(1) / warped[2]) - pixels[2:]
        misses *= misses
        return misses[0] + misses[1]


def _num_iterations(count: int, num: int, current: int) -> int:
    """How many subsets make it ``CONFIDENCE`` certain that one had none but inliers."""
    failing = 1 - (1 - (num - count) / num) ** 4
    if failing < sys.float_info.min:
        return 0
    wanted, each = math.log(1 - CONFIDENCE), math.log(failing)
    return current if each >= 0 or -wanted >= current * -each else round(wanted / each)
