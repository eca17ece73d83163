"""The training loop: batches in, checkpoints out."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ..checkpoints import load_training, read_description, save_training
from ..config import TrainSettings
from ..console import deferred_interrupt
from ..data.stores.quantize import dequantise
from ..device import choose_precision
from ..networks.base import StudentOutput
from ..networks.hfnet import HFNet
from ..networks.registry import save_checkpoint
from .distributed import average, average_gradients, rank, synchronise_norms, world_size
from .loader import Batches, DistillationDataset, make_loader
from .losses import UncertaintyWeights, correspondence_loss, localization_loss, weighted_mean
from .targets import Targets
from .views import cell_peaks

__all__ = ["NotANumberError", "RunFolder", "train"]

COMPARED = 512
"""Cells of a view whose descriptors are told from each other."""


class NotANumberError(RuntimeError):
    """The loss stopped being a number; checkpoints written before are sound."""


class RunFolder:
    """The folder of one run: what it was made with, its checkpoints and its log.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` was not asked for.
        ValueError: the run to resume was started with other data or settings.
    """

    def __init__(self, path: Path, info: dict, *, resume: bool):
        self.path, self.info = path, info
        self.resume_file = path / "resume.safetensors"
        if self.resume_file.exists() or (path / "last.safetensors").exists():
            if not resume:
                raise FileExistsError(
                    f"{path}: holds a run already; go on with --resume or choose another --output"
                )
            found = json.loads((path / "run.json").read_text())
            if different := [key for key in info if found.get(key) != info[key]]:
                raise ValueError(
                    f"{path}: the run was started with other {' and '.join(different)} (see "
                    "run.json there); repeat them, or choose another --output"
                )
        if rank() == 0:
            path.mkdir(parents=True, exist_ok=True)
            (path / "run.json").write_text(json.dumps(info, indent=2))

    @property
    def steps_done(self) -> int:
        """The step that training goes on from."""
        return read_description(self.resume_file)["step"] if self.resume_file.exists() else 0


def train(
    student: HFNet,
    training: DistillationDataset,
    validation: DistillationDataset,
    run: RunFolder,
    settings: TrainSettings,
    device: torch.device,
    *,
    advance: Callable[[int, str], None],
) -> None:
    """Train a student and leave its best and last checkpoints in the run folder.

    A step's batch, crops, augmentation and learning rate follow from the seed and the step's
    number, so a resumed run takes the same steps as one that was never interrupted.

    Args:
        advance: called with steps taken and a note about the loss.

    Raises:
        NotANumberError: the loss is nan or infinite.
    """
    weighting = make_weighting(settings, student).to(device)
    student.to(device, memory_format=torch.channels_last)
    synchronise_norms(student)
    modules = {"student": student, "weighting": weighting}
    optimizer = torch.optim.AdamW(parameter_groups(student, weighting, settings))
    state = {"step": 0, "best": math.inf}
    if run.resume_file.exists():
        state = load_training(run.resume_file, modules, optimizer)
    batches = Batches(
        len(training),
        settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
        start=state["step"],
        part=(rank(), world_size()),
    )
    total = batches.steps_per_epoch * settings.epochs
    saved = time.monotonic()
    first = rank() == 0
    journal_path = run.path if first else None
    with Journal(journal_path, state["step"]) as journal, deferred_interrupt() as interrupted:
        for batch in journal.timed(make_loader(training, batches, settings.num_workers)):
            rate = settings.learning_rate * one_cycle(state["step"] / total, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = compute_losses(student.train(), batch, training.targets, settings, device)
            loss = weighting(losses)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(student, weighting)
            # Of all processes, so that they agree on what to log and when to stop.
            stop = torch.tensor(float(interrupted()), device=device)
            loss, stop, *values = average(torch.stack([loss, stop, *losses.values()]).detach())
            if not torch.isfinite(loss):
                raise NotANumberError(
                    f"the loss became {loss.item()} at step {state['step']}; the checkpoints in "
                    f"{run.path} are sound; train again with a lower learning_rate"
                )
            nn.utils.clip_grad_norm_(student.parameters(), 10.0)
            optimizer.step()
            state["step"] += 1
            journal.step(state["step"], loss, dict(zip(losses, values, strict=True)), rate)
            advance(1, f"loss {loss.item():.3f}")
            epoch, within = divmod(state["step"], batches.steps_per_epoch)
            if within == 0 and first:
                scores = validate(student, validation, settings, device)
                journal.epoch(epoch, state["step"], scores)
                keep(student, run, state, epoch, scores)
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60
            if (within == 0 or due or stop) and first:
                save_training(run.resume_file, modules, optimizer, state)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt


def keep(student: HFNet, run: RunFolder, state: dict, epoch: int, scores: dict) -> None:
    """Write the last checkpoint and, if none before was better, the best."""
    info = {**run.info, "step": state["step"], "epoch": epoch, "validation": scores}
    save_checkpoint(run.path / "last.safetensors", student, info)
    if scores["loss"] <= state["best"]:  # equal where there is nothing to validate on
        state["best"] = scores["loss"]
        save_checkpoint(run.path / "best.safetensors", student, info)


def compute_losses(
    student: HFNet,
    batch: dict[str, Tensor],
    targets: list[Targets],
    settings: TrainSettings,
    device: torch.device,
) -> dict[str, Tensor]:
    """The losses of a batch by name, each a scalar float32 mean over its views."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    images, H_view_to_photo = batch.pop("image").float() / 255, batch.pop("H_view_to_photo")
    images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with _autocast(settings, device):
        if student.local_is_frozen:
            output = StudentOutput(None, None, student.describe_globally(images))
        else:
            output = student(images)
    fields, losses = dequantise(batch), {}
    for target in targets:
        losses |= target.losses(output, fields, H_view_to_photo)
    if H_view_to_photo.shape[1] == 2 and not student.local_is_frozen:
        losses |= _losses_between_views(output, H_view_to_photo)
    return {name: loss.mean() for name, loss in losses.items()}


def _losses_between_views(output: StudentOutput, H_view_to_photo: Tensor) -> dict[str, Tensor]:
    """Losses (B,) by name; descriptors are those at the likeliest pixels of the likeliest cells."""
    H_0to1 = torch.linalg.inv(H_view_to_photo[:, 1]) @ H_view_to_photo[:, 0]
    maps, score_logits = (
        tensor.unflatten(0, (-1, 2)).unbind(1)
        for tensor in (output.descriptor_map, output.score_logits)
    )
    cells = score_logits[0].detach()
    likely = 1 - cells.softmax(1)[:, 64].flatten(1)
    likely, chosen = likely.topk(min(COMPARED, likely.shape[1]))
    peaks = cell_peaks(cells).gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return {
        "correspondence": correspondence_loss(maps, peaks, likely, H_0to1),
        "localization": localization_loss(score_logits, H_0to1),
    }


@torch.no_grad()
def validate(
    student: HFNet, dataset: DistillationDataset, settings: TrainSettings, device
) -> dict[str, float]:
    """Mean losses over the validation photographs, whole and not augmented; ``loss`` is their sum.

    Their plain sum chooses the best checkpoint: learned weights drift as training goes on.
    """
    student.eval()
    sums: dict[str, float] = {}
    keys = [[(0, index)] for index in range(len(dataset))]
    for batch in make_loader(dataset, keys, settings.num_workers):
        for name, loss in compute_losses(student, batch, dataset.targets, settings, device).items():
            sums[name] = sums.get(name, 0.0) + loss.item() / len(dataset)
    return {**sums, "loss": sum(sums.values())}


def one_cycle(progress: float, warmup: float) -> float:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine down to zero.

    Smith and Topin: Super-Convergence, 2017, with the schedule's last part as its second.
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _autocast(settings: TrainSettings, device: torch.device):
    if choose_precision(settings.precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def make_weighting(settings: TrainSettings, student: HFNet) -> nn.Module:
    names = ["global"] if student.config.global_dim else []
    names += [] if student.local_is_frozen else ["descriptor", "detector"]
    if settings.views == 2 and not student.local_is_frozen:
        names += ["correspondence", "localization"]
    if settings.loss_weights == "uncertainty":
        return UncertaintyWeights(names)
    return FixedWeights({name: getattr(settings, f"{name}_weight") for name in names})


class FixedWeights(nn.Module):
    """The losses' weighted mean, with weights from the settings."""

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = weights

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Losses by name -> their weighted mean."""
        return weighted_mean(losses, self.weights)


def parameter_groups(student: HFNet, weighting: nn.Module, settings: TrainSettings) -> list[dict]:
    """Weight decay for weights of convolutions and projections only."""
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    rate = {"lr": settings.learning_rate}
    return [
        {"params": decayed, "weight_decay": settings.weight_decay, **rate},
        {"params": [*plain, *weighting.parameters()], "weight_decay": 0.0, **rate},
    ]


class Journal:
    """What a run writes down: JSON lines, one for 20 steps or an epoch, and TensorBoard's curves.

    Nothing where ``output`` is None. ``wait`` is the share of the time since the line before that
    the loop waited for a batch.
    """

    EVERY = 20

    def __init__(self, output: Path | None, start: int):
        self._file = self._board = None
        if output is not None:
            self._file = open(output / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=start)
        self._since, self._waited, self._images = time.monotonic(), 0.0, 0

    def timed(self, loader):
        """The loader's batches, noting how long each was waited for."""
        batches = iter(loader)
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            self._images += batch["image"].shape[:2].numel()
            yield batch

    def step(self, step: int, loss: Tensor, losses: dict[str, Tensor], rate: float) -> None:
        """Note a step."""
        if step % self.EVERY:
            return
        seconds = time.monotonic() - self._since
        self._write(
            "train",
            step,
            {
                "loss": loss.item(),
                **{name: value.item() for name, value in losses.items()},
                "learning_rate": rate,
                "images_per_s": self._images / seconds,
                "wait": self._waited / seconds,
            },
        )
        self._since, self._waited, self._images = time.monotonic(), 0.0, 0

    def epoch(self, epoch: int, step: int, scores: dict[str, float]) -> None:
        """Note the validation after an epoch."""
        self._write("validation", step, {"epoch": epoch, **scores})
        self._since, self._waited, self._images = time.monotonic(), 0.0, 0

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        rounded = {name: float(f"{value:.5g}") for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **rounded}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()
