"""From score maps to keypoints: border, non-maximum suppression, the best of the rest."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import PredictSettings, override

__all__ = ["KeypointChoice", "refine_keypoints", "sum_scores", "thin_keypoints"]


def _suppress(
    padded: Tensor, radius: int, threshold: float, limit: int | None
) -> tuple[Tensor, Tensor]:
    """The flat indices of the pixels that the greedy rule keeps, and their scores.

    A pixel that comes before all others in its window is kept whatever happens elsewhere, so whole
    rounds of such pixels are taken at once, until none stands. With a limit, an image's pixels
    below the best ``limit`` that were kept so far no longer matter.

    Args:
        padded: (B, H, W) with a margin of ``radius`` at -inf; what is suppressed becomes -inf.
    """
    flat, plane, stride = padded.view(-1), padded[0].numel(), padded.shape[2]
    floors = torch.full_like(padded[:, 0, 0], threshold)
    floors = floors.nextafter(torch.full_like(floors, torch.inf))
    body = padded[:, radius : padded.shape[1] - radius, radius : stride - radius]
    peaks = (body == _window_maxima(padded, radius)) & (body >= floors[:, None, None])
    image, y, x = peaks.nonzero(as_tuple=True)
    pixels = image * plane + (y + radius) * stride + x + radius
    window = _window(radius, stride, padded.device)
    pixels = _first_of(flat, pixels, window[: len(window) // 2])
    kept, scores = pixels[:0], flat[:0]
    standing = None
    while True:
        kept, scores = torch.cat([kept, pixels]), torch.cat([scores, flat[pixels]])
        if limit is not None and len(kept) > limit:
            images = kept // plane
            of_image = images == torch.arange(len(padded), device=images.device)[:, None]
            own = scores.where(of_image, -torch.inf)
            floors = floors.maximum(own.kthvalue(len(kept) - limit + 1, 1).values)
            pixels = pixels[flat[pixels] >= floors[pixels // plane]]
        flat.index_fill_(0, (pixels[:, None] + window).view(-1), -torch.inf)
        if standing is None:
            standing = (padded >= floors[:, None, None]).view(-1).nonzero()[:, 0]
        else:
            standing = standing[flat[standing] >= floors[standing // plane]]
        if not len(standing):
            return kept, scores
        # Most fail against their direct neighbours already, which are quickly read.
        pixels = _first_of(flat, standing, _window(1, stride, padded.device))
        pixels = _first_of(flat, pixels, window)


def _window_maxima(padded: Tensor, radius: int) -> Tensor:
    """(B, H, W) -> (B, H - 2 * radius, W - 2 * radius): the highest in the square around each.

    Windows of twice the width from two of the former: a hundred times as fast as max_pool2d, which
    on a CPU is not vectorized along a row.
    """
    for axis in (2, 1):
        width = 1
        while width < 2 * radius + 1:
            step = min(width, 2 * radius + 1 - width)
            left = padded.shape[axis] - step
            padded = torch.maximum(padded.narrow(axis, 0, left), padded.narrow(axis, step, left))
            width += step
    return padded


def _window(radius: int, stride: int, device: torch.device) -> Tensor:
    """What to add to the flat index of a pixel for those of the square around it, row by row."""
    steps = torch.arange(-radius, radius + 1, device=device)
    return (steps[:, None] * stride + steps).view(-1)


def _first_of(flat: Tensor, pixels: Tensor, window: Tensor) -> Tensor:
    """Those of ``pixels`` that come before all others of ``window`` in the greedy order."""
    own = flat[pixels]
    first = torch.ones_like(own, dtype=torch.bool)
    before, after = window[window < 0], window[window > 0]
    if len(before):
        first &= flat.take(pixels[:, None] + before).amax(1) < own
    if len(after):
        first &= flat.take(pixels[:, None] + after).amax(1) <= own
    return pixels[first]


def sum_scores(score_maps: Tensor, radius: int) -> Tensor:
    """(B, H, W) -> (B, H, W): the sum of the scores in the square around each pixel.

    A network that is not sure of the pixel spreads its score over a few; what they hold together
    ranks keypoints better than the highest of them.
    """
    sums, steps = F.pad(score_maps, [radius] * 4), range(2 * radius + 1)
    for axis in (2, 1):  # a fourth of the time of pooling
        left = sums.shape[axis] - 2 * radius
        sums = sum(sums.narrow(axis, step, left) for step in steps)
    return sums


def refine_keypoints(score_map: Tensor, keypoints: Tensor, radius: int) -> Tensor:
    """Move each keypoint to the centre of gravity of the scores around it, between pixels.

    Args:
        score_map: (H, W) float32, not negative, one element per pixel.
        keypoints: (N, 2) float32 (x, y), whole pixels.
        radius: half the side of the square that counts; beyond the image nothing does.

    Returns:
        (N, 2) float32, moved by less than ``radius`` pixels.
    """
    padded = F.pad(score_map, [radius] * 4)
    side, stride = 2 * radius + 1, padded.shape[1]
    x, y = keypoints.long().T
    places = (y + radius) * stride + x + radius
    weights = padded.take(places[:, None] + _window(radius, stride, padded.device))
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    steps = torch.arange(-radius, radius + 1, device=padded.device, dtype=weights.dtype)
    moves = torch.stack([steps.repeat(side), steps.repeat_interleave(side)], 1)
    return keypoints + weights @ moves


@dataclass(frozen=True)
class KeypointChoice:
    """How keypoints are chosen of score maps: off the border, above a threshold, apart, the best.

    Apart by the greedy rule of SuperPoint (DeTone et al., CVPRW 2018) and HF-Net: from the highest
    score to the lowest, and row by row where scores are equal, a pixel that still stands removes
    all others in the square of ``2 * nms_radius + 1`` pixels around it.

    Attributes:
        threshold: scores must be above it.
        nms_radius: in pixels; 0 keeps every pixel.
        border: so many outermost rows and columns hold no keypoint.
        max_num_keypoints: at most so many of each image; None for all.
        refine_radius: see ``refine_keypoints``; 0 leaves keypoints at whole pixels, None is what
            suits the network.
        rank_radius: half the side of the square whose summed scores stand for the pixel's own, in
            suppression and in the order; 0 takes the pixel's own, None is what suits the network.
    """

    threshold: float
    nms_radius: int
    border: int
    max_num_keypoints: int | None
    refine_radius: int | None = 0
    rank_radius: int | None = 0

    @classmethod
    def of(cls, settings: PredictSettings, max_num_keypoints: int, **options) -> "KeypointChoice":
        """What [predict] says, with some of its keys replaced.

        Raises:
            InputError: an option that is no key of [predict], or that it does not take.
        """
        told = override(settings, **options).model_dump(exclude={"precision"})
        return cls(max_num_keypoints=max_num_keypoints, **told)

    @classmethod
    def of_store(cls, settings: Mapping[str, float]) -> "KeypointChoice":
        """The choice that a store's keypoints were made with, by the names in its schema."""
        names = "threshold", "nms_radius", "border", "top_k", "refine_radius", "rank_radius"
        return cls(*(settings.get(name, 0) for name in names))

    def __call__(self, score_maps: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keypoints of score maps (B, H, W) float32, one element per pixel, on any device.

        Returns:
            For each image keypoints (N, 2) float32 (x, y) in pixels and scores (N,) float32,
            descending; equal scores row by row.
        """
        count, height, width = score_maps.shape
        border, radius, limit = self.border, self.nms_radius, self.max_num_keypoints
        if min(height, width) <= 2 * border:
            return [(score_maps.new_zeros(0, 2), score_maps.new_zeros(0))] * count
        ranked = sum_scores(score_maps, self.rank_radius) if self.rank_radius else score_maps
        inner = ranked[:, border : height - border, border : width - border]
        # A margin spares clipping the windows; all images lie in one flat array.
        padded = F.pad(inner, [radius] * 4, value=-torch.inf)
        pixels, scores = _suppress(padded, radius, self.threshold, limit)
        order = pixels.argsort()
        order = order[scores[order].argsort(descending=True, stable=True)]
        plane, stride = padded[0].numel(), padded.shape[2]
        order = order[(pixels[order] // plane).argsort(stable=True)]
        images, places = pixels[order] // plane, pixels[order] % plane
        points = torch.stack([places % stride, places // stride], 1).float() + (border - radius)
        counts = (images == torch.arange(count, device=images.device)[:, None]).sum(1).tolist()
        of_each = zip(score_maps, points.split(counts), scores[order].split(counts), strict=True)
        found = []
        for score_map, keypoints, of_image in of_each:
            keypoints = keypoints[:limit]
            if self.refine_radius:
                keypoints = refine_keypoints(score_map, keypoints, self.refine_radius)
            found.append((keypoints, of_image[:limit]))
        return found


def thin_keypoints(
    keypoints: np.ndarray, scores: np.ndarray, size: tuple[int, int], choice: KeypointChoice
) -> np.ndarray:
    """What a choice would keep of keypoints found by other means; the best of a pixel.

    Args:
        keypoints: (N, 2) float (x, y), whole pixels or between them, rounded here.
        scores: (N,) float32.
        size: (width, height) of the image.

    Returns:
        (K,) intp, the rows that stay, by descending score.
    """
    width, height = size
    pixels = np.rint(keypoints).astype(np.intp).reshape(-1, 2)
    inside = ((pixels >= 0) & (pixels < size)).all(axis=1).nonzero()[0]
    ascending = inside[np.argsort(-scores[inside], kind="stable")[::-1]]
    x, y = pixels[ascending].T
    score_map = np.full((height, width), -np.inf, np.float32)
    score_map[y, x] = scores[ascending]  # of several on a pixel the last one stays
    rows = np.zeros((height, width), np.intp)
    rows[y, x] = ascending
    plain = replace(choice, refine_radius=0, rank_radius=0)
    ((kept, _),) = plain(torch.from_numpy(score_map)[None])
    x, y = kept.numpy().astype(np.intp).T
    return rows[y, x]
