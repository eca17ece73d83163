"""SiLK's self-supervision: a photograph seen twice, under homographies and light of our choice.

Gleize, Wang, Feiszli: SiLK: Simple Learned Keypoints, ICCV 2023. Which pixel of one view shows what
a pixel of the other shows is known; descriptors learn to find it, scores learn where they do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TeacherSettings, load_settings
from ..console import deferred_interrupt, progress, say
from ..data.augment import augment_photometric
from ..data.geometry import Homographies, resize_matrix
from ..data.images import list_images, read_image, split_names, view_through
from ..device import autocast, choose_device, choose_precision
from ..errors import InputError
from ..networks.registry import save_checkpoint
from ..networks.silk import SiLK, SiLKConfig
from ..runs import RunFolder
from .shards import ahead
from .silk_loss import MAX_SIMILARITY, homography_correspondences, match_rates, pair_losses

__all__ = [
    "SiLKTraining",
    "ViewPair",
    "compare_views",
    "random_views",
    "train_silk",
    "train_teacher",
]

MAY_CHANGE = {"steps", "device", "checkpoint_minutes", "validate_every"}
"""What a resumed run may have otherwise: its end may be moved, the rest changes no step."""
NETWORKS = {
    "vgg4": SiLKConfig(),
    "micro": SiLKConfig(channels=(64,), lateral=32, descriptor_dim=32),
}
"""SiLK's own network, and one of a tenth of its parameters."""
AHEAD = 4
"""Pairs of views that a thread makes while others are learned from."""
LONGEST_GRADIENT = 100.0
"""Gradients are shortened to this length; sound ones are shorter after the first steps."""


@dataclass(frozen=True)
class SiLKTraining:
    """Settings of a training run: [teacher] of pipeline.toml says what is not said here.

    Attributes:
        network: widths of the network.
        grid: side of the square maps that are compared, in positions; the paper's is 146. The
            views are larger by the border that the network does not pad.
        homographies: of the views in the square of a photograph that ``zoom`` says.
        precision: float32, or bfloat16 for products and float32 for sums.
        device: as torch names it.
    """

    network: SiLKConfig = field(default_factory=SiLKConfig)
    grid: int = 64
    steps: int = 100_000
    learning_rate: float = 1e-3
    warmup: int = 500
    zoom: tuple[float, float] = (1.3, 2.2)
    homographies: Homographies = field(default_factory=Homographies)
    photometric: float = 0.5
    temperature: float = 0.05
    precision: str = "bfloat16"
    device: str = "cpu"
    checkpoint_minutes: float = 5.0
    validate_every: int = 1000
    seed: int = 0

    @property
    def view_side(self) -> int:
        """Side of a view in pixels."""
        return self.grid + 2 * int(self.network.geometry.offset)


class ViewPair(NamedTuple):
    """Two views of one photograph.

    Attributes:
        images: (2, 1, S, S) float32 in [0, 1].
        correspondences: (grid * grid,) int64, see ``homography_correspondences``.
    """

    images: Tensor
    correspondences: Tensor


