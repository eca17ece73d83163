"""A model's features on a dataset: extracted once, kept in a file, read from there.

The file has hloc's layout (see ``data.features``), in float32. Keypoints are in pixels of the view
that the model was shown, whose size is ``image_size``, so that nothing is rounded.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import h5py

from ..data.features import Features, read_features, write_features
from .views import View

__all__ = ["FeatureFile", "ImageFeatures", "Model", "file_name"]

CACHED = 8
"""Images whose features stay in memory: one sequence of HPatches and the next one's first."""


class Model(Protocol):
    """What turns a view into features.

    Attributes:
        channels: 1 or 3, of the views it takes.
        origin: where its numbers come from, for the report: a digest, a version, a path.
        settings: all that its features depend on besides the view, by the names of the settings.
    """

    channels: int
    origin: str
    settings: Mapping[str, Any]

    def extract(self, view: View, name: str) -> Features:
        """The features of a view in its pixels; ``name`` is the image's name in the dataset."""


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features as the file holds them.

    Attributes:
        features: in pixels of the view.
        file_size: (width, height) of the image's file, of which the view is a resized copy.
        seconds: that extraction took, without reading the image.
    """

    features: Features
    file_size: tuple[int, int]
    seconds: float


class FeatureFile:
    """The features of one model on the images of one dataset.

    Args:
        path: of the file, which need not exist.
        settings: what the features depend on, kept in the file.
        overwrite: begin anew where there is a file already.

    Raises:
        ValueError: the file is damaged, or holds features made with other settings; names the
            setting that differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        self.path = path
        self.read = lru_cache(CACHED)(self._read)
        settings = {key: "auto" if v is None else v for key, v in settings.items()}
        if overwrite:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open("a") as file:
            if not file.attrs:
                file.attrs.update(settings)
            known = dict(file.attrs)
        for key in {**known, **settings}:
            if known.get(key) != settings.get(key):
                raise ValueError(
                    f"{path}: holds features extracted with {key} {known.get(key)}, asked for is "
                    f"{settings.get(key)}; add --overwrite to extract them anew, or name another "
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

        Args:
            images: name -> path.
            load: path and channels -> the view that the model is shown.
            advance: called after each image.
        """
        with self._open("a") as file:
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
        with self._open("r") as file:
            features = read_features(file, name)
            attributes = file[name].attrs
            return ImageFeatures(
                features, tuple(attributes["file_size"].tolist()), float(attributes["seconds"])
            )

    def _open(self, mode: str) -> h5py.File:
        try:
            return h5py.File(self.path, mode)
        except BlockingIOError as error:
            raise ValueError(f"{self.path}: in use by another process; wait for it") from error
        except OSError as error:
            if not self.path.is_file() or error.errno:
                raise
            raise ValueError(
                f"{self.path}: damaged ({error}); add --overwrite to extract its features anew"
            ) from error


def file_name(model: str) -> str:
    """The name of a model's features file: the model's own, as far as file systems allow."""
    plain = re.sub(r"[^\w.+-]+", "_", model).strip("_")
    if plain != model:  # another model may have the same plain name
        plain += f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"{plain}.h5"
