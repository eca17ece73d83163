"""Official weights: where they come from, their licenses, and how they are verified."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import nn

from ..download import download
from ..errors import DownloadError, InputError, NotFoundError
from ..files import file_digest

__all__ = [
    "VARIABLE",
    "OfficialWeights",
    "find_weights",
    "fold_norm",
    "load_arrays",
    "load_strictly",
]

VARIABLE = "HFNET_DISTILL_WEIGHTS"


@dataclass(frozen=True)
class OfficialWeights:
    """One released file of weights.

    Attributes:
        model: its name in messages.
        file: its name; a file with the suffix ``.npz`` instead is also found.
        url: the official address.
        digest: of the file, as ``download`` takes it.
        license: the license in a few words.
    """

    model: str
    file: str
    url: str
    digest: str
    license: str


def find_weights(official: OfficialWeights, given: str | Path | None = None) -> Path:
    """Find a teacher's weights, downloading them to the user cache as a last resort.

    Searched in this order: ``given``, the folder named by ``HFNET_DISTILL_WEIGHTS``, the user
    cache, the official address. Only a download is compared with the published digest; a file of
    your own only has to load.

    Raises:
        NotFoundError: found nowhere; says where to get them and under which license.
    """
    if given is not None:
        if not Path(given).is_file():
            raise NotFoundError(f"{given}: no such weights file; {_where(official)}")
        return Path(given)
    cache = platformdirs.user_cache_path("hfnet-distill")
    folders = [Path(os.environ[VARIABLE])] if VARIABLE in os.environ else []
    for folder in [*folders, cache]:
        path = folder / official.file
        for found in (path, path.with_suffix(".npz")):
            if found.is_file():
                return found
    try:
        return download(official.url, cache / official.file, official.digest)
    except DownloadError as error:
        raise NotFoundError(
            f"no {official.model} weights here: {error}; {_where(official)}"
        ) from error


def _where(official: OfficialWeights) -> str:
    return (
        f"get {official.file} from {official.url} (license: {official.license}) and name it with "
        f"--weights or put it into the folder that {VARIABLE} names"
    )


def load_arrays(path: str | Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of an ``.npz``, a ``.pth`` state dict or a checkpoint around one; its SHA-256.

    Raises:
        NotFoundError: there is no such file.
        InputError: another kind of file. Nothing in it is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file of weights")
    digest = file_digest(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, digest
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not readable as weights without running code in it ({type(error).__name__}); "
            "expected a state_dict saved by torch, or an .npz of its tensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a state_dict of tensors")
    return state, digest


def load_strictly(
    module: nn.Module, state: dict[str, torch.Tensor], source: str | Path, *, assign: bool = False
) -> None:
    """Load a state dict whose names and shapes are exactly the module's.

    Args:
        assign: take over the tensors themselves rather than copy their values.

    Raises:
        InputError: names the first tensor that is missing, left over or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    complaint = None
    if odd := [name for name in wanted if found.get(name) != wanted[name]]:
        name = odd[0]
        complaint = f"tensor {name} is missing"
        if name in found:
            complaint = f"tensor {name} has shape {found[name]}, expected {wanted[name]}"
    elif extra := sorted(found.keys() - wanted.keys()):
        complaint = f"unknown tensor {extra[0]}"
    if complaint is not None:
        raise InputError(f"{source}: not weights of {type(module).__name__}: {complaint}")
    module.load_state_dict(state, assign=assign)


def fold_norm(
    state: dict[str, torch.Tensor], name: str, conv: str, norm: str
) -> dict[str, torch.Tensor]:
    """A convolution's tensors without bias, and its batch normalization's, as those of ``name``.

    Raises:
        KeyError: names a tensor that is missing.
    """
    mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    scale = (variance.double() + 1e-5).rsqrt() * state.get(f"{norm}.weight", 1)
    return {
        f"{name}.weight": (state[f"{conv}.weight"] * scale[:, None, None, None]).float(),
        f"{name}.bias": (state.get(f"{norm}.bias", 0) - mean * scale).float(),
    }
