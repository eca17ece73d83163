"""OpenCV's RANSAC homography, replayed many models at a time: the same result, four times sooner.

``cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)`` draws up to 2000 subsets of four matches
from a generator with a fixed seed, skips those that no camera could see, solves each for a
homography and counts the matches within 3 px of it. What has more than the best so far becomes the
best and lowers the number of subsets still to come; the last best one's inliers are fitted
together. Nearly all of its time goes into models that never are the best. Here

* ``_draws`` gives the same subsets, and ``_usable`` skips the same ones;
* ``_models`` solves all of them at once, in closed form;
* ``_likely`` counts the matches near each, never too few, at times a few too many: "H p lies within
  t of p'" is a quadratic form of H with coefficients of the match alone, so that one matrix product
  judges every match under every model. What rounding can do is granted to each match;
* the few models that this count lets become the best are solved and counted as OpenCV does it: by
  OpenCV's own solver, and in its order of float32 operations.

So each decision is taken in OpenCV's arithmetic, and the result is OpenCV's to the last bit. Where
that is not certain OpenCV itself is asked: few matches or inliers, hardly a usable subset, and,
tried out once in every process, an OpenCV that does it otherwise.
"""

import bisect
import functools
import math
import sys

import cv2
import numpy as np

__all__ = ["THRESHOLD", "find_homography"]

THRESHOLD = 3.0
"""In pixels, of inliers."""
MAX_ITERATIONS, CONFIDENCE, FLT_EPSILON = 2000, 0.995, 2.0**-23
MIN_MATCHES = 32
FIRST_BLOCK, LARGEST_BLOCK = 256, 4096
"""Subsets looked at together. OpenCV gives up after 10000 useless ones in a row."""
FEW_DRAWS, NUM_DRAWS = 5 * FIRST_BLOCK, 16384
"""Subsets that many pairs make do with, and at most; 2000 usable ones take 12000 where all matches
are wrong."""
LARGEST_PRODUCT = 2**21
"""Matches times subsets of a block."""
MARGIN = 1.002
ROUNDING = {np.float32: 2e-6, np.float64: 1e-8}
"""A match is near up to MARGIN times the squared threshold plus ROUNDING times the sum of the
form's absolute terms: a matrix product in float32 errs by less than 26 epsilon of it, and OpenCV's
float32 and its solver by less than 1e-6 of the terms that are squared."""
DEGENERATE = 1e-4
"""Share of its bounding box below which a triangle makes the solver err by more."""


