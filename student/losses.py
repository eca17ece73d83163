"""The losses: a registry of functions, one value per image or pair each.

HF-Net's (Sarlin et al., CVPR 2019), those between two views of a photograph, and others that
pipeline.toml leaves at a weight of 0. A new one is a function here, or in a file of one's own, and
a line in ``[train.loss_weights]``:

    @register_loss("entropy")
    def entropy(said, lesson):
        logits = said.score_logits
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean((1, 2))
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.cells import CELL, NOTHING, cell_peaks, image_shape, occupied, to_pixels
from ..data.geometry import CELL_MAP, invert, is_inside, sample_map, warp_points
from ..errors import InputError
from ..networks.base import StudentOutput
from ..registry import Registry
from .targets import Lesson

__all__ = [
    "LOSSES",
    "FixedWeights",
    "UncertaintyWeights",
    "active_losses",
    "compute_losses",
    "contrast_loss",
    "correspondence_loss",
    "descriptor_loss",
    "detector_loss",
    "global_descriptor_loss",
    "localization_loss",
    "occupancy_loss",
    "place_loss",
    "register_loss",
    "similarity_loss",
]

SAME = 4
"""Pixels. Suppression leaves no two keypoints nearer to each other."""
KEYPOINTS, LEAST = 100, 0.005
"""So many of a view's keypoints have their places compared, and what their scores are above."""
COMPARED = 512
"""Cells of a view whose descriptors are told from each other."""
SIMILAR = 192
"""Points of a view whose similarities to each other are compared."""
CONTRASTED = 128
"""Keypoints of a photograph that are told from all others of the batch."""
TEMPERATURE = 0.05
"""Of the similarities of unit descriptors: SiLK's."""
SOFT_TEMPERATURE = 0.1
"""Of those that are compared as distributions: the second and third choice are seen, too."""

EXACT = "donot_use_mm_for_euclid_dist"
"""Distances by subtraction: as products, those of far-off points are a pixel off."""

Needs = Literal["local", "pair", "global"]
LOSSES: Registry[Callable[[StudentOutput, Lesson], Tensor]] = Registry("loss")


def register_loss(name: str, needs: Needs = "local") -> Callable[[Callable], Callable]:
    """Make a function the loss of that name in ``[train.loss_weights]``.

    It takes what a student said and a ``Lesson``, and gives values (N,) of the views or (B,) of the
    photographs.

    Args:
        needs: local targets, two views of each photograph, or global targets.

    Raises:
        InputError: there is one of that name already.
    """
    return LOSSES.register(name, needs=needs)


def active_losses(weights: dict[str, float], has: set[Needs]) -> list[str]:
    """The losses with a weight above 0 that can be computed, in the order of the registry.

    Args:
        has: what a batch has of what losses need.

    Raises:
        InputError: a name that no loss has.
    """
    for name in weights:
        LOSSES.find(name)
    return [n for n in LOSSES.names() if weights.get(n, 0) and LOSSES.find(n).needs in has]


def compute_losses(names: Iterable[str], said: StudentOutput, lesson: Lesson) -> dict[str, Tensor]:
    """The losses of those names, each the mean over the batch, a float32 scalar."""
    return {name: LOSSES.find(name)(said, lesson).mean() for name in names}


@register_loss("detector")
def _detector(said: StudentOutput, lesson: Lesson) -> Tensor:
    return detector_loss(said.score_logits, lesson.detections.cells, lesson.detections.known)


@register_loss("descriptor")
def _descriptor(said: StudentOutput, lesson: Lesson) -> Tensor:
    found = _student_descriptors(said, lesson)
    return descriptor_loss(found, lesson.descriptors.mT, lesson.weights)


@register_loss("global", needs="global")
def _global(said: StudentOutput, lesson: Lesson) -> Tensor:
    return global_descriptor_loss(said.global_descriptor, lesson.global_descriptor)


@register_loss("correspondence", needs="pair")
def _correspondence(said: StudentOutput, lesson: Lesson) -> Tensor:
    """At the likeliest pixels of the student's likeliest cells of view 0."""
    maps, logits = _pairs(said.descriptor_map), _pairs(said.score_logits)
    cells = logits[0].detach()
    likely = occupied(cells.softmax(1)).flatten(1)
    if lesson.seen is not None:
        likely = likely * _pairs(lesson.seen)[0].flatten(1)
    likely, chosen = likely.topk(min(COMPARED, likely.shape[1]))
    peaks = cell_peaks(cells).gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return correspondence_loss(maps, peaks, likely, _between(lesson))


