"""Students as one small file: ``python -m student.pack RUN FILE.safetensors``."""

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from ..console import user_errors
from ..errors import InputError
from ..networks.registry import checkpoint_path, load_checkpoint, save_checkpoint

__all__ = ["pack_student"]


def pack_student(
    models: Sequence[str | Path], path: str | Path, *, descriptor_dim: int | None = None
) -> None:
    """Write a student in float16, with its description in a JSON file beside it.

    Of several, such as the last epochs of one training, the mean of their weights (Izmailov et al.,
    Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018); the description is
    that of the last.

    Args:
        descriptor_dim: numbers of a local descriptor, fewer than the students'.

    Raises:
        InputError: students of different configurations, or that cannot be shortened.
        CheckpointError: as ``load_checkpoint``.
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
    if descriptor_dim is not None:
        student = student.shorten(descriptor_dim)
        del info["config"]  # of the longer ones
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, student, {**info, "packed": "float16"}, torch.float16)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--descriptor-dim",
    type=click.IntRange(1),
    help="Shorten local descriptors of a light student to so many numbers.",
)
@user_errors
def main(models: tuple[str, ...], output: Path, descriptor_dim: int | None) -> None:
    """Write MODELS, run folders or files of weights, or the mean of several, to OUTPUT."""
    pack_student(models, output, descriptor_dim=descriptor_dim)


if __name__ == "__main__":
    main()