def train_teacher(
    images: str | Path,
    output: str | Path,
    settings: TeacherSettings | None = None,
    *,
    init: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train SiLK on photographs alone: no labels, no other network's weights.

    Args:
        images: the folder of photographs.
        output: the run folder to make, see ``train_silk``.
        settings: as [teacher] of pipeline.toml; None for those of ``load_settings()``.
        init: a checkpoint of SiLK to start from, or "packaged"; None for random weights.
        resume: go on with the run in ``output``, or start where there is none.

    Returns:
        The weights, ``silk.safetensors`` in ``output``.

    Raises:
        DistillError, KeyboardInterrupt: as ``train_silk``.
    """
    settings, output = settings or load_settings().teacher, Path(output)
    device = choose_device(settings.device)
    initial = None
    if init is not None:
        initial = SiLK.open(None if init == "packaged" else str(init))
    names, held_out = split_names(list_images(images), settings.validation)
    form = Homographies(
        scale=settings.view_scale,
        rotation=settings.rotation,
        perspective=settings.perspective,
        tilt=settings.tilt,
    )
    others = {"network", "validation", "device", "precision"} | {*asdict(form), "view_scale"}
    training = SiLKTraining(
        network=initial.config if initial else NETWORKS[settings.network],
        homographies=form,
        device=str(device),
        precision=choose_precision(settings.precision, device, training=True),
        **settings.model_dump(exclude=others),
    )
    say(f"train on {len(names)} photographs, validate on {len(held_out)}", quiet=quiet)
    with progress("train silk", training.steps, quiet=quiet) as advance:
        train_silk(
            [Path(images, name) for name in names],
            [Path(images, name) for name in held_out],
            output,
            training,
            initial=initial,
            resume=resume,
            advance=advance,
        )
    return output / "silk.safetensors"


def train_silk(
    photographs: Sequence[Path],
    validation: Sequence[Path],
    output: Path,
    settings: SiLKTraining,
    *,
    initial: SiLK | None = None,
    resume: bool = False,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> None:
    """Train SiLK and leave ``silk.safetensors`` in a run folder, see ``hfnet_distill.runs``.

    A step's photograph, views and learning rate follow from the seed and the step's number, so a
    resumed run takes the same steps as one that was never interrupted.

    Args:
        photographs: to train on.
        validation: to validate on; always the same pair of views of each.
        initial: the network to start from, of the widths in ``settings``.
        resume: go on with the run in ``output``, or start where there is none.
        advance: called with steps taken, also by the run before, and a note about the loss.

    Raises:
        AlreadyExistsError: ``output`` holds a run and ``resume`` was not asked for.
        InputError: a photograph is too small, there are none, or the run to resume was started with
            other settings.
        TrainingError: the loss or its gradient is not a number; checkpoints from before are kept.
        KeyboardInterrupt: asked to stop; the run can go on.
    """
    _check_photographs(photographs, validation, settings.view_side)
    if settings.temperature * MAX_SIMILARITY < 1:
        raise InputError(
            f"temperature {settings.temperature:g}: similarities of unit descriptors reach "
            f"{1 / settings.temperature:.0f}, expected at most {MAX_SIMILARITY:g}; raise it to "
            f"{1 / MAX_SIMILARITY:.3f} at least"
        )
    info = {"settings": asdict(settings), "photographs": len(photographs)}
    run = RunFolder(output, info, resume=resume, may_change=MAY_CHANGE)
    torch.manual_seed(settings.seed)
    network = initial or SiLK(settings.network)
    network.to(settings.device, memory_format=torch.channels_last)
    on_gpu = next(network.parameters()).is_cuda
    optimizer = torch.optim.Adam(network.parameters(), fused=on_gpu)  # fused reads no number
    modules = {"network": network}
    step = run.load(modules, optimizer, {"step": 0})["step"]
    advance(step, "")
    saved = time.monotonic()
    losses: list[Tensor] = []  # and norms of gradients, of the steps that were not looked at yet
    note = ""
    with run.journal(step) as journal, deferred_interrupt() as interrupted:
        views = _views_ahead(photographs, step, settings)
        for pair in journal.timed(views, lambda pair: len(pair.images)):
            rate = settings.learning_rate * _schedule(step, settings)
            optimizer.param_groups[0]["lr"] = rate
            loss, values = compare_views(network.train(), pair, settings)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), LONGEST_GRADIENT)
            optimizer.step()
            step += 1
            losses.append((loss + norm).detach())
            stop, last = interrupted(), step == settings.steps
            validates = step % settings.validate_every == 0 or last
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60
            if validates or due or stop or step % journal.EVERY == 0:  # a look waits for a GPU
                run.check_losses(step, losses)
                note = f"loss {loss.item():.3f}"
                losses.clear()
            journal.step(step, values, rate)
            advance(1, note)
            if validates:
                journal.write("validation", step, validate(network, validation, settings))
            if validates or due or stop:
                save_checkpoint(output / "silk.safetensors", network, {"step": step})
            if due or stop or last:
                run.save(modules, optimizer, {"step": step})
                saved = time.monotonic()
            if stop:
                raise run.interrupted(step)


def compare_views(
    network: SiLK, pair: ViewPair, settings: SiLKTraining
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a pair of views, a scalar, and by name what it is made of and what it means."""
    device = torch.device(settings.device)
    images = pair.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    correspondences = pair.correspondences.to(device, non_blocking=True)
    with autocast(device, settings.precision):
        output = network(images)
    # (2, D, h, w) lies in memory as (2, h, w, D): flattening the grid copies nothing.
    descriptors = output.descriptor_map.flatten(2).transpose(1, 2)
    logits = output.score_logits.flatten(1)
    losses = pair_losses(
        *descriptors,
        *logits,
        correspondences,
        temperature=settings.temperature,
        bfloat16=settings.precision == "bfloat16",
    )
    loss = losses.descriptor + losses.keypoint
    with torch.no_grad():
        rates = match_rates(losses.matches, correspondences, logits[0])
        parts = {"loss": loss, "descriptor": losses.descriptor, "keypoint": losses.keypoint}
        return loss, {**{name: part.detach() for name, part in parts.items()}, **rates}


@torch.no_grad()
def validate(
    network: SiLK, photographs: Sequence[Path], settings: SiLKTraining
) -> dict[str, float]:
    """The means of what ``compare_views`` says about one fixed pair of views of each photograph."""
    network.eval()
    pairs = (
        random_views(path, np.random.default_rng(index), settings)
        for index, path in enumerate(photographs)
    )
    found = [compare_views(network, pair, settings)[1] for pair in pairs]
    return {name: torch.stack([each[name] for each in found]).mean().item() for name in found[0]}


def random_views(path: Path, rng: np.random.Generator, settings: SiLKTraining) -> ViewPair:
    """Two random views of a photograph, both somewhere in one random square of it.

    Raises:
        InputError: the photograph is smaller than a view.
    """
    photograph = read_image(path, channels=1)
    side = settings.view_side
    _check_size(path, photograph, side)
    room = np.array(photograph.shape[::-1])
    square = min(room.min(), round(side * rng.uniform(*settings.zoom)))
    x, y = rng.integers(room - square + 1)
    crop = photograph[y : y + square, x : x + square]
    H_views_to_crop = [
        settings.homographies.draw(rng, (square, square))
        @ resize_matrix((side, side), (square, square))
        for _ in range(2)
    ]
    views = [
        augment_photometric(view_through(crop, H, (side, side)), rng, settings.photometric)
        for H in H_views_to_crop
    ]
    H_0to1 = np.linalg.inv(H_views_to_crop[1]) @ H_views_to_crop[0]
    correspondences = homography_correspondences(
        H_0to1, settings.network.geometry, (settings.grid, settings.grid)
    )
    images = torch.from_numpy(np.stack(views)[:, None]).float() / 255
    return ViewPair(images, torch.from_numpy(correspondences))


def _views_ahead(
    photographs: Sequence[Path], start: int, settings: SiLKTraining
) -> Iterator[ViewPair]:
    """The pairs of the steps from ``start`` on."""

    def views(step: int) -> ViewPair:
        epoch, place = divmod(step, len(photographs))
        order = np.random.default_rng((settings.seed, 0, epoch)).permutation(len(photographs))
        rng = np.random.default_rng((settings.seed, 1, step))
        pair = random_views(photographs[order[place]], rng, settings)
        on_gpu = torch.device(settings.device).type == "cuda"
        return ViewPair(*(part.pin_memory() for part in pair)) if on_gpu else pair

    with ThreadPoolExecutor(1) as pool:
        yield from ahead(pool, views, range(start, settings.steps), AHEAD)


def _schedule(step: int, settings: SiLKTraining) -> float:
    """Learning rate as a share of its peak: up, level, and down to 0 over the last fifth.

    Level for most of the way, the end of a run can still be moved (Haegele et al., NeurIPS 2024).
    """
    left = (settings.steps - step) / (0.2 * settings.steps)
    return min((step + 1) / settings.warmup, left, 1.0)


def _check_photographs(training: Sequence[Path], validation: Sequence[Path], side: int) -> None:
    if not training or not validation:
        raise InputError(
            f"{len(training)} photographs to train on and {len(validation)} to validate on; "
            "expected at least one of each"
        )
    for path in (*training, *validation):
        _check_size(path, read_image(path, channels=1), side)


def _check_size(path: Path, photograph: np.ndarray, side: int) -> None:
    height, width = photograph.shape
    if min(height, width) < side:
        raise InputError(
            f"{path}: {width}x{height} pixels, smaller than a view of {side}x{side}; remove it, or "
            "train with a smaller grid"
        )
