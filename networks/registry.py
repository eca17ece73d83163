"""name -> network: the one way from what a user names to something that sees images."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoints import read_tensors, write_tensors
from ..device import choose_device, choose_precision
from ..errors import CheckpointError, InputError
from ..files import file_digest, write_atomically
from ..registry import Registry
from .base import Network, Student

__all__ = [
    "NETWORKS",
    "PACKAGED",
    "STUDENTS",
    "checkpoint_path",
    "load",
    "load_checkpoint",
    "register",
    "save_checkpoint",
]

PACKAGED = Path(__file__).parent / "packaged"
"""The folder of the students and teachers that need no download, and of their model cards."""

STUDENTS = ("small", "nano", "hfnet-superpoint", "hfnet-silk")
"""The packaged students; each has a model card."""
DEFAULT = "small"
"""The one that ``default`` stands for."""

READING = ("refine_radius", "rank_radius")
"""Attributes of a network that its checkpoint keeps beside its configuration."""

NETWORKS: Registry[type[Network]] = Registry(
    "network",
    __package__,
    {name: name for name in ("superpoint", "aliked", "xfeat", "silk", "netvlad", "vlad")}
    | {name: name for name in ("hfnet", "light", "onnx")}
    | dict.fromkeys(("sift", "orb", "akaze", "harris", "fast"), "opencv"),
)
register = NETWORKS.register


def load(
    model: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    weights: str | Path | None = None,
) -> Network:
    """The network that a user names, ready to run.

    Args:
        model: ``default`` or another packaged student; a run folder or a checkpoint; a registered
            name, with weights or a variant of its own behind a colon (``silk:FILE``,
            ``vlad:STORE``); or ``DETECTOR+DESCRIBER``, as ``harris+superpoint``.
        device: auto, cpu, cuda or cuda:N.
        precision: float32, float16, bfloat16, or auto for the fastest.
        weights: of a network that has no packaged weights, where not in their usual place.

    Raises:
        InputError, NotFoundError: none of these, or weights that are missing or of another network.
    """
    device = choose_device(str(device))
    network = _open(str(model), None if weights is None else str(weights)).for_inference()
    network.precision = choose_precision(precision, device)
    return network.to(device, memory_format=torch.channels_last).requires_grad_(False)


def _open(model: str, weights: str | None) -> Network:
    name, _, source = model.partition(":")
    if name in NETWORKS.names():
        return NETWORKS.find(name).open(source or None, weights)
    detector, plus, describer = model.partition("+")
    if plus and detector in NETWORKS.names():
        from .opencv import DetectorWithDescriber

        return DetectorWithDescriber(_open(detector, None), _open(describer, weights))
    path = checkpoint_path(model)
    if not path.exists():
        names = ", ".join(["default", *STUDENTS, *NETWORKS.names()])
        raise InputError(
            f"model {model}: neither a run folder, a checkpoint nor one of {names}; also "
            "NAME:WEIGHTS, vlad:STORE and DETECTOR+DESCRIBER"
        )
    return load_checkpoint(path)[0]


def checkpoint_path(model: str | Path) -> Path:
    """The file that a packaged student's name, a run folder or a checkpoint stands for."""
    name = DEFAULT if str(model) == "default" else str(model)
    if name in STUDENTS and not Path(model).exists():
        return PACKAGED / f"{name}.safetensors"
    path = Path(model)
    return path / "best.safetensors" if path.is_dir() else path


def load_checkpoint(path: str | Path) -> tuple[Network, dict]:
    """A network that its checkpoint names and describes, on the CPU, and the description.

    Raises:
        CheckpointError: missing, damaged, of an unknown network, or with other tensors than its
            configuration needs.
    """
    tensors, description = read_tensors(path)
    try:
        config = description["config"]
        # Checkpoints did not name their network while there were but two kinds.
        name = description.get("network", "silk" if "lateral" in config else "hfnet")
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        cls = NETWORKS.find(name)
        network = cls(cls.Config(**values))
        network.load_state_dict(tensors)
        # How its score map is best read follows from the target that it was trained on.
        for key, radius in description.get("reading", {}).items():
            setattr(network, READING[READING.index(key)], int(radius))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        message = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: not the network that it describes: {message}") from error
    network.weights = file_digest(path)
    return network.eval(), description


def save_checkpoint(
    path: str | Path, network: Student, info: dict, dtype: torch.dtype = torch.float32
) -> None:
    """Write a network that ``load_checkpoint`` reads, and its description as JSON beside it."""
    description = {
        "network": network.name,
        "config": asdict(network.config),
        **info,
        "reading": {key: getattr(network, key) for key in READING},
    }
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    path = Path(path)
    write_tensors(path, tensors, description)
    write_atomically(path.with_suffix(".json"), json.dumps(description, indent=2).encode())
