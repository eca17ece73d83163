"""Everything that can be scored: students, teachers, OpenCV's baselines, features from a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import cv2
import h5py
import numpy as np
import torch

from ..config import PredictSettings
from ..console import autocast, choose_precision
from ..data.features import Features
from ..data.geometry import resize_points
from ..data.keypoints import KeypointChoice, thin_keypoints
from ..data.stores.store import RecordStore
from ..networks.hfnet import fold_normalisation
from ..networks.predict import describe, predict
from ..networks.student_checkpoint import load_student, student_path
from ..networks.teachers import TEACHERS, VladTeacher, without_keypoints
from .views import View

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


class Describer(Extractor, Protocol):
    """An extractor with a descriptor for every place of a view."""

    def describe(self, view: View, keypoints: np.ndarray) -> np.ndarray:
        """The descriptors (N, D) float32 of keypoints (N, 2) float32 that another one found."""


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
        model: ``default``, a run folder or its file of weights, a teacher's name or
            ``TEACHER:WEIGHTS``, ``orb``, ``akaze``, a detector (``harris``, ``fast``) or
            ``DETECTOR+DESCRIBER``, ``features:FILE.h5``, or ``vlad:STORE``, a store of
            ``export-teacher --model vlad``.
        weights: of teachers that do not name their own, where not in their usual place.

    Raises:
        ValueError: none of these, or a describer without a descriptor for every place.
    """
    choice = KeypointChoice(top_k=num_keypoints, **settings.model_dump(exclude={"precision"}))
    precision = choose_precision(settings.precision, device)
    name, _, rest = model.partition(":")
    if name in TEACHERS:
        teacher = TEACHERS[name](rest or weights, device, precision)
        kind = TeacherDescriber if hasattr(teacher, "describe") else TeacherExtractor
        return kind(teacher, choice)
    if name == "vlad":
        return TeacherExtractor(VladTeacher(RecordStore.open(rest), weights, device), choice)
    if name == "features":
        return FeatureFile(Path(rest), num_keypoints)
    if model in BINARY:
        return BinaryExtractor(BINARY[model](choice.top_k), choice)
    detector, _, described_by = model.partition("+")
    if detector in DETECTORS:
        describer = described_by and make_extractor(
            described_by, settings, num_keypoints=num_keypoints, device=device, weights=weights
        )
        if describer and not hasattr(describer, "describe"):
            raise ValueError(
                f"--model {model}: {described_by} describes only keypoints of its own; expected "
                "superpoint, silk or a student behind the +"
            )
        return DetectorExtractor(DETECTORS[detector], describer or None, choice)
    if model == "default" or Path(model).exists():
        return StudentExtractor(model, choice, device, precision)
    raise ValueError(
        f"--model {model}: neither a run folder nor one of default, "
        f"{', '.join(sorted(TEACHERS))}, {', '.join([*BINARY, *DETECTORS])}, DETECTOR+DESCRIBER, "
        "TEACHER:WEIGHTS, vlad:STORE, features:FILE.h5"
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

    def describe(self, view: View, keypoints: np.ndarray) -> np.ndarray:
        with autocast(self.device, self.precision):
            return describe(self.student, _to_image(view), keypoints)


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


class TeacherDescriber(TeacherExtractor):
    """A teacher with a dense descriptor map."""

    def describe(self, view: View, keypoints: np.ndarray) -> np.ndarray:
        return self.teacher.describe(_to_image(view), keypoints)


class BinaryExtractor:
    """A detector with binary descriptors of OpenCV, thinned out like every other one."""

    channels = 1
    origin = f"opencv {cv2.__version__}"

    def __init__(self, detector: cv2.Feature2D, choice: KeypointChoice):
        self.detector, self.choice = detector, choice

    def extract(self, view: View, name: str) -> Features:
        found, descriptors = self.detector.detectAndCompute(view.image, None)
        keypoints = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
        scores = np.array([point.response for point in found], np.float32)
        kept = thin_keypoints(keypoints, scores, view.size, self.choice)
        width = self.detector.descriptorSize()
        packed = np.zeros((0, width), np.uint8) if descriptors is None else descriptors[kept]
        bits = np.unpackbits(packed, axis=1).astype(bool)
        return Features(view.size, keypoints[kept], scores[kept], bits)


def _orb(top_k: int) -> cv2.Feature2D:
    """ORB: Rublee et al., ICCV 2011."""
    # Suppression thins its clusters out: it needs many more than are kept in the end.
    return cv2.ORB_create(nfeatures=10 * top_k)


def _akaze(top_k: int) -> cv2.Feature2D:
    """AKAZE: Alcantarilla et al., BMVC 2013. It finds what it finds, whatever ``top_k``."""
    home = next(
        (m for m in (cv2, getattr(cv2, "xfeatures2d", None)) if hasattr(m, "AKAZE_create")), None
    )
    if home is None:
        raise ValueError(
            f"--model akaze: this OpenCV {cv2.__version__} comes without it; pip install "
            '"opencv-python<5", or opencv-contrib-python in its place'
        )
    return home.AKAZE_create(threshold=1e-4)  # a tenth of the default: enough are left to choose


BINARY: dict[str, Callable[[int], cv2.Feature2D]] = {"orb": _orb, "akaze": _akaze}


class DetectorExtractor:
    """Keypoints of a detector, described by another or not at all."""

    def __init__(self, detect: Callable, describer: Describer | None, choice: KeypointChoice):
        self.detect, self.describer = detect, describer
        self.choice = replace(choice, refine_radius=0)
        self.channels = describer.channels if describer else 1
        origin = f"opencv {cv2.__version__}"
        self.origin = f"{origin}, {describer.origin}" if describer else origin

    def extract(self, view: View, name: str) -> Features:
        keypoints, scores = self.detect(view.image, self.choice)
        described = self.describer and self.describer.describe(view, keypoints)
        return Features(view.size, keypoints, scores, described)


def detect_harris(image: np.ndarray, choice: KeypointChoice) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, 2) and scores (N,) where Harris' response is high: Alvey conference, 1988.

    Windows of 4x4 pixels and k = 0.04, with which SuperPoint's and HF-Net's papers compare.
    """
    return choice(cv2.cornerHarris(image, blockSize=4, ksize=3, k=0.04))


def detect_fast(image: np.ndarray, choice: KeypointChoice) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, 2) and scores (N,) of FAST with a threshold of 10: Rosten, ECCV 2006."""
    found = cv2.FastFeatureDetector_create(10).detect(image)
    keypoints = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
    scores = np.array([point.response for point in found], np.float32)
    kept = thin_keypoints(keypoints, scores, (image.shape[1], image.shape[0]), choice)
    return keypoints[kept], scores[kept]


DETECTORS = {"harris": detect_harris, "fast": detect_fast}


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
