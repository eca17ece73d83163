"""A model's features on a dataset: extracted once, kept in a file, read from there.

The file has hloc's layout (see ``data.features``), in float32. Keypoints are in pixels of the view
that the model was shown, whose size is ``image_size``, so that nothing is rounded.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..config import PredictSettings
from ..data.features import Features, open_hdf5, read_features, write_features
from ..data.geometry import resize_points
from ..data.images import (
    read_image,
    resize_longest,
    resize_shorter,
    stored_orientation,
    to_tensor,
)
from ..data.keypoints import KeypointChoice
from ..errors import InputError, NotFoundError
from ..networks.base import Network

__all__ = [
    "FeatureFile",
    "FeaturesOfOthers",
    "ImageFeatures",
    "Model",
    "NetworkFeatures",
    "View",
    "as_written",
    "file_name",
    "load_view",
]

AGAIN = "; add --overwrite to extract its features again"
CACHED = 8
"""Images whose features stay in memory: one sequence of HPatches and the next one's first."""


@dataclass(frozen=True)
class View:
    """An image as it is given to a model: uint8, (H, W) gray or (H, W, 3) red, green, blue; and the
    ``file_size`` (width, height) of the upright photograph that it was resized from."""

    image: np.ndarray
    file_size: tuple[int, int]
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]


def load_view(
    path: str | Path, *, longest_side: int = 640, shorter_side: int = 0, channels: int = 1
) -> View:
    """Read an image, gray (1 channel) or color (3), and resize its longest side to ``longest_side``
    pixels, or its shorter side to ``shorter_side``; where both are 0 it keeps its size.

    Raises:
        FileNotFoundError, UnreadablePhotographError: see ``data.images.read_image``.
    """
    image = read_image(path, channels=channels)
    if shorter_side:
        resized = resize_shorter(image, shorter_side)
    else:
        resized = resize_longest(image, longest_side)
    return View(resized, (image.shape[1], image.shape[0]), Path(path))


class NetworkFeatures:
    """What a network gives with one choice of keypoints.

    Attributes:
        channels: 1 or 3, of the views it takes.
        origin: where its numbers come from: a digest, a version, a path.
        settings: all that its features depend on besides the view, by name.
    """

    def __init__(self, network: Network, predict: PredictSettings, num_keypoints: int):
        self.network, self.channels, self.origin = network, network.channels, network.origin
        self.choice = network.choice_for(KeypointChoice.of(predict, num_keypoints))
        self.settings = {
            "version": version("hfnet-distill"),
            "model": network.origin,
            "precision": network.precision,
            **asdict(self.choice),
        }

    def extract(self, view: View, name: str) -> Features:
        image = to_tensor(view.image, self.channels)
        return self.network.features(image[None], self.choice)[0]


class FeaturesOfOthers:
    """The best features of a file in hloc's layout, which must exist."""

    channels = 1

    def __init__(self, path: Path, num_keypoints: int):
        if not path.is_file():
            raise NotFoundError(f"{path}: no such features file")
        self.path, self.num_keypoints, self.origin = path, num_keypoints, str(path)
        self.settings = {"model": self.origin, "max_num_keypoints": num_keypoints}

    def extract(self, view: View, name: str) -> Features:
        with open_hdf5(self.path, "r") as file:
            photograph = view.file_size, stored_orientation(view.path)
            found = read_features(file, name, photograph=photograph)
        best, described = slice(self.num_keypoints), found.descriptors is not None
        return Features(
            view.size,
            resize_points(found.keypoints[best], found.image_size, view.size),
            found.scores[best],
            found.descriptors[best] if described else None,
            found.global_descriptor,
        )


Model = NetworkFeatures | FeaturesOfOthers
"""What turns a view into features, in pixels of the view."""


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features in pixels of its view, the ``file_size`` (width, height) of which the
    view is a resized copy, and the seconds that extraction took, without reading the image."""

    features: Features
    file_size: tuple[int, int]
    seconds: float


class FeatureFile:
    """The features of one model on the images of one dataset.

    Args:
        path: of the file, which is made where it is missing.
        settings: what the features depend on, kept in the file.
        overwrite: start from nothing.

    Raises:
        InputError: the file is damaged, or holds features made with other settings; says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        self.path = path
        self.read = lru_cache(CACHED)(self._read)
        settings = as_written(settings)
        if overwrite:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_hdf5(self.path, "a", AGAIN) as file:
            if not file.attrs:
                file.attrs.update(settings)
            known = dict(file.attrs)
        for key in {**known, **settings}:
            if known.get(key) != settings.get(key):
                raise InputError(
                    f"{path}: holds features extracted with {key} {known.get(key)}, asked for is "
                    f"{settings.get(key)}; add --overwrite to extract them again, or name another "
                    "--output"
                )

    def extract(
        self,
        model: Model,
        images: Mapping[str, Path],
        load: Callable[[Path, int], View],
        advance: Callable[[], None],
    ) -> None:
        """Extract the features of all images that the file lacks, or that have changed since.

        ``load`` makes of a path and a number of channels the view that the model is shown;
        ``advance`` is called after each image.
        """
        with open_hdf5(self.path, "a", AGAIN) as file:
            for name, path in images.items():
                stamp = (path.stat().st_size, path.stat().st_mtime_ns)
                if name not in file or tuple(file[name].attrs.get("stamp", ())) != stamp:
                    if name in file:
                        del file[name]
                    view = load(path, model.channels)
                    start = time.perf_counter()
                    features = model.extract(view, name)
                    seconds = time.perf_counter() - start
                    group = write_features(file, name, features)
                    group.attrs.update(file_size=view.file_size, seconds=seconds)
                    group.attrs["stamp"] = stamp  # the last: a group without it is not whole
                    file.flush()
                advance()

    def _read(self, name: str) -> ImageFeatures:
        with open_hdf5(self.path, "r", AGAIN) as file:
            features = read_features(file, name)
            attributes = file[name].attrs
            return ImageFeatures(
                features, tuple(attributes["file_size"].tolist()), float(attributes["seconds"])
            )


def as_written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as pipeline.toml writes them, where None is "auto"."""
    return {key: "auto" if value is None else value for key, value in settings.items()}


def file_name(model: str) -> str:
    """The name of a model's features file: the model's own, as far as file systems allow."""
    plain = re.sub(r"[^\w.+-]+", "_", model).strip("_")
    if plain != model:  # another model may have the same plain name
        plain += f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"{plain}.h5"
