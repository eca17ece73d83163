"""SiLK's self-supervision: a photograph seen twice, under homographies and light of our choice.

Gleize, Wang, Feiszli: SiLK: Simple Learned Keypoints, ICCV 2023. Which pixel of one view shows what
a pixel of the other shows is known; descriptors learn to find it, scores learn where they do.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import load_training, save_training
from ..console import deferred_interrupt
from ..data.augment import augment_photometric
from ..data.geometry import random_homography, resize_matrix
from ..data.images import read_image, view_through
from ..networks.silk import SiLK, SiLKConfig, save_silk
from .silk_loss import homography_correspondences, match_rates, pair_losses

__all__ = ["SiLKTraining", "ViewPair", "compare_views", "random_views", "train_silk"]


# What a resumed run need not repeat: its end may be moved, the rest changes no step.
MAY_CHANGE = {"steps", "block_size", "device", "checkpoint_minutes", "validate_every"}


@dataclass(frozen=True)
class SiLKTraining:
    """Settings of a training run.

    Attributes:
        network: widths of the network.
        grid: side of the square maps that are compared, in positions; the paper's is 146. The
            views are larger by the border that the network does not pad.
        steps: pairs of views, one a step; the paper takes 100 000.
        learning_rate: of Adam after ``warmup`` steps; it falls to 0 in the last fifth of them all.
        zoom: range of the side of the square of a photograph in which both views lie, in sides of
            a view.
        view_scale, rotation, perspective, tilt: see ``random_homography``.
        photometric: strength of photometric augmentation, 0 to 1.
        temperature: of the similarities of descriptors of unit length.
        block_size: rows of similarities in memory at a time.
        precision: float32, or bfloat16 for products and float32 for sums.
        device: as torch names it.
        checkpoint_minutes: between checkpoints to resume from.
        validate_every: steps between validations, each of which leaves usable weights, too.
        seed: of initial weights, order and views.
    """

    network: SiLKConfig = field(default_factory=SiLKConfig)
    grid: int = 64
    steps: int = 100_000
    learning_rate: float = 1e-3
    warmup: int = 500
    zoom: tuple[float, float] = (1.3, 2.2)
    view_scale: tuple[float, float] = (0.6, 0.9)
    rotation: float = 30.0
    perspective: float = 0.2
    tilt: float = 1.0
    photometric: float = 0.5
    temperature: float = 0.05
    block_size: int = 256
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
    """Train SiLK and leave ``silk.safetensors``, ``log.jsonl`` and what resuming needs in a folder.

    A step's photograph, views and learning rate follow from the seed and the step's number, so a
    resumed run takes the same steps as one that was never interrupted.

    Args:
        photographs: to train on.
        validation: to validate on; always the same pair of views of each.
        initial: the network to start from, of the widths in ``settings``.
        resume: go on with the run in ``output``, or start where there is none.
        advance: called with steps taken and a note about the loss.

    Raises:
        FileExistsError: ``output`` holds a run and ``resume`` was not asked for.
        ValueError: a photograph is too small, there are none, or the run to resume was started with
            other settings.
        RuntimeError: the loss or its gradient is not a number; checkpoints from before are kept.
    """
    _check_photographs(photographs, validation, settings.view_side)
    _open_run(output, settings, resume)
    torch.manual_seed(settings.seed)
    network = initial or SiLK(settings.network)
    network.to(settings.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    step, state = 0, output / "resume.safetensors"
    if resume and state.exists():
        step = load_training(state, {"network": network}, optimizer)["step"]
    saved, recent = time.monotonic(), []
    with _Journal(output) as journal, deferred_interrupt() as interrupted:
        for pair in _views_ahead(photographs, step, settings):
            rate = settings.learning_rate * _schedule(step, settings)
            optimizer.param_groups[0]["lr"] = rate
            loss, values = compare_views(network.train(), pair, settings)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 100.0)
            if not torch.isfinite(loss + norm):
                raise RuntimeError(
                    f"step {step}: the loss became {loss.item():g}, its gradient {norm:g}; the "
                    f"checkpoints in {output} are sound: train again with a lower learning_rate"
                )
            optimizer.step()
            step += 1
            recent.append(values)
            advance(1, f"loss {loss.item():.3f}")
            if step % 50 == 0:
                journal.write("train", step, recent, learning_rate=rate)
                recent = []
            if step % settings.validate_every == 0 or step == settings.steps:
                journal.write("validation", step, validate(network, validation, settings))
                save_silk(output / "silk.safetensors", network, {"step": step})
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60
            if due or interrupted() or step == settings.steps:
                _save(output, network, optimizer, step)
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt


def compare_views(
    network: SiLK, pair: ViewPair, settings: SiLKTraining
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a pair of views, a scalar, and by name what it is made of and what it means."""
    bfloat16 = settings.precision == "bfloat16"
    device = torch.device(settings.device)
    images = pair.images.to(device, memory_format=torch.channels_last)
    correspondences = pair.correspondences.to(device)[None]
    with torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext():
        output = network(images)
    # (2, D, h, w) lies in memory as (2, h, w, D): flattening the grid copies nothing.
    descriptors = output.descriptor_map.flatten(2).transpose(1, 2)
    logits = output.score_logits.flatten(1)
    losses = pair_losses(
        descriptors[:1],
        descriptors[1:],
        logits[:1],
        logits[1:],
        correspondences,
        temperature=settings.temperature,
        block_size=settings.block_size,
        bfloat16=bfloat16,
    )
    loss = (losses.descriptor + losses.keypoint).sum()
    with torch.no_grad():
        rates = match_rates(losses.matches[0], correspondences[0], logits[0])
        parts = {"descriptor": losses.descriptor[0], "keypoint": losses.keypoint[0]}
        return loss, {"loss": loss.detach(), **parts, **rates}


