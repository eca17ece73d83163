"""Everything that can be scored: students, teachers, OpenCV's baselines, features from a file."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import cv2
import h5py
import numpy as np
import torch

from data.config import PredictSettings
from data.console import autocast, choose_precision
from data.geometry import resize_points
from data.keypoints import KeypointChoice, thin_keypoints
from data.records import Features
from data.store import RecordStore
from evaluation.datasets import View
from student.checkpoint import load_student, student_path
from student.hfnet import fold_normalisation
from student.predict import predict
from teacher_export.teachers import TEACHERS, VladTeacher, without_keypoints

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
    """The extractor that ``--model`` names.

    Args:
        model: ``default``, a run folder, a teacher's name, ``orb``, ``features:FILE.h5``, or
            ``vlad:STORE``, a store of ``export-teacher --model vlad``.
        weights: of a teacher, where not in their usual place.

    Raises:
        ValueError: none of these.
    """
    choice = KeypointChoice(top_k=num_keypoints, **settings.model_dump(exclude={"precision"}))
    precision = choose_precision(settings.precision, device)
    if model in TEACHERS:
        return TeacherExtractor(TEACHERS[model](weights, device, precision), choice)
    if model.startswith("vlad:"):
        store = RecordStore.open(model.removeprefix("vlad:"))
        return TeacherExtractor(VladTeacher(store, weights, device), choice)
    if model == "orb":
        return Orb(choice)
    if model.startswith("features:"):
        return FeatureFile(Path(model.removeprefix("features:")), num_keypoints)
    if model == "default" or Path(model).exists():
        return StudentExtractor(model, choice, device, precision)
    raise ValueError(
        f"--model {model}: neither a run folder nor one of default, "
        f"{', '.join(sorted(TEACHERS))}, orb, vlad:STORE, features:FILE.h5"
    )


def _to_image(view: View) -> torch.Tensor:
    image = view.image[None] if view.image.ndim == 2 else view.image.transpose(2, 0, 1)
    return torch.from_numpy(image.astype(np.float32) / 255)


class StudentExtractor:
    """HF-Net from a run folder, or the one that is shipped."""

    channels = 1

    def __init__(self, model: str, choice: KeypointChoice, device: torch.device, precision: str):
        student, _, digest = load_student(student_path(model))
        self.student = fold_normalisation(student).to(device, memory_format=torch.channels_last)
        self.choice = choice
        self.device, self.precision = device, precision
        self.origin = f"sha256:{digest}"

    def extract(self, view: View, name: str) -> Features:
        with autocast(self.device, self.precision):
            return predict(self.student, _to_image(view), self.choice)


def origin_of(weights: str) -> str:
    """A teacher's ``weights`` as the report states them."""
    return weights if weights.startswith("opencv") else f"sha256:{weights}"


class TeacherExtractor:
    """One of the teachers, run as it is."""

    def __init__(self, teacher, choice: KeypointChoice):
        self.teacher, self.choice = teacher, replace(choice, refine_radius=0)
        self.channels = teacher.channels
        self.origin = origin_of(teacher.weights)

    def extract(self, view: View, name: str) -> Features:
        return self.teacher.extract(_to_image(view), self.choice)


class Orb:
    """ORB of OpenCV, thinned out like every other one: Rublee et al., ICCV 2011."""

    channels = 1
    origin = f"opencv {cv2.__version__}"

    def __init__(self, choice: KeypointChoice):
        self.choice = choice
        # Suppression thins its clusters out: it needs many more than are kept in the end.
        self.detector = cv2.ORB_create(nfeatures=10 * choice.top_k)

    def extract(self, view: View, name: str) -> Features:
        found, descriptors = self.detector.detectAndCompute(view.image, None)
        keypoints = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
        scores = np.array([point.response for point in found], np.float32)
        kept = thin_keypoints(keypoints, scores, view.size, self.choice)
        packed = np.zeros((0, 32), np.uint8) if descriptors is None else descriptors[kept]
        bits = np.unpackbits(packed, axis=1).astype(bool)
        return Features(view.size, keypoints[kept], scores[kept], bits)


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
            return without_keypoints(view.size, place)
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