@register_loss("localization", needs="pair")
def _localization(said: StudentOutput, lesson: Lesson) -> Tensor:
    """Of every second photograph of a process: it costs as much as the detector's other losses."""
    logits, seen = (
        [each[::2] for each in _pairs(maps)] if maps is not None else None
        for maps in (said.score_logits, lesson.seen)
    )
    return localization_loss(logits, _between(lesson)[::2], seen)


@register_loss("occupied")
def _occupied(said: StudentOutput, lesson: Lesson) -> Tensor:
    return occupancy_loss(said.score_logits, lesson.detections.cells, lesson.detections.known)


@register_loss("where")
def _where(said: StudentOutput, lesson: Lesson) -> Tensor:
    return place_loss(said.score_logits, lesson.detections.cells, lesson.detections.known)


@register_loss("similarity")
def _similarity(said: StudentOutput, lesson: Lesson) -> Tensor:
    """Over the points of each view that count most."""
    found, weights = _student_descriptors(said, lesson).mT, lesson.weights.float()
    weights, chosen = weights.topk(min(SIMILAR, weights.shape[1]))
    student, teacher = (
        rows.gather(1, chosen[:, :, None].expand(-1, -1, rows.shape[2]))
        for rows in (found, lesson.descriptors)
    )
    return similarity_loss(student, teacher, weights)


@register_loss("contrast", needs="pair")
def _contrast(said: StudentOutput, lesson: Lesson) -> Tensor:
    """At the detector target's keypoints that both views show, the likeliest of each photograph."""
    detections = lesson.detections
    if detections.keypoints is None:
        raise InputError("loss contrast: needs a detector_target with keypoints, not cells")
    inside = is_inside(detections.keypoints, image_shape(said.descriptor_map.shape[2:])[::-1])
    weights = torch.stack(_pairs(detections.probability * inside)).amin(0)
    weights, chosen = weights.topk(min(CONTRASTED, weights.shape[1]))
    chosen = chosen[:, :, None].expand(-1, -1, 2)
    points = [rows.gather(1, chosen) for rows in _pairs(detections.keypoints)]
    return contrast_loss(_pairs(said.descriptor_map), points, weights)


def _student_descriptors(said: StudentOutput, lesson: Lesson) -> Tensor:
    """Those (N, D, P) at the points of a lesson, of unit length."""
    if lesson.points is None:
        return said.descriptor_map.flatten(2)
    return F.normalize(sample_map(said.descriptor_map, lesson.points, CELL_MAP), dim=2).mT


def _pairs(of_views: Tensor) -> tuple[Tensor, Tensor]:
    """(2 * B, ...) -> views 0 and views 1, (B, ...) each."""
    return of_views.unflatten(0, (-1, 2)).unbind(1)


def _between(lesson: Lesson) -> Tensor:
    """``H_0to1`` (B, 3, 3) of the two views of each photograph."""
    views = lesson.H_view_to_photo
    return invert(views[:, 1]) @ views[:, 0]


