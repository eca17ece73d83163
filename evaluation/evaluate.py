"""Models and a dataset -> numbers and pictures, in two loops: extract and keep, then score."""

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
from pydantic_core import to_json

from ..config import Settings, load_settings, override
from ..console import progress
from ..errors import InputError
from ..files import write_atomically
from ..networks.base import Network
from ..networks.registry import load
from .datasets import DATASETS
from .datasets.base import Dataset
from .features import (
    FeatureFile,
    FeaturesOfOthers,
    Model,
    NetworkFeatures,
    as_written,
    file_name,
)
from .intervals import compare_models
from .matching import Matcher
from .report.page import render_page
from .report.tables import comparison_table, results_table
from .tasks import TASKS
from .tasks.base import Task

__all__ = ["evaluate"]


def evaluate(
    dataset: str | Dataset,
    models: Sequence[str] | Mapping[str, Network],
    output: str | Path,
    *,
    root: str | Path | None = None,
    protocol: str | None = None,
    num_keypoints: int | None = None,
    nms_radius: int | None = None,
    split: str | None = None,
    matcher: str | None = None,
    precision: str | None = None,
    compare: Sequence[tuple[str, str]] = (),
    against: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    overwrite: bool = False,
    command: str = "",
    show: Callable[[str], None] = lambda text: None,
    quiet: bool = True,
) -> Path:
    """Evaluate models on a dataset.

    Features are extracted once and kept in ``output/features/MODEL.h5``; those that are there
    already, of an interrupted evaluation or another protocol, are reused.

    Args:
        dataset: a registered name, or a dataset.
        models: names as ``networks.registry.load`` takes them, or ``features:FILE.h5``, a file in
            hloc's layout; or name -> network.
        output: the folder of the report, made where it is missing.
        root: the dataset's folder, where ``dataset`` is a name.
        protocol: the name of a task.
        num_keypoints, nms_radius, split, matcher, precision: rule over what a protocol is published
            with, and that over ``settings``, by default pipeline.toml.
        compare: pairs of models; which of their differences are real.
        against: a further model, whose features view 1 (or the queries) get, while view 0 (or the
            database) keeps each model's.
        weights: of teachers that name none, where they are not in their usual place.
        device: auto, cpu, cuda or cuda:N.
        overwrite: extract features again.
        command: that repeats it, for the report.
        show: called with the tables, before anything can go wrong with pictures.

    Returns:
        ``output``, with ``report.json``, ``table.md``, ``index.html`` and ``features/``.

    Raises:
        InputError, NotFoundError: an unknown name, a dataset that is not as expected, a model
            without what the task needs, or a file of features made with other settings.
    """
    if not models:
        raise InputError("no models: name at least one")
    settings, output = settings or load_settings(), Path(output)
    kind = DATASETS.find(dataset) if isinstance(dataset, str) else type(dataset)
    rules = _find_task(kind, protocol or kind.task or settings.evaluate.protocol)
    wanted = override(settings.evaluate, protocol=rules.name, num_keypoints=rules.num_keypoints)
    wanted = override(wanted, num_keypoints=num_keypoints, split=split, matcher=matcher)
    predict = override(settings.predict, nms_radius=rules.nms_radius)
    predict = override(predict, nms_radius=nms_radius, precision=precision)
    pairings = {model: (model, model) for model in models}
    if against:
        pairings |= {f"{model} against {against}": (model, against) for model in models}
    for name in (name for pair in compare for name in pair):
        if name not in pairings:
            raise InputError(f"--compare {name}: not among the models; name it with --model, too")
    task = rules(_open_dataset(kind, dataset, root, wanted.split), wanted)
    if wanted.matcher != task.matcher.name and not task.takes_matcher:
        fitting = [n for n in TASKS.names() if TASKS.find(n).takes_matcher]
        raise InputError(
            f"matcher {wanted.matcher}: the protocol {rules.name} matches in its own way; expected "
            f"{' or '.join(fitting)}"
        )
    task.matcher = Matcher(wanted.matcher, device)
    _check_writable(output)
    networks = models if isinstance(models, Mapping) else {}

    def open_model(name: str) -> Model:
        if name.startswith("features:") and name not in networks:
            return FeaturesOfOthers(Path(name.removeprefix("features:")), wanted.num_keypoints)
        if name in networks:
            network = networks[name]
        else:
            network = load(name, device=device, precision=predict.precision, weights=weights)
        return NetworkFeatures(network, predict, wanted.num_keypoints)

    names = dict.fromkeys(name for pair in pairings.values() for name in pair)
    opened, files = {name: open_model(name) for name in names}, {}
    for name, model in opened.items():
        # Files of others may have changed, and are soon copied.
        again = overwrite or isinstance(model, FeaturesOfOthers)
        path = output / "features" / file_name(name)
        files[name] = FeatureFile(path, {**model.settings, **task.view_size}, overwrite=again)
        with progress(f"extract {name}", len(task.dataset.images), quiet=quiet) as advance:
            files[name].extract(model, task.dataset.images, task.load_view, advance)
    sides = {row: (files[name0], files[name1]) for row, (name0, name1) in pairings.items()}
    scored = {}
    for row, pair in sides.items():
        with progress(f"score {row}", task.num_steps, quiet=quiet) as advance:
            try:
                scored[row] = task.score(pair, advance)
            except InputError as error:
                raise InputError(f"--model {row}: {error}") from error
    statistics = {row: task.statistics(found) for row, found in scored.items()}
    ranked = [column for column in task.columns if column.is_ranked]
    report = {
        "protocol": rules.name,
        "dataset": {"name": kind.name, "root": root and str(root), **task.dataset.size},
        "settings": {
            **wanted.model_dump(),
            **as_written(predict.model_dump()),
            **({**task.view_size, "longest_side": None} if task.shorter_side else {}),
        },
        "models": [{"model": name, "origin": model.origin} for name, model in opened.items()],
        "results": [
            {
                "model": row,
                "split": split,
                **task.facts(scored[row]),
                **numbers.values(),
                "intervals": numbers.intervals(),
            }
            for row, splits in statistics.items()
            for split, numbers in splits.items()
        ],
        "curves": {row: task.curves(found) for row, found in scored.items()},
        "comparisons": [
            compare_models((a, b), (statistics[a], statistics[b]), ranked) for a, b in compare
        ],
        "command": command,
        "software": {
            **{name: version(name) for name in ("hfnet-distill", "torch", "numpy", "poselib")},
            "opencv": cv2.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }
    splits = list(dict.fromkeys(result["split"] for result in report["results"]))
    show(_tables(report, task, splits[:1]))
    (output / "index.html").unlink(missing_ok=True)  # an earlier report's
    nested = {**report, "results": [_nest(result) for result in report["results"]]}
    # JSON has no nan: null says that there was nothing to measure.
    text = to_json(nested, indent=2, inf_nan_mode="null")
    write_atomically(output / "report.json", text + b"\n")
    write_atomically(output / "table.md", f"{_tables(report, task, splits)}\n".encode())
    with progress("draw", wanted.pictures * len(scored), quiet=quiet) as advance:
        drawings = task.draw(scored, sides, advance)
    write_atomically(output / "index.html", render_page(report, task, drawings).encode())
    return output


def _open_dataset(
    kind: type[Dataset], dataset: str | Dataset, root: str | Path | None, split: str
) -> Dataset:
    if split not in kind.SPLITS:
        raise InputError(
            f"split {split}: the dataset {kind.name} has no such split; expected "
            f"{' or '.join(kind.SPLITS)}"
        )
    if isinstance(dataset, Dataset):
        return dataset
    if root is None:
        raise InputError(f"dataset {dataset}: its folder is missing; name it with --root")
    return kind(root, split)


def _find_task(kind: type[Dataset], name: str) -> type[Task]:
    """The task of that name, if it can be asked of datasets of that kind."""
    rules = TASKS.find(name)
    if not issubclass(kind, rules.dataset_type):
        fitting = [n for n in TASKS.names() if issubclass(kind, TASKS.find(n).dataset_type)]
        raise InputError(
            f"protocol {name}: not for the dataset {kind.name}; expected {' or '.join(fitting)}"
        )
    return rules


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(
            f"--output {output}: cannot be written ({error.strerror}); name another folder"
        ) from error


def _nest(values: Mapping[str, float]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def _tables(report: dict, task: Task, splits: Sequence[str]) -> str:
    """Results and comparisons of some splits in Markdown."""
    results = (results_table(report["results"], task.columns, split) for split in splits)
    compared = (comparison_table(c, split) for c in report["comparisons"] for split in splits)
    return "\n\n".join([*results, *compared])
