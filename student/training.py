"""Stage 2: stores and photographs in, a run folder with a student out."""

import hashlib
import heapq
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from ..config import TrainSettings, load_settings
from ..console import deferred_interrupt, progress, say
from ..data.cells import grid_shape
from ..data.images import list_images, split_names
from ..data.stores.quantize import dequantize
from ..data.stores.store import RecordStore
from ..device import autocast, choose_device, choose_precision
from ..errors import CheckpointError, InputError
from ..networks.base import Student, StudentOutput
from ..networks.registry import (
    NETWORKS,
    STUDENTS,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from ..runs import RunFolder
from .averaging import WeightAverage, estimate_norms
from .device_views import cut_views
from .distributed import (
    any_process,
    average,
    average_gradients,
    join,
    rank,
    synchronize_norms,
    world_size,
)
from .loader import Batches, DistillationDataset, check_shared_memory, make_loader
from .losses import FixedWeights, UncertaintyWeights, active_losses, compute_losses
from .targets import Targets, choose_targets

__all__ = [
    "Learner",
    "batch_losses",
    "fit",
    "losses_to_learn",
    "make_student",
    "train",
    "validation_dataset",
]

MAY_CHANGE = {"device", "num_workers", "checkpoint_minutes"}
"""Settings that a resumed run may have otherwise: they change no number."""
MOST_VALIDATED = 1000
"""Photographs that are validated on, chosen by name: their mean loss is known to a thirtieth of the
spread of single ones, and millions more would take longer than the epoch."""
LONGEST_GRADIENT = 10.0
"""Gradients are shortened to this length; sound ones are shorter after the first steps."""


def train(
    stores: Sequence[str | Path],
    images: str | Path,
    output: str | Path,
    settings: TrainSettings | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train a student to say what the teachers in the stores said.

    Args:
        stores: paths or s3:// URLs: of local teachers, a global one beside them, or with ``init``
            in the settings that alone.
        images: the folder of the photographs that the stores were made from.
        output: the run folder to make: best.safetensors and last.safetensors with JSON beside
            them, and what ``hfnet_distill.runs`` keeps.
        settings: as [train] of pipeline.toml; None for those of ``load_settings()``.
        resume: go on with the run in ``output``, or start where there is none.

    Returns:
        ``output``, which ``hfnet_distill.load`` takes.

    Raises:
        DistillError: stores, photographs or settings that do not go together, or a loss that is no
            number.
        KeyboardInterrupt: it was asked to stop, and says what it kept.
    """
    settings = settings or load_settings().train
    active_losses(settings.loss_weights, set())  # a mistaken name is told before anything is made
    device = join(choose_device(settings.device))
    quiet = quiet or rank() > 0
    opened = [RecordStore.open(path) for path in stores]
    targets = choose_targets(opened, settings.detector_target, settings.descriptor_target)
    names = _common_names(opened, Path(images), quiet)
    training_names, validation_names = split_names(names, settings.validation)
    if len(training_names) < settings.batch_size:
        raise InputError(
            f"{len(training_names)} training photographs do not fill a batch of "
            f"{settings.batch_size}; lower --batch-size or bring more photographs"
        )
    torch.manual_seed(settings.seed)
    student, digest = make_student(targets, settings, quiet=quiet)
    if settings.detector_target == "keypoints" and not student.local_is_frozen:
        # Such a keypoint is shared by the four pixels around it: no one of them has all of it.
        student.rank_radius = max(student.rank_radius, 1)
    shown = settings.model_copy(update={"views": 1}) if student.local_is_frozen else settings
    training = DistillationDataset(images, training_names, targets, shown)
    validation = validation_dataset(training, validation_names)
    info = {
        "init": digest,
        "teachers": [_describe(store) for store in opened],
        "photographs": len(training_names),
        # Without what is new and left as it was, so that runs from before it can be resumed.
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
    }
    run = RunFolder(output, info, resume=resume, may_change=MAY_CHANGE, writes=rank() == 0)
    steps = len(training) // settings.batch_size * settings.epochs
    precision = choose_precision(settings.precision, device, training=True)
    say(
        f"train {student.name} on {len(training)} photographs, validate on {len(validation)}, "
        f"{steps} steps, {device.type}, {precision}",
        quiet=quiet,
    )
    with progress("train student", steps, done=run.steps_done, quiet=quiet) as advance:
        fit(student, training, validation, run, device, advance=advance)
    return Path(output)


def fit(
    student: Student,
    training: DistillationDataset,
    validation: DistillationDataset,
    run: RunFolder,
    device: torch.device,
    *,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> None:
    """The loop: batches in, the best and the last checkpoint in the run folder out.

    A step's batch, views, augmentation and learning rate follow from the seed and the step's
    number, so a resumed run takes the same steps as one that was never interrupted.

    Args:
        advance: called with steps taken and a note about the loss.

    Raises:
        TrainingError: the loss is nan or infinite.
        KeyboardInterrupt: asked to stop; the run can go on.
    """
    learner, settings = Learner(student, training, device), training.settings
    check_shared_memory(training, validation)
    state = run.load(learner.modules, learner.optimizer, {"step": 0, "best": math.inf})
    batches = Batches(
        len(training),
        settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
        start=state["step"],
        part=(rank(), world_size()),
    )
    saved = time.monotonic()
    losses: list[Tensor] = []  # of the steps that were not looked at yet
    note = ""
    with run.journal(state["step"]) as journal, deferred_interrupt() as interrupted:
        loader = make_loader(training, batches, settings.num_workers)
        for batch in journal.timed(loader, lambda of: of["H_view_to_photo"].shape[:2].numel()):
            done = state["step"] / batches.stop
            rate = settings.learning_rate * one_cycle(done, settings.warmup)
            state["step"] += 1
            values = learner.step(batch, state["step"], rate)
            losses.append(values["loss"])
            stop = any_process(interrupted())
            epoch, within = divmod(state["step"], batches.steps_per_epoch)
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60
            keep = within == 0 or due or stop
            if keep or state["step"] % journal.EVERY == 0:  # a look waits for a GPU
                note = f"loss {run.check_losses(state['step'], losses):.3f}"
                losses.clear()
            journal.step(state["step"], values, rate)
            advance(1, note)
            if state["step"] == batches.stop and settings.norm_batches:
                # Of a short training no more than it had.
                following = batches.following(min(settings.norm_batches, batches.stop))
                learner.estimate_norms(make_loader(training, following, settings.num_workers))
            if within == 0 and run.writes:
                scores = validate(learner.result, validation, device)
                journal.write("validation", state["step"], {"epoch": epoch, **scores})
                _keep(learner.result, run, state, {"epoch": epoch, "validation": scores})
            if keep:
                run.save(learner.modules, learner.optimizer, state)
                saved = time.monotonic()
            if stop:
                raise run.interrupted(state["step"])


def _keep(student: Student, run: RunFolder, state: dict, about: dict) -> None:
    """Write the last checkpoint and, if none before was better, the best."""
    info = {**run.info, "step": state["step"], **about}
    save_checkpoint(run.path / "last.safetensors", student, info)
    loss = about["validation"]["loss"]
    if loss <= state["best"]:  # equal where there is nothing to validate on
        state["best"] = loss
        save_checkpoint(run.path / "best.safetensors", student, info)


class Learner:
    """A student and what its training changes with it.

    Args:
        dataset: of the batches that it learns from.

    Attributes:
        names: of the losses.
        modules: by name, those with weights that resuming needs; so does ``optimizer``.
        result: the student that is kept, which is the average where there is one.

    Raises:
        InputError: no loss that has a weight fits what there is to learn.
    """

    def __init__(self, student: Student, dataset: DistillationDataset, device: torch.device):
        self.student, self.dataset, self.device = student, dataset, device
        settings = dataset.settings
        self.names = losses_to_learn(student, dataset)
        if not self.names:
            raise InputError("loss_weights: no loss that has a weight above 0 fits what is learned")
        if settings.weighting == "uncertainty":
            self.weighting = UncertaintyWeights(self.names).to(device)
        else:
            self.weighting = FixedWeights(settings.loss_weights)
        student.to(device, memory_format=torch.channels_last)
        synchronize_norms(student)
        self.average = WeightAverage(student, settings.ema) if settings.ema else None
        self.modules = {"student": student, "weighting": self.weighting}
        if self.average:
            self.modules["average"] = self.average.student
        self.result = self.average.student if self.average else student
        # Weights of convolutions and projections decay, and no others.
        decayed = [p for p in student.parameters() if p.ndim > 1]
        plain = [p for p in student.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": [*plain, *self.weighting.parameters()], "weight_decay": 0.0},
            ],
            fused=device.type == "cuda",  # which alone reads no number of the GPU
        )
        if settings.compile:
            student.compile()

    def step(self, batch: dict[str, Tensor], number: int, rate: float) -> dict[str, Tensor]:
        """Learn from a batch; nothing here waits for a GPU.

        Args:
            number: of the step, the first being 1.
            rate: of learning.

        Returns:
            ``loss`` and what it is made of, scalars on the device, means over all processes.

        Raises:
            InputError: ``torch.compile`` fails.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        try:
            losses = batch_losses(
                self.student.train(), batch, self.dataset, self.names, self.device
            )
            loss = self.weighting(losses)
            loss.backward()
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = next(line for line in str(error).splitlines() if line.strip())
            raise InputError(
                f"compile = true in [train]: torch.compile does not work here ({reason}); install "
                "a C++ compiler, and Triton for a GPU, or set compile = false"
            ) from error
        average_gradients(self.student, self.weighting)
        nn.utils.clip_grad_norm_(self.student.parameters(), LONGEST_GRADIENT)
        self.optimizer.step()
        if self.average:
            self.average.update(self.student, number)
        values = average(torch.stack([loss, *losses.values()]).detach())
        return dict(zip(("loss", *losses), values.unbind(), strict=True))

    def estimate_norms(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Estimate the result's batch-normalization statistics from batches of the dataset."""
        images = (_on_device(batch, self.dataset, self.device)[1] for batch in batches)
        estimate_norms(self.result, images, _autocast(self.dataset, self.device))


def batch_losses(
    student: Student,
    batch: dict[str, Tensor],
    dataset: DistillationDataset,
    names: Sequence[str],
    device: torch.device,
) -> dict[str, Tensor]:
    """The losses of those names of a batch of a dataset, each a scalar float32 mean."""
    batch, images = _on_device(batch, dataset, device)
    H_view_to_photo = batch.pop("H_view_to_photo")
    with _autocast(dataset, device):
        if student.local_is_frozen:
            said = StudentOutput(None, None, student.describe_globally(images))
        else:
            said = student(images)
    shape = grid_shape(images.shape[2:])
    lesson = dataset.targets.lesson(
        dequantize(batch), H_view_to_photo, shape, partial=dataset.partial
    )
    return compute_losses(names, said, lesson)


def _autocast(dataset: DistillationDataset, device: torch.device) -> torch.autocast:
    return autocast(device, choose_precision(dataset.settings.precision, device, training=True))


def _on_device(
    batch: dict[str, Tensor], dataset: DistillationDataset, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """A batch on the device without its images, and all views (B * V, 1, H, W) in [0, 1]."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    if "image" in batch:
        images = batch.pop("image").float().flatten(0, 1)
    else:
        images = cut_views(batch, dataset.crop)
    return batch, (images / 255).contiguous(memory_format=torch.channels_last)


def validation_dataset(training: DistillationDataset, names: list[str]) -> DistillationDataset:
    """Photographs whole and unchanged, as the teacher saw them; of many names ``MOST_VALIDATED``.

    A batch has as many pixels as a process's part of a step, and no more photographs: their
    teachers' maps are as large as pictures.
    """
    if len(names) > MOST_VALIDATED:
        names = heapq.nsmallest(
            MOST_VALIDATED, names, key=lambda name: hashlib.sha256(name.encode()).digest()
        )
    settings = training.settings
    share = settings.views * math.prod(training.crop) / math.prod(training.size)
    batch_size = max(1, int(settings.batch_size // world_size() * min(1, share)))
    whole = {"crop": None, "views": 1, "views_on": "loader", "warp": 0.0, "photometric": 0.0}
    whole |= {"full_resolution": False, "seed": 0, "batch_size": batch_size}
    return DistillationDataset(
        training.folder, names, training.targets, settings.model_copy(update=whole)
    )


@torch.no_grad()
def validate(
    student: Student, dataset: DistillationDataset, device: torch.device
) -> dict[str, float]:
    """Mean losses over the photographs of ``validation_dataset``; ``loss`` is their sum.

    Their plain sum chooses the best checkpoint: learned weights drift as training goes on.
    """
    if not len(dataset):
        return {"loss": 0.0}
    student.eval()
    names = losses_to_learn(student, dataset)
    rows = [(0, row) for row in range(len(dataset))]
    batches = BatchSampler(rows, dataset.settings.batch_size, drop_last=False)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    for batch in make_loader(dataset, batches, dataset.settings.num_workers):
        losses = batch_losses(student, batch, dataset, names, device)
        sums += torch.stack([*losses.values()]) * len(batch["H_view_to_photo"])
    means = dict(zip(names, (sums / len(dataset)).tolist(), strict=True))
    return {**means, "loss": sum(means.values())}


def one_cycle(progress: float, warmup: float) -> float:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine down to zero.

    Smith and Topin: Super-Convergence, 2017, with the schedule's last part as its second.
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def losses_to_learn(student: Student, dataset: DistillationDataset) -> list[str]:
    """The losses with a weight above 0 that a dataset's batches have everything for."""
    has = {"global"} if dataset.targets.global_ else set()
    if dataset.targets.detector and not student.local_is_frozen:
        has |= {"local", "pair"} if dataset.settings.views == 2 else {"local"}
    return active_losses(dataset.settings.loss_weights, has)


def _common_names(stores: list[RecordStore], folder: Path, quiet: bool) -> list[str]:
    """The images that every store and the folder hold, in the first store's order."""
    present = set(list_images(folder))
    common = present.intersection(*(store.names for store in stores))
    names = [name for name in stores[0].names if name in common]
    if not names:
        raise InputError(
            f"{folder}: holds none of the {len(stores[0])} photographs that all stores were made "
            f"from, such as {stores[0].names[0]}; name that folder with --images"
        )
    for place, held in [*((s.path, len(s)) for s in stores), (folder, len(present))]:
        if held > len(names):
            say(f"{place}: {held - len(names)} of {held} photographs are not in all", quiet=quiet)
    return names


def make_student(
    targets: Targets, settings: TrainSettings, *, quiet: bool = True
) -> tuple[Student, str]:
    """The student that the targets call for, and the SHA-256 of what it starts from, if anything.

    Without local targets it learns the global branch alone; the rest is that of ``init``.
    """
    local, whole = targets.descriptor, targets.global_
    teacher = whole.teacher if whole else None
    other = None
    if settings.init not in ("auto", "none"):
        other = load_checkpoint(checkpoint_path(settings.init))[0]
    if local:
        network = NETWORKS.find(settings.network)
        values = settings.networks.get(settings.network, {})
        config = network.configure(values, local.descriptor_dim, teacher)
    elif other:
        network = type(other)
        config = network.extend(other.config, settings.networks.get(network.name, {}), teacher)
    else:
        raise InputError(
            f"{targets.stores[0].path}: holds only global descriptors; give a store of a local "
            "teacher beside it, or with --init the student whose local part stays"
        )
    student = network(config)
    words = whole.store.parameters if teacher and teacher.words else None
    if words:
        student.adopt_vlad(words)
    if other:
        student.start_from(other.resized(student.config))
    elif settings.init == "auto":
        other = _start_from_packaged(student, local.store.schema.teacher, quiet)
    if words and settings.init in ("auto", "default", *STUDENTS):
        student.adopt_vlad(words)  # nobody has the VLAD that a packaged student learned from
    if not local:
        student.freeze_local()
    return student, other.weights if other else ""


def _start_from_packaged(student: Student, teacher: str, quiet: bool) -> Student | None:
    """Start from the first packaged student that fits, one of its teacher before others."""
    rows = [(name, *load_checkpoint(checkpoint_path(name))) for name in STUDENTS]
    rows.sort(key=lambda row: teacher not in [t["teacher"] for t in row[2].get("teachers", [])])
    for name, other, _ in rows:
        try:
            student.start_from(other)
        except CheckpointError:
            continue
        say(
            f"starts from the packaged student {name}, and inherits what its model card says of "
            "licenses; --init none starts from nothing",
            quiet=quiet,
        )
        return other
    return None


def _describe(store: RecordStore) -> dict:
    schema = store.schema
    return {
        "teacher": schema.teacher,
        "weights": schema.weights,
        "image_size": list(schema.image_size),
        "fields": sorted(schema.fields),
        "records": len(store),
    }