def descriptor_loss(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Half the squared distance of a position's descriptors, mean over positions.

    Args:
        predicted, target: (B, D, ...) of unit length along D.
        mask: (B, ...) bool, other positions do not count; or float, how much each one does.

    Returns:
        (B,), 0 to 2: one minus their cosine.
    """
    return _mean((predicted - target).square().sum(1) / 2, mask)


def detector_loss(score_logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each cell's distribution against the teacher's, mean over cells.

    Args:
        score_logits: (B, 65, h, w).
        target: (B, 65, h, w), a distribution over each cell's pixels and "no keypoint".
        mask: (B, h, w) bool; other cells do not count.

    Returns:
        (B,).
    """
    return _mean(-(target * score_logits.log_softmax(1)).sum(1), mask)


def occupancy_loss(score_logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of "this cell has a keypoint" against the teacher's, mean over cells.

    ``detector_loss`` is the sum of this and, of each cell, ``place_loss`` times the teacher's mass:
    apart, few keypoints weigh as much as many empty cells. Arguments as of ``detector_loss``.
    """
    nothing, pixels = score_logits[:, NOTHING], score_logits[:, :NOTHING]
    logit = pixels.logsumexp(1) - nothing
    values = F.binary_cross_entropy_with_logits(logit, occupied(target), reduction="none")
    return _mean(values, mask)


def place_loss(score_logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of where in its cell a keypoint is, mean over the teacher's keypoints.

    Cells count as much as the teacher holds a keypoint there likely. Arguments as of
    ``detector_loss``.
    """
    pixels, mass = target[:, :NOTHING], occupied(target)
    surprise = -(pixels * score_logits[:, :NOTHING].log_softmax(1)).sum(1)
    mass = mass if mask is None else mass * mask
    return _mean(surprise / mass.clamp(min=1e-6), mass)


def similarity_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """How differently a student's descriptor and its teacher's choose among the teacher's.

    After AsymLoc (arXiv 2604.09445): the Kullback-Leibler divergence of the softmax of
    teacher-student similarities from that of teacher-teacher ones, over rows and over columns.
    It keeps the student comparable with its teacher: either may describe the map.

    Args:
        student, teacher: (N, P, D) of unit length, at the same points.
        weights: (N, P), how much each point counts; one with 0 is no choice either.

    Returns:
        (N,), not negative.
    """
    absent = (weights <= 0)[:, None]
    own = teacher @ teacher.mT / SOFT_TEMPERATURE
    mixed = student @ teacher.mT / SOFT_TEMPERATURE
    values = 0.0
    for logits in (mixed, mixed.mT):
        expected, found = (each.masked_fill(absent, -1e4).log_softmax(2) for each in (own, logits))
        apart = F.kl_div(found, expected, log_target=True, reduction="none").sum(2)
        values = values + _mean(apart, weights) / 2
    return values


def correspondence_loss(
    descriptor_maps: tuple[Tensor, Tensor],
    points: Tensor,
    weights: Tensor,
    H_0to1: Tensor,
    *,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """How surely a point of view 0 is told from all others of view 1, and the other way round.

    InfoNCE (van den Oord et al., 2018) over the similarities of descriptors at points of view 0
    and where they are in view 1. Points less than ``SAME`` pixels apart need not be told apart.

    Args:
        descriptor_maps: of views 0 and 1, (B, D, h, w) each, of unit length along D.
        points: (B, N, 2) float64, in pixels of view 0.
        weights: (B, N), how much each of them counts.
        H_0to1: (B, 3, 3) float64.

    Returns:
        (B,), 0 where the views share nothing.
    """
    places = points.float(), warp_points(points, H_0to1).float()
    seen = is_inside(places[1], image_shape(descriptor_maps[1].shape[2:])[::-1])
    descriptors = [
        F.normalize(sample_map(maps, at, CELL_MAP), dim=2)
        for maps, at in zip(descriptor_maps, places, strict=True)
    ]
    similarity = descriptors[0] @ descriptors[1].mT / temperature
    same = torch.cdist(places[0], places[0], compute_mode=EXACT) < SAME
    same.diagonal(dim1=1, dim2=2).fill_(False)
    ignored = same | ~(seen[:, :, None] & seen[:, None, :])
    similarity = similarity.masked_fill(ignored, -1e4)
    right = similarity.diagonal(dim1=1, dim2=2)
    surprise = (similarity.logsumexp(1) + similarity.logsumexp(2)) / 2 - right
    return _mean(surprise, weights * seen)


def contrast_loss(
    descriptor_maps: Sequence[Tensor],
    points: Sequence[Tensor],
    weights: Tensor,
    *,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """How surely a keypoint is found in the other view among those of the whole batch.

    InfoNCE (van den Oord et al., 2018), as ``correspondence_loss``; but the negatives also are the
    other keypoints of its own view, and those of other photographs.

    Args:
        descriptor_maps: of views 0 and 1, (B, D, h, w) each, of unit length along D.
        points: (B, N, 2) float32 each, the same keypoints in pixels of views 0 and of views 1.
        weights: (B, N), how much each counts; one with 0 is no negative either.

    Returns:
        (B,).
    """
    count = weights.shape[1]
    found = [
        F.normalize(sample_map(maps, at, CELL_MAP), dim=2).flatten(0, 1)
        for maps, at in zip(descriptor_maps, points, strict=True)
    ]
    distances = (torch.cdist(at, at, compute_mode=EXACT) for at in points)
    near = [torch.block_diag(*(of_pairs < SAME)).bool() for of_pairs in distances]
    same = near[0] | near[1]
    absent = ~(weights.flatten() > 0)
    own = torch.eye(len(same), dtype=torch.bool, device=same.device)
    across = found[0] @ found[1].mT / temperature
    right = across.diagonal()
    # Its own correspondence stays, also where the point itself is absent: it counts nothing there.
    across = across.masked_fill((same | absent | absent[:, None]) & ~own, -1e4)
    within = [(d @ d.mT / temperature).masked_fill(same | absent | own, -1e4) for d in found]
    seen = [
        torch.logaddexp(across.logsumexp(1 - view), within[view].logsumexp(1)) for view in (0, 1)
    ]
    surprise = (seen[0] + seen[1]) / 2 - right
    return _mean(surprise.unflatten(0, (-1, count)), weights)


def localization_loss(
    score_logits: tuple[Tensor, Tensor],
    H_0to1: Tensor,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """How far apart two views see the same keypoint, mean over keypoints.

    A keypoint is the highest score within ``SAME`` pixels, at the center of gravity of the scores
    there (see ``data.keypoints.refine_keypoints``); two are the same where each is the nearest to
    the other and at most ``SAME`` pixels away.

    Args:
        score_logits: of views 0 and 1, (B, 65, h, w) each.
        H_0to1: (B, 3, 3) float64.
        seen: (B, h, w) bool each, the cells that count; None for all.

    Returns:
        (B,), in pixels of view 0 and of view 1, their mean; 0 where nothing is seen twice.
    """
    maps = [to_pixels(logits.float().softmax(1)) for logits in score_logits]
    if seen is not None:
        maps = [
            scores * cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
            for scores, cells in zip(maps, seen, strict=True)
        ]
    (points0, found0), (points1, found1) = map(_best_keypoints, maps)
    offsets1 = warp_points(points0, H_0to1)[:, :, None] - points1[:, None]
    offsets0 = points0[:, :, None] - warp_points(points1, invert(H_0to1))[:, None]
    apart = (offsets1.square().sum(3) + 1e-6).sqrt()
    nearest = (apart == apart.amin(1, keepdim=True)) & (apart == apart.amin(2, keepdim=True))
    apart_in_0 = (offsets0.square().sum(3) + 1e-6).sqrt()
    same = nearest & (apart < SAME) & found0[:, :, None] & found1[:, None]
    return _mean((apart + apart_in_0).float() / 2, same)


def _best_keypoints(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of score maps (B, H, W): (B, K, 2) float64 between pixels, (B, K) bool if any."""
    width, side = scores.shape[2], 2 * SAME + 1
    with torch.no_grad():
        # Along rows, then along columns: a third of the time of the square at once.
        of_rows = F.max_pool2d(scores[:, None], (1, side), 1, (0, SAME))
        is_highest = scores == F.max_pool2d(of_rows, (side, 1), 1, (SAME, 0))[:, 0]
        highest = (scores * is_highest).flatten(1)
        best, pixels = highest.topk(min(KEYPOINTS, highest.shape[1]))
        x, y = pixels % width, pixels // width
        steps = torch.arange(side, device=scores.device)
        padded_width = width + 2 * SAME
        square = (steps[:, None] * padded_width + steps).flatten()
        around = (y * padded_width + x)[:, :, None] + square
    weights = F.pad(scores, [SAME] * 4).flatten(1).gather(1, around.flatten(1))
    weights = weights.view(*pixels.shape, side, side)
    weights = weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-12)
    moves = torch.stack([(weights.sum(dim) * (steps - SAME)).sum(2) for dim in (2, 3)], 2)
    return (torch.stack([x, y], 2) + moves).double(), best > LEAST


def global_descriptor_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of global descriptors (B, G) of unit length; (B,), 0 to 2."""
    return (predicted - target).square().sum(1) / 2


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, ...) -> (B,), over the positions in the mask."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.to(values.dtype)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)


class FixedWeights(nn.Module):
    """Loss weights by name, of which some losses are the mean."""

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = weights

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Scalar losses by name -> their weighted mean."""
        total = sum(self.weights[name] for name in losses)
        return sum(self.weights[name] * loss for name, loss in losses.items()) / total


class UncertaintyWeights(nn.Module):
    """Loss weights learned with the network: Kendall, Gal, Cipolla, CVPR 2018.

    Each loss L has a learned w, 1 at the start, and adds ``exp(-w) * L + w``; the detector's, a
    classification, adds twice its share of L, as in HF-Net.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = [*names]
        self.log_variances = nn.Parameter(torch.ones(len(names)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Scalar losses by name -> their sum."""
        return sum(
            (2.0 if name == "detector" else 1.0) * (-w).exp() * losses[name] + w
            for name, w in zip(self.names, self.log_variances, strict=True)
        )