def find_homography(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """``cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)[0]``, bit for bit.

    Args:
        points0, points1: (N, 2) float32, pixels; row i of one is matched with row i of the other.

    Returns:
        H_0to1 (3, 3) float64, or None where there is none, as for fewer than four matches.
    """
    H_0to1 = None
    if len(points0) >= MIN_MATCHES and _replays_this_opencv():
        H_0to1 = _replay(points0, points1)
    return _ask_opencv(points0, points1) if H_0to1 is None else H_0to1


def _ask_opencv(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    if len(points0) < 4:
        return None
    cv2.setRNGSeed(0)
    return cv2.findHomography(points0, points1, cv2.RANSAC, THRESHOLD)[0]


@functools.cache
def _replays_this_opencv() -> bool:
    """Whether both agree on matches of which most lie 3 px off: rounding decides on each."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        points0 = rng.uniform(0, 640, (100, 2)).astype(np.float32)
        points1 = points0 @ np.array([[0.9, 0.2], [-0.1, 1.1]]) + 20
        angles = rng.uniform(0, 2 * math.pi, 60)
        points1[:60] += THRESHOLD * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points1[60:90] = rng.uniform(0, 640, (30, 2))
        points1 = points1.astype(np.float32)
        H_0to1 = _replay(points0, points1)
        if H_0to1 is None or not np.array_equal(H_0to1, _ask_opencv(points0, points1)):
            return False
    return True


def _replay(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """What OpenCV finds; None where only OpenCV can tell."""
    num = len(points0)
    pixels = np.concatenate([points0, points1], axis=1).T.astype(np.float32, order="C")
    exact = pixels.astype(np.float64)
    units, unit_threshold = _to_units(exact)
    conditions = _conditions(units, unit_threshold)
    best, inliers, iteration, limit = 3, None, 0, MAX_ITERATIONS
    start, block = 0, FIRST_BLOCK

    def inliers_of(rows: np.ndarray) -> np.ndarray:
        H_0to1 = cv2.findHomography(points0[rows], points1[rows], 0)[0]
        if H_0to1 is None:
            return np.zeros(num, bool)
        return _squared_errors(H_0to1, pixels) <= np.float32(THRESHOLD**2)

    while iteration < limit:
        draws = _draws(num, FEW_DRAWS if start + block <= FEW_DRAWS else NUM_DRAWS)
        subsets = draws[:, start : start + block]
        usable = _usable(exact.take(subsets, axis=1))[: limit - iteration]
        if not len(usable):
            return None
        subsets = subsets.take(usable, axis=1)
        likely, near = _likely(units.take(subsets, axis=1), conditions, best)
        if len(likely):
            peak = likely[near.argmax()]
            at_peak = inliers_of(subsets[:, peak])
            top = np.count_nonzero(at_peak)
        for k, most in zip(likely, near, strict=True):
            if iteration + k >= limit:
                break
            # What the peak will overtake matters only if it ends the search before.
            overtaken = k < peak and most < top
            if most <= best or (overtaken and _num_iterations(most, num, limit) > iteration + peak):
                continue
            found = at_peak if k == peak else inliers_of(subsets[:, k])
            if (count := np.count_nonzero(found)) > best:
                best, inliers = count, found
                limit = _num_iterations(count, num, limit)
        iteration += len(usable)
        start += block
        missing = int(1.1 * (limit - iteration) * start / iteration)
        block = max(FIRST_BLOCK, min(4 * block, LARGEST_BLOCK, LARGEST_PRODUCT // num, missing))
    if best <= 4:  # a fit to four matches is refined by OpenCV's RANSAC alone
        return None
    return cv2.findHomography(points0[inliers], points1[inliers], 0)[0]


@functools.cache
def _random_numbers() -> np.ndarray:
    """What OpenCV's generator, a multiplication with carry, gives from the seed of its RANSAC."""
    state, numbers = 2**64 - 1, []
    for _ in range(int(4.4 * NUM_DRAWS)):
        state = (state & 0xFFFFFFFF) * 4164903690 + (state >> 32)
        numbers.append(state & 0xFFFFFFFF)
    return np.array(numbers, np.uint32)


@functools.lru_cache(maxsize=32)
def _draws(num: int, count: int) -> np.ndarray:
    """The subsets that OpenCV draws from ``num`` matches, (4, count) intp: the random numbers in
    fours, less those that repeat one of their four."""
    rows = (_random_numbers()[: int(4.4 * count)] % num).astype(np.intp)
    clash = np.zeros(len(rows), bool)  # whether a row is met again among the next three
    for apart in (1, 2, 3):
        same = rows[:-apart] == rows[apart:]
        for first in range(4 - apart):  # the place in a four of the one that is met again
            clash[: len(same) - first] |= same[first:]
    clashes = [(np.flatnonzero(clash[phase::4]) * 4 + phase).tolist() for phase in range(4)]
    repeats, start, end = [], 0, len(rows)
    while (later := bisect.bisect_left(clashes[start % 4], start)) < len(clashes[start % 4]):
        start, four = clashes[start % 4][later], set()
        while len(four) < 4 and start < end:
            row = rows.item(start)
            if row in four:
                repeats.append(start)
            four.add(row)
            start += 1
    return np.delete(rows, repeats)[: 4 * count].reshape(-1, 4).T.copy()


def _usable(points: np.ndarray) -> np.ndarray:
    """Which subsets OpenCV solves, (K,) intp, of points (4, 4, M): x0, y0, x1, y1 of four matches.

    The last point must not lie on a line with two others, and of the four triangles all or none
    must be turned over from one view to the other.
    """
    pairs = ((0, 1), (0, 2), (1, 2))
    sides = points[:, :3] - points[:, 3:]
    turned, *others = [np.multiply(*_double_areas(sides, i, j)) < 0 for i, j in pairs]
    usable = np.flatnonzero((others[0] == turned) & (others[1] == turned))
    turned, points = turned[usable], points.take(usable, axis=2)
    (ax, bx, cx, _), (ay, by, cy, _) = points[::2].swapaxes(0, 1), points[1::2].swapaxes(0, 1)
    determinants = ax * (by - cy) - ay * (bx - cx) + (bx * cy - cx * by)  # in OpenCV's order
    keep = (np.multiply(*determinants) < 0) == turned
    pixels = points.astype(np.float32)  # here OpenCV subtracts before it turns to float64
    sides = (pixels[:, :3] - pixels[:, 3:]).astype(np.float64)
    lengths = np.abs(sides[::2]) + np.abs(sides[1::2])
    for i, j in pairs:
        least = FLT_EPSILON * (lengths[:, i] + lengths[:, j])
        keep &= (np.abs(_double_areas(sides, i, j)) > least).all(axis=0)
    return usable[keep]


def _double_areas(sides: np.ndarray, i: int, j: int) -> np.ndarray:
    """Twice the signed area (2, M) in both views of the triangle of two sides of (4, 3, M)."""
    return sides[::2, i] * sides[1::2, j] - sides[::2, j] * sides[1::2, i]


def _to_units(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (4, N) as x0, y0, x1, y1 within -1 and 1, and the threshold in view 1's unit."""
    low, high = points.min(axis=1), points.max(axis=1)
    scale = np.maximum((high - low).reshape(2, 2).max(axis=1) / 2, 1.0).repeat(2)
    return (points - (low + high)[:, None] / 2) / scale[:, None], THRESHOLD / scale[2]


def _models(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Homographies (3, 3, M) up to scale through points (4, 4, M), and which hang on rounding.

    Three points are a basis of the plane in which the homography is diagonal; the fourth gives its
    diagonal.
    """
    x, y = points[::2], points[1::2]
    (xi, xj), (yi, yj) = ((z[:, [1, 2, 0]], z[:, [2, 0, 1]]) for z in (x, y))
    a, b, c = yi - yj, xj - xi, xi * yj - xj * yi  # the lines through two of the three
    areas = a * x[:, 3:] + b * y[:, 3:] + c
    smallest = np.minimum(np.abs(areas).min(axis=1), np.abs(areas.sum(axis=1)))
    degenerate = (smallest < DEGENERATE * np.ptp(x, axis=1) * np.ptp(y, axis=1)).any(axis=0)
    diagonal = areas[1] * areas[0, [1, 2, 0]] * areas[0, [2, 0, 1]]
    lines = np.stack([a[0], b[0], c[0]]) * diagonal
    H = np.stack([(x[1, :3] * lines).sum(1), (y[1, :3] * lines).sum(1), lines.sum(1)])
    return H / np.maximum(np.abs(H).max(axis=(0, 1)), sys.float_info.min), degenerate


def _conditions(points: np.ndarray, threshold: float) -> dict:
    """(N, 24) by dtype; their product with ``_forms`` is not positive where a match is near."""
    x, y, x1, y1 = points
    monomials = np.stack([x * x, y * y, np.ones_like(x), x * y, x, y])
    beyond = x1 * x1 + y1 * y1 - MARGIN * threshold**2
    factors = np.stack([np.ones_like(x), -2 * x1, -2 * y1, beyond])
    conditions = (factors[:, None] * monomials).reshape(24, -1).T
    return {dtype: conditions.astype(dtype, order="C") for dtype in ROUNDING}


def _forms(H: np.ndarray) -> np.ndarray:
    """(24, M): of the rows u, v, w of homographies the quadratic forms uu + vv, uw, vw and ww."""
    left, right = H[[0, 1, 0, 1, 2]], H[[0, 1, 2, 2, 2]]
    i, j = [0, 0, 1], [1, 2, 2]
    mixed = left[:, i] * right[:, j] + left[:, j] * right[:, i]
    forms = np.concatenate([left * right, mixed], axis=1)
    forms[1] += forms[0]
    return forms[1:].reshape(24, -1)


def _likely(points: np.ndarray, conditions: dict, best: int) -> tuple:
    """Which models may have more than ``best`` inliers, (K,) intp ascending, and how many at most.

    Float32 takes half the time and finds too many likely; float64 looks at those again.
    """
    H, degenerate = _models(points)
    forms, likely = _forms(H), np.arange(len(degenerate))
    largest = np.abs(conditions[np.float64]).max(axis=0)
    for dtype, rounding in ROUNDING.items():
        granted = rounding * (largest @ np.abs(forms))
        is_near = conditions[dtype] @ forms.astype(dtype, copy=False) <= granted.astype(dtype)
        near = is_near.view(np.uint8).sum(axis=0, dtype=np.int32)
        near[degenerate[likely]] = len(is_near)
        kept = np.flatnonzero(near > best)
        likely, near, forms = likely[kept], near[kept], forms.take(kept, axis=1)
    return likely, near


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
