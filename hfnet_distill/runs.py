"""The run folder of a training: its settings, its journal, and what it needs to resume.

    run.json             settings and data; those of a resumed run must be the same
    resume.safetensors   what resuming needs: weights, the optimizer's state, the step
    log.jsonl            a line for some steps or a validation
    tensorboard/         the same as curves

The resulting weights lie beside them, under names that the training chooses.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checkpoints import read_description, read_tensors, write_tensors
from .config import first_difference
from .errors import AlreadyExistsError, InputError, TrainingError
from .files import write_atomically

__all__ = ["Journal", "RunFolder"]

Batch = TypeVar("Batch")


class RunFolder:
    """The folder of one training.

    Args:
        path: made if it does not exist.
        info: settings and data of the run, as JSON can store them.
        resume: continue the run in the folder, or start one if there is none.
        may_change: top-level keys of ``info["settings"]`` that may differ in a resumed run.
        writes: whether this process writes, if several train together.

    Raises:
        AlreadyExistsError: the folder holds a run and ``resume`` was not asked for.
        InputError: the run to resume was made with other data or settings; names the first.
    """

    def __init__(
        self,
        path: str | Path,
        info: Mapping[str, Any],
        *,
        resume: bool,
        may_change: Iterable[str] = (),
        writes: bool = True,
    ):
        self.path, self.writes = Path(path), writes
        self.info: dict[str, Any] = json.loads(json.dumps(info))
        self._resume_file = self.path / "resume.safetensors"
        made_with = self.path / "run.json"
        if self.holds_a_run and not resume:
            raise AlreadyExistsError(
                f"{path}: holds a run already; go on with --resume or choose another --output"
            )
        if self.holds_a_run and made_with.is_file():
            ours, theirs = (
                _without(made, may_change)
                for made in (self.info, json.loads(made_with.read_text("utf-8")))
            )
            if different := first_difference(ours, theirs):
                raise InputError(
                    f"{path}: cannot resume: {different}; repeat the command that started the run, "
                    "or choose another --output"
                )
        if writes:
            self.path.mkdir(parents=True, exist_ok=True)
            for partial in self.path.glob("*.partial"):  # that a killed run was writing
                partial.unlink()
            write_atomically(made_with, json.dumps(self.info, indent=2).encode())

    @property
    def holds_a_run(self) -> bool:
        """Whether there are weights here; a run broken off before its first ones left nothing."""
        return any(self.path.glob("*.safetensors"))

    @property
    def steps_done(self) -> int:
        """The step at which training continues."""
        return read_description(self._resume_file)["step"] if self._resume_file.exists() else 0

    def load(
        self, modules: dict[str, nn.Module], optimizer: Optimizer, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Restore modules and optimizer, and return the state.

        Args:
            state: of the first step, returned if there is nothing to resume.
        """
        if not self._resume_file.exists():
            return state
        tensors, state = read_tensors(self._resume_file)
        restored = optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                restored["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(restored)
        for prefix, module in modules.items():
            module.load_state_dict({key: tensors[f"{prefix}/{key}"] for key in module.state_dict()})
        return state

    def save(
        self, modules: dict[str, nn.Module], optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Write all that ``load`` needs; ``state`` is what JSON can store, and has the ``step``."""
        if not self.writes:
            return
        states = {prefix: module.state_dict() for prefix, module in modules.items()}
        for index, values in optimizer.state_dict()["state"].items():
            states[f"optimizer/{index}"] = values
        tensors = {f"{prefix}/{k}": v for prefix, of in states.items() for k, v in of.items()}
        write_tensors(self._resume_file, tensors, state)

    def journal(self, start: int) -> "Journal":
        """The journal of this run from step ``start`` on."""
        return Journal(self.path if self.writes else None, start)

    def interrupted(self, step: int) -> KeyboardInterrupt:
        """The exception for a run that was asked to stop, after ``save``."""
        return KeyboardInterrupt(
            f"interrupted after step {step}, all of it is kept in {self.path}; the same command "
            "with --resume goes on"
        )

    def check_losses(self, step: int, losses: Sequence[Tensor]) -> float:
        """The last of the losses, scalars, of the steps up to ``step``; waits for a GPU.

        Call it before anything is kept.

        Raises:
            TrainingError: one is not finite; says at which step.
        """
        values = torch.stack([*losses]).tolist()
        for number, value in enumerate(values, start=step - len(values)):
            if not math.isfinite(value):
                kept = (
                    "the checkpoints there are sound"
                    if self.holds_a_run
                    else "nothing was written yet"
                )
                raise TrainingError(
                    f"{self.path}: the loss became {value:g} at step {number}; {kept}: train again "
                    "with a lower learning_rate"
                )
        return values[-1]


class Journal:
    """Lines of JSON and TensorBoard curves; nothing if ``folder`` is None.

    Lines of steps after ``start`` are removed: an interrupted run takes these steps again.
    """

    EVERY = 20
    """Steps whose means a line holds."""

    def __init__(self, folder: Path | None, start: int):
        self._file = self._board = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            path = folder / "log.jsonl"
            _drop_lines_after(path, start)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._start_line()

    def timed(self, batches: Iterable[Batch], count: Callable[[Batch], int]) -> Iterator[Batch]:
        """Yield the batches and record the time spent waiting for each.

        Args:
            count: the number of images in a batch.
        """
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            self._images += count(batch)
            yield batch

    def step(self, step: int, values: Mapping[str, Tensor], rate: float) -> None:
        """Record the values of a step, detached scalars, and its learning rate."""
        # Sums are read only when a line is written, so that a GPU need not wait.
        self._sums |= {name: self._sums.get(name, 0) + value for name, value in values.items()}
        self._steps += 1
        if step % self.EVERY:
            return
        seconds = time.monotonic() - self._since
        line = {name: float(value) / self._steps for name, value in self._sums.items()}
        line |= {"learning_rate": rate, "images_per_s": self._images / seconds}
        self.write("train", step, {**line, "wait": self._waited / seconds})

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write a line with the values of a step, of a kind such as ``validation``."""
        self._start_line()
        if self._file is None:
            return
        rounded = {name: float(f"{value:.5g}") for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **rounded}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def _start_line(self) -> None:
        self._since, self._waited, self._images = time.monotonic(), 0.0, 0
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def _without(info: dict[str, Any], may_change: Iterable[str]) -> dict[str, Any]:
    settings = {k: v for k, v in info.get("settings", {}).items() if k not in set(may_change)}
    return {**info, "settings": settings}


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    # A line that a power cut left incomplete is of a step that will be taken again.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        write_atomically(path, "".join(kept).encode())
