"""SIGKILL at random moments: does the same command then end as if nothing had happened?

    python benchmarks/kills.py --json kills.json
    python benchmarks/kills.py --kills 5 --only export-zarr

Each command runs once undisturbed, over made-up photographs. Then it is killed: itself, or one of
the processes that it started, after the first third of its time, in which Python imports. With even
odds it is started and killed once more, else run to its end. What it leaves must equal what the
undisturbed run left, with nothing beside it, and no message on the way may be a traceback; where a
child is killed, those of joblib's and torch's own cleaning may stand beside the sentence.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import cv2
import h5py
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

LIMIT = 120
"""Seconds after which a command hangs."""
SMALL = {
    'shard_size = "auto"': "shard_size = 2",
    "grid = 64": "grid = 16",
    'network = "vgg4"': 'network = "micro"',
    "width = 0.75": "width = 0.25",
    "global_rank = 128": "global_rank = 4",
    "checkpoint_minutes = 5": "checkpoint_minutes = 0",
    "validate_every = 1000": "validate_every = 10",
    "warmup = 500": "warmup = 5",
}
"""What differs from the pipeline.toml that is shipped."""


@dataclass(frozen=True)
class Inputs:
    """What the commands read."""

    photographs: Path
    config: Path
    store: Path
    student: Path


@dataclass(frozen=True)
class Case:
    """A command to be killed.

    Attributes:
        command: its name.
        flags: Inputs -> its arguments.
        output: the flag that names what it makes, and a name for that.
        content: what it made -> something to be compared with ``==``.
    """

    command: str
    flags: Callable[[Inputs], list]
    output: tuple[str, str]
    content: Callable[[Path], dict]

    def arguments(self, inputs: Inputs, folder: Path) -> list[str]:
        flag, name = self.output
        return [*map(str, self.flags(inputs)), "--quiet", flag, str(folder / name)]


def _bytes(path: Path) -> dict:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def _weights(path: Path) -> dict:
    return {
        file.name: {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
        for file in sorted(path.glob("*.safetensors"))
    }


def _values(path: Path) -> dict:
    found = {}

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.shape, item.dtype.str, item[()].tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def _outputs(path: Path) -> dict:
    from hfnet_distill.networks.onnx import make_session

    session = make_session(path, threads=1)
    image = np.random.default_rng(0).random((1, 1, 96, 128), np.float32)
    return {str(i): a.tobytes() for i, a in enumerate(session.run(None, {"image": image}))}


def _export(*more: str) -> Case:
    def flags(inputs: Inputs) -> list:
        return [
            *("--model", "silk", "--images", inputs.photographs, "--config", inputs.config),
            *("--size", "64x48", "--device", "cpu", "--precision", "float32", *more),
        ]

    return Case("export-teacher", flags, ("--store", "store"), _bytes)


def _train_student(inputs: Inputs) -> list:
    return [
        *("--images", inputs.photographs, "--store", inputs.store, "--config", inputs.config),
        *("--epochs", 2, "--crop", "64x48", "--init", "none", "--resume", "--device", "cpu"),
        *("--precision", "float32"),
    ]


def _train_teacher(inputs: Inputs) -> list:
    return [
        *("--images", inputs.photographs, "--config", inputs.config, "--steps", 20),
        *("--resume", "--device", "cpu"),
    ]


def _extract(inputs: Inputs) -> list:
    return ["--images", inputs.photographs, "--model", inputs.student, "--device", "cpu"]


def _export_onnx(inputs: Inputs) -> list:
    return ["--model", inputs.student, "--profile", "maps", "--images", inputs.photographs]


CASES = {
    "export-zarr": _export("--format", "zarr"),
    "export-zarr-zstd": _export("--format", "zarr", "--compression", "zstd"),
    "export-hdf5": _export("--format", "hdf5"),
    "export-hdf5-zstd": _export("--format", "hdf5", "--compression", "zstd"),
    "export-workers": _export("--format", "zarr", "--workers", "2"),
    "train-student": Case("train-student", _train_student, ("--output", "run"), _weights),
    "train-teacher": Case("train-teacher", _train_teacher, ("--output", "run"), _weights),
    "extract-features": Case("extract-features", _extract, ("--output", "features.h5"), _values),
    "export-onnx": Case("export-onnx", _export_onnx, ("--output", "student.onnx"), _outputs),
}


@dataclass
class Outcome:
    """What became of one command.

    Attributes:
        seconds: that it takes undisturbed.
        killed: times that it was killed itself.
        child_killed: times that a process which it had started was killed.
        compared: ends that were compared with that of the undisturbed run.
        faults: what was wrong, one sentence each.
    """

    seconds: float = 0.0
    killed: int = 0
    child_killed: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)


class Torture:
    """One command and the folder where it is killed."""

    def __init__(self, case: Case, inputs: Inputs, scratch: Path, seed: str):
        self.case, self.inputs, self.scratch = case, inputs, scratch
        self.moments = random.Random(seed)
        self.log = scratch / "log"
        scratch.mkdir()

    def kill(self, kills: int) -> Outcome:
        """Kill the command so many times."""
        outcome = Outcome()
        whole = self.scratch / "whole"
        begun = time.monotonic()
        if fault := self.finish(whole):
            return Outcome(faults=[f"undisturbed: {fault}"])
        outcome.seconds = seconds = time.monotonic() - begun
        wanted = self.case.content(whole / self.case.output[1])
        while outcome.killed + outcome.child_killed < kills:
            folder = self.scratch / str(outcome.compared)
            fault = None
            while not fault and outcome.killed + outcome.child_killed < kills:
                process = self.start(folder)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.moments.uniform(seconds / 3, seconds))
                    seconds *= 0.9  # it ended sooner than the undisturbed run
                fault = self.strike(process, outcome)
                if self.moments.random() < 0.5:
                    break
            fault = fault or self.finish(folder) or self.difference(folder, whole, wanted)
            outcome.compared += 1
            if fault:
                kill = outcome.killed + outcome.child_killed
                outcome.faults.append(f"after kill {kill}: {fault}")
            shutil.rmtree(folder)
        return outcome

    def start(self, folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        program = Path(sys.executable).with_name(self.case.command)
        arguments = self.case.arguments(self.inputs, folder)
        with open(self.log, "w") as log:
            return subprocess.Popen([program, *arguments], stdout=log, stderr=subprocess.STDOUT)

    def strike(self, process: subprocess.Popen, outcome: Outcome) -> str | None:
        """Kill the process or one of its children; what is wrong with how the process ends."""
        if process.poll() is not None:
            return self.complaint(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victim = self.moments.choice([process.pid, *map(int, children)])
        with contextlib.suppress(ProcessLookupError):  # a child that has just ended
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            outcome.killed += 1
            process.wait()
            return None
        outcome.child_killed += 1
        return self.complaint(process, may_fail=True)

    def finish(self, folder: Path) -> str | None:
        """Run the command to its end; what is wrong, if anything."""
        return self.complaint(self.start(folder))

    def complaint(self, process: subprocess.Popen, may_fail: bool = False) -> str | None:
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"hangs: {self.said()}"
        explained = any(line.startswith("Error: ") for line in self.said().splitlines())
        if code and not (may_fail and code == 1 and explained):
            return f"ends with {code}: {self.said()}"
        return None if may_fail or "Traceback" not in self.said() else f"says {self.said()}"

    def said(self) -> str:
        return self.log.read_text().strip()

    def difference(self, folder: Path, whole: Path, wanted: dict) -> str | None:
        left, expected = ({p.name for p in place.rglob("*.partial")} for place in (folder, whole))
        left |= {path.name for path in folder.iterdir()}
        expected |= {path.name for path in whole.iterdir()}
        if left != expected:
            return f"left behind: {', '.join(sorted(left - expected))}"
        found = self.case.content(folder / self.case.output[1])
        names = sorted(found.keys() | wanted.keys())
        other = [name for name in names if found.get(name) != wanted.get(name)]
        return f"differs in {', '.join(other[:5])}" if other else None


def prepare(folder: Path) -> Inputs:
    """Photographs, a store of some teacher and a student of random weights."""
    from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
    from hfnet_distill.networks.registry import save_checkpoint

    inputs = Inputs(*(folder / name for name in ("photos", "small.toml", "store", "student")))
    inputs.photographs.mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):
        coarse = rng.integers(0, 255, (12, 16)).astype(np.uint8)
        image = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(inputs.photographs / f"{number:02d}.png"), image)
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    for shipped, small in SMALL.items():
        text = text.replace(shipped, small)
    inputs.config.write_text(text)
    torch.manual_seed(0)
    student = HFNet(HFNetConfig(width=0.25, descriptor_dim=16))
    with torch.no_grad():
        student.detector_head[1].weight *= 30
    inputs.student.mkdir()
    save_checkpoint(inputs.student / "best.safetensors", student, {})
    return inputs


@click.command(context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(1), default=20, help="Of each command.")
@click.option("--only", type=click.Choice(CASES), multiple=True, help="These commands alone.")
@click.option("--jobs", type=click.IntRange(1), default=2, help="Commands tortured at once.")
@click.option("--seed", default=0)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
def main(kills: int, only: tuple[str, ...], jobs: int, seed: int, output: Path | None) -> None:
    """Kill commands and compare what they leave; takes a quarter of an hour on two cores."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = only or tuple(CASES)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        folder = Path(temporary)
        inputs = prepare(folder)

        def torture(name: str) -> Outcome:
            scratch = folder / f"of {name}"
            return Torture(CASES[name], inputs, scratch, f"{seed} {name}").kill(kills)

        if "train-student" in names:
            made = Torture(CASES["export-zarr"], inputs, folder / "made", "")
            if fault := made.finish(folder / "made" / "by"):
                raise click.ClickException(fault)
            (folder / "made" / "by" / "store").rename(inputs.store)
        outcomes = dict(zip(names, pool.map(torture, names), strict=True))
    table = Table("command", "undisturbed", "killed", "a child killed", "compared", "faults")
    for name, found in outcomes.items():
        numbers = (found.killed, found.child_killed, found.compared, len(found.faults))
        table.add_row(name, f"{found.seconds:.1f} s", *map(str, numbers))
    Console().print(table)
    for name, found in outcomes.items():
        for fault in found.faults:
            click.echo(f"{name}, {fault}")
    if output is not None:
        results = {name: asdict(found) for name, found in outcomes.items()}
        output.write_text(json.dumps(results, indent=2))
    if any(found.faults for found in outcomes.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
