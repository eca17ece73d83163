"""Students as one small file: ``python -m hfnet_distill.student.pack RUN FILE.safetensors``."""

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from ..console import StorePath, user_errors
from ..data.stores.store import RecordStore
from ..errors import InputError, StoreError
from ..networks.base import Student
from ..networks.registry import READING, checkpoint_path, load_checkpoint, save_checkpoint
from .targets import GlobalTarget

__all__ = ["pack_student"]


def pack_student(
    models: Sequence[str | Path],
    path: str | Path,
    *,
    descriptor_dim: int | None = None,
    vlad: str | Path | None = None,
) -> None:
    """Write a student in float16, with its description in a JSON file beside it.

    Of several, such as the last epochs of one training, the mean of their weights (Izmailov et al.,
    Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018); the description is
    that of the last.

    Args:
        descriptor_dim: numbers of a local descriptor, fewer than the students'.
        vlad: a store of ``export-teacher --model vlad`` over a store of the student's own local
            descriptors; its words and projection are the student's global branch.

    Raises:
        InputError: students of different configurations, or that cannot be shortened; a VLAD of
            other descriptors.
        CheckpointError, StoreError: as ``load_checkpoint`` and ``RecordStore.open``; a store of
            something else than a VLAD.
    """
    loaded = [load_checkpoint(checkpoint_path(model)) for model in models]
    configs = [student.config for student, _ in loaded]
    for model, config in zip(models, configs, strict=True):
        if config != configs[0]:
            raise InputError(f"{model}: is of {config}, {models[0]} of {configs[0]}")
    states = [student.state_dict() for student, _ in loaded]
    student, info = loaded[-1]
    student.load_state_dict(
        {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}
    )
    if vlad is not None:
        student = _with_vlad(student, RecordStore.open(vlad))
    if descriptor_dim is not None:
        student = student.shorten(descriptor_dim)
    info.pop("config")  # the student has its own
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, student, {**info, "packed": "float16"}, torch.float16)


def _with_vlad(student: Student, store: RecordStore) -> Student:
    """A copy whose global branch is a VLAD that was learned from its own local descriptors.

    Raises:
        InputError, StoreError: as ``pack_student``.
    """
    if "words" not in store.parameters:
        raise StoreError(
            f"{store.path}: holds no VLAD; make one with export-teacher --model vlad --from-store"
        )
    extended = type(student)(student.extend(student.config, {}, GlobalTarget(store).teacher))
    extended.start_from(student)
    extended.adopt_vlad(store.parameters)
    for key in READING:
        setattr(extended, key, getattr(student, key))
    return extended.eval()


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--descriptor-dim",
    type=click.IntRange(1),
    help="Shorten local descriptors of a light student to so many numbers.",
)
@click.option(
    "--vlad",
    type=StorePath(),
    help="Make the VLAD in this store, of the student's own descriptors, its global branch.",
)
@user_errors
def main(models: tuple[str, ...], output: Path, descriptor_dim: int | None, vlad) -> None:
    """Write MODELS, run folders or files of weights, or the mean of several, to OUTPUT."""
    pack_student(models, output, descriptor_dim=descriptor_dim, vlad=vlad)


if __name__ == "__main__":
    main()
