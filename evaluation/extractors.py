"""Everything that can be scored: networks, and features from a file."""

from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import torch

from ..config import PredictSettings
from ..data.features import Features
from ..data.geometry import resize_points
from ..data.images import to_tensor
from ..data.keypoints import KeypointChoice
from ..networks.base import Network
from ..networks.registry import load
from .datasets import View

__all__ = ["Extractor", "FeatureFile", "make_extractor"]


class Extractor(Protocol):
    """What turns a view into features.

    Attributes:
        channels: 1 or 3, of the views it takes.
        origin: where its numbers come from, for the report: a digest, a version.
    """

    channels: int
    origin: str

    def extract(self, view: View, name: str) -> Features:
        """The features of a view in its pixels; ``name`` is the image's name in the dataset."""


def make_extractor(
    model: str,
    settings: PredictSettings,
    *,
    num_keypoints: int,
    device: torch.device,
    weights: str | None = None,
) -> Extractor:
    """The extractor that ``--model`` names: a network, or ``features:FILE.h5``.

    Args:
        model: see ``networks.registry.load``.
        weights: of teachers that do not name their own, where not in their usual place.
    """
    kind, _, rest = model.partition(":")
    if kind == "features":
        return FeatureFile(Path(rest), num_keypoints)
    network = load(model, device=device, precision=settings.precision, weights=weights)
    return NetworkExtractor(network, KeypointChoice.of(settings, num_keypoints))


class NetworkExtractor:
    """A network with one choice of keypoints."""

    def __init__(self, network: Network, choice: KeypointChoice):
        self.network, self.choice = network, choice
        self.channels, self.origin = network.channels, network.origin

    def extract(self, view: View, name: str) -> Features:
        image = to_tensor(view.image, self.channels)
        return self.network.features(image[None], self.choice)[0]


class FeatureFile:
    """Features that any extractor left in hloc's HDF5 layout.

    A group per image name, with ``keypoints`` (N, 2) in pixels of the image file, ``scores`` (N,)
    and ``descriptors`` (D, N); a ``global_descriptor`` (G,) is kept when there is one.
    """

    channels = 1

    def __init__(self, path: Path, num_keypoints: int):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such features file")
        self.path, self.num_keypoints = path, num_keypoints
        self.origin = str(path)

    def extract(self, view: View, name: str) -> Features:
        try:
            with h5py.File(self.path, "r") as file:
                if name not in file:
                    raise KeyError(
                        f"{self.path}: has no features of image {name}; expected a group of that "
                        "name, as hloc writes it"
                    )
                arrays = {key: file[name][key][()] for key in file[name]}
        except OSError as error:
            raise ValueError(f"{self.path}: not an HDF5 file ({error})") from error
        place = arrays.get("global_descriptor")
        place = None if place is None else place.astype(np.float32)
        if place is not None and "keypoints" not in arrays:
            return Features.without_keypoints(view.size, place)
        if missing := {"keypoints", "scores", "descriptors"} - arrays.keys():
            raise ValueError(f"{self.path}: image {name} has no {sorted(missing)[0]}")
        keypoints = resize_points(arrays["keypoints"], view.file_size, view.size)
        scores = arrays["scores"].astype(np.float32)
        descriptors = arrays["descriptors"].T
        if not len(keypoints) == len(scores) == len(descriptors):
            raise ValueError(
                f"{self.path}: image {name} has {len(keypoints)} keypoints, {len(scores)} scores "
                f"and descriptors of shape {arrays['descriptors'].shape}; expected (N, 2), (N,) "
                "and (D, N)"
            )
        best = np.argsort(-scores, kind="stable")[: self.num_keypoints]
        binary = descriptors.dtype in (np.uint8, np.bool_)
        return Features(
            view.size,
            keypoints[best],
            scores[best],
            np.ascontiguousarray(descriptors[best]).astype(bool if binary else np.float32),
            place,
        )