@torch.no_grad()
def validate(
    network: SiLK, photographs: Sequence[Path], settings: SiLKTraining
) -> list[dict[str, Tensor]]:
    """What ``compare_views`` says about one fixed pair of views of each photograph."""
    network.eval()
    return [
        compare_views(
            network, random_views(path, np.random.default_rng(index), settings), settings
        )[1]
        for index, path in enumerate(photographs)
    ]


def random_views(path: Path, rng: np.random.Generator, settings: SiLKTraining) -> ViewPair:
    """Two random views of a photograph, both somewhere in one random square of it.

    Raises:
        ValueError: the photograph is smaller than a view.
    """
    photograph = read_image(path, channels=1)
    side = settings.view_side
    _check_size(path, photograph, side)
    room = np.array(photograph.shape[::-1])
    square = min(room.min(), round(side * rng.uniform(*settings.zoom)))
    x, y = rng.integers(room - square + 1)
    crop = photograph[y : y + square, x : x + square]
    H_views_to_crop = [
        random_homography(
            rng,
            (square, square),
            scale=settings.view_scale,
            rotation=settings.rotation,
            perspective=settings.perspective,
            tilt=settings.tilt,
        )
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
    photographs: Sequence[Path], start: int, settings: SiLKTraining, ahead: int = 4
) -> Iterator[ViewPair]:
    """The pairs of steps from ``start`` on, some made in a thread while others are learned from."""

    def views(step: int) -> ViewPair:
        epoch, place = divmod(step, len(photographs))
        order = np.random.default_rng((settings.seed, 0, epoch)).permutation(len(photographs))
        rng = np.random.default_rng((settings.seed, 1, step))
        return random_views(photographs[order[place]], rng, settings)

    with ThreadPoolExecutor(1) as pool:
        made = [pool.submit(views, s) for s in range(start, min(start + ahead, settings.steps))]
        try:
            for step in range(start, settings.steps):
                if step + ahead < settings.steps:
                    made.append(pool.submit(views, step + ahead))
                yield made.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)


def _schedule(step: int, settings: SiLKTraining) -> float:
    """Learning rate as a share of its peak: up, level, and down to 0 over the last fifth.

    Level for most of the way, the end of a run can still be moved (Haegele et al., NeurIPS 2024).
    """
    left = (settings.steps - step) / (0.2 * settings.steps)
    return min((step + 1) / settings.warmup, left, 1.0)


def _check_photographs(training: Sequence[Path], validation: Sequence[Path], side: int) -> None:
    if not training or not validation:
        raise ValueError(
            f"{len(training)} photographs to train on and {len(validation)} to validate on; "
            "expected at least one of each"
        )
    for path in (*training, *validation):
        _check_size(path, read_image(path, channels=1), side)


def _check_size(path: Path, photograph: np.ndarray, side: int) -> None:
    height, width = photograph.shape
    if min(height, width) < side:
        raise ValueError(
            f"{path}: {width}x{height} pixels, smaller than a view of {side}x{side}; remove it, or "
            "train with a smaller grid"
        )


def _open_run(output: Path, settings: SiLKTraining, resume: bool) -> None:
    """Make the run's folder, or hold the settings of the one that is there against ours."""
    file = output / "run.json"
    ours = json.loads(json.dumps(asdict(settings)))
    if resume and file.exists():
        found = json.loads(file.read_text())
        bound = ours.keys() - MAY_CHANGE
        if different := [key for key in ours if key in bound and found.get(key) != ours[key]]:
            raise ValueError(
                f"{output}: cannot resume: {different[0]} is {ours[different[0]]}, the run there "
                f"was started with {found.get(different[0])}"
            )
    elif file.exists():
        raise FileExistsError(f"{output}: holds a run already; resume it or name another folder")
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ours, indent=2))


def _save(output: Path, network: SiLK, optimizer, step: int) -> None:
    """Everything that going on needs, in one file, and usable weights in another."""
    save_training(output / "resume.safetensors", {"network": network}, optimizer, {"step": step})
    save_silk(output / "silk.safetensors", network, {"step": step})


class _Journal:
    """One line of JSON for some steps or a validation: the means of what was compared."""

    def __init__(self, output: Path):
        self._file = open(output / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._since = time.monotonic()

    def write(self, kind: str, step: int, values: list[dict[str, Tensor]], **more: float) -> None:
        means = {name: torch.stack([v[name] for v in values]).mean().item() for name in values[0]}
        now = time.monotonic()
        means |= {**more, "pairs_per_s": len(values) / (now - self._since)}
        self._since = now
        rounded = {name: float(f"{value:.5g}") for name, value in means.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **rounded}) + "\n")
        self._file.flush()

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()
