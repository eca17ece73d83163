"""Photographs or a video -> a features file in hloc's layout (Sarlin et al., CVPR 2019).

While it is being made, each image's features lie in a file of their own beside it, so that an
interrupted run goes on with the next image and the features file is whole or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch

from .. import __version__
from ..config import first_difference
from ..console import progress, say
from ..data.features import Features, image_names, open_hdf5
from ..data.geometry import resize_points
from ..data.images import list_images, read_image, resize_longest, to_tensor
from ..data.keypoints import KeypointChoice
from ..errors import AlreadyExistsError, InputError, NotFoundError
from ..files import open_atomically, sweep, write_atomically
from ..networks.base import Network
from ..networks.registry import load

__all__ = ["ExtractSettings", "extract", "read_names"]

DETECTION_NOISE = 1.0
"""Pixels of the image that the network saw: hloc's own for most detectors."""
GPU_BATCH, SHAPES_WAITING = 8, 4
"""Images of one shape that a GPU gets at once, and shapes of which fewer may wait for more."""
BROKEN_OFF = 0.98
"""Of the frames that a video's header promises; some headers only estimate them."""
CHECKSUMMED = ("v110", "v110")
"""The format of HDF5 1.10, the first of which every structure ends with a checksum."""
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}


@dataclass(frozen=True)
class ExtractSettings:
    """What features depend on; a features file keeps it.

    Attributes:
        model, weights: the network's name and the SHA-256 of its weights.
        longest_side: of larger images, in pixels, before the network; 0 leaves all as they are.
        upright: turned by their EXIF orientation; not as the file's pixels lie.
        keypoints: how they are chosen.
    """

    model: str
    weights: str
    longest_side: int
    upright: bool
    keypoints: KeypointChoice

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def refuse_others(self, path: Path, found: str | None) -> None:
        """Raises InputError where ``found``, the settings of ``path`` as JSON, are not these."""
        if found is None:
            complaint = "made by another program"
        elif different := first_difference(asdict(self), json.loads(found)):
            complaint = f"made with other settings: {different}"
        else:
            return
        raise InputError(f"{path}: {complaint}; name another --output or add --overwrite")


@dataclass(frozen=True)
class _Job:
    """What a process needs to extract images by itself."""

    model: str
    device: str
    precision: str
    folder: Path
    settings: ExtractSettings
    parts: Path


def read_names(path: Path) -> list[str]:
    """The photographs of a folder, or those that a text file lists, relative to its own folder.

    Raises:
        NotFoundError: no such folder or file, or a photograph that is listed but not there.
    """
    if path.is_dir():
        return list_images(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such folder, list of photographs or video")
    lines = path.read_text("utf-8-sig").splitlines()
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    for name in names:
        if not (path.parent / name).is_file():
            raise NotFoundError(f"{path}: lists {name}, which is not in {path.parent}")
    if not names:
        raise InputError(f"{path}: lists no photograph; expected a name a line")
    return names


def extract(
    model: str,
    source: Path,
    output: Path,
    *,
    choice: KeypointChoice,
    longest_side: int = 1024,
    upright: bool = False,
    device: str = "auto",
    precision: str = "float32",
    workers: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Extract the features of photographs or of a video's frames into a features file.

    Keypoints are in pixels of the photograph's file, centre of the first pixel (0, 0), with
    descriptors in float16. Frames of a video are called ``STEM/000000``, ``STEM/000001``, ...

    Args:
        model: as of ``networks.registry.load``.
        source: a folder, a text file that lists photographs, or a video.
        output: the HDF5 file; images that it has already are not extracted again.
        choice: how keypoints are chosen.
        longest_side, upright: see ``ExtractSettings``.
        workers: processes, on a CPU.
        overwrite: replace an output that was made with other settings.

    Raises:
        InputError, NotFoundError: an output of other settings, or images that cannot be read.
    """
    network = load(model, device=device, precision=precision)
    settings = ExtractSettings(
        model, network.weights, longest_side, upright, network.choice_for(choice)
    )
    parts = output.with_name(f"{output.name}.parts")
    if overwrite:
        output.unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
    done = _done(output, parts, settings)
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(parts / "settings.json", settings.to_json().encode())
    folder = source if source.is_dir() else source.parent
    job = _Job(model, device, precision, folder, settings, parts)
    complaint = None
    if source.suffix.lower() in VIDEOS:
        count, complaint = _extract_video(network, job, source, done, quiet)
    else:
        count = _extract_images(network, job, read_names(source), done, workers, quiet)
    _assemble(output, parts, settings)
    if complaint is not None:
        raise InputError(f"{complaint}; {output} has the {count + len(done)} whole ones")
    say(f"{output}: {count} images extracted, {len(done)} were there already", quiet=quiet)
    return output


def _done(output: Path, parts: Path, settings: ExtractSettings) -> set[str]:
    """The names of the images that need no extracting."""
    done = set()
    if output.is_dir():
        raise AlreadyExistsError(f"{output}: is a folder; --output is a file")
    if output.exists():
        with open_hdf5(output, advice="; name another --output or add --overwrite") as file:
            settings.refuse_others(output, file.attrs.get("settings"))
            done.update(image_names(file))
    if (parts / "settings.json").is_file():
        settings.refuse_others(parts, (parts / "settings.json").read_text())
        done.update(str(np.load(path)["name"]) for path in parts.glob("*.npz"))
    return done


def _extract_images(
    network: Network, job: _Job, names: list[str], done: set[str], workers: int, quiet: bool
) -> int:
    total, names = len(names), [name for name in names if name not in done]
    with progress("images", total, done=total - len(names), quiet=quiet) as advance:
        if workers == 1:
            for name in _extract_batches(network, job, names):
                advance(note=name)
            return len(names)
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (job,)) as pool:
            try:
                for _ in pool.map(_extract_one, names):
                    advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return len(names)


_worker: tuple[Network, _Job] | None = None


def _start_worker(job: _Job) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = load(job.model, device=job.device, precision=job.precision), job


def _extract_one(name: str) -> None:
    for _ in _extract_batches(*_worker, [name]):
        pass


def _extract_batches(network: Network, job: _Job, names: list[str]) -> Iterator[str]:
    """Extract images; yields each name as its features are on the disk. On a GPU in batches."""
    most = _batch_size(network.device)
    waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name in names:
        path, upright = job.folder / name, job.settings.upright
        image = read_image(path, channels=network.channels, upright=upright)
        waiting.setdefault(image.shape, []).append((name, image))
        full = len(waiting[image.shape]) == most
        if full or len(waiting) > SHAPES_WAITING:
            shape = image.shape if full else next(iter(waiting))
            yield from _extract_batch(network, waiting.pop(shape), job)
    for batch in waiting.values():
        yield from _extract_batch(network, batch, job)


def _batch_size(device: torch.device) -> int:
    return GPU_BATCH if device.type == "cuda" else 1


def _extract_batch(
    network: Network, batch: list[tuple[str, np.ndarray]], job: _Job
) -> Iterator[str]:
    """Extract images of one size."""
    height, width = batch[0][1].shape[:2]
    longest = min(job.settings.longest_side, max(width, height))
    images = [resize_longest(image, longest) for _, image in batch]
    tensors = torch.stack([to_tensor(image, network.channels) for image in images])
    try:
        found = network.features(tensors, job.settings.keypoints)
    except InputError as error:
        raise InputError(f"{batch[0][0]}: {error}") from error
    for (name, _), features in zip(batch, found, strict=True):
        keypoints = resize_points(features.keypoints, features.image_size, (width, height))
        scale = max(width, height) / max(features.image_size)
        features = replace(features, image_size=(width, height), keypoints=keypoints)
        _write_part(job.parts, name, features, DETECTION_NOISE * scale)
        yield name


def _write_part(parts: Path, name: str, features: Features, uncertainty: float) -> None:
    arrays = {
        "name": np.array(name),
        "uncertainty": np.array(uncertainty),
        "image_size": np.array(features.image_size),
        "keypoints": features.keypoints,
        "scores": features.scores,
    }
    if features.descriptors is not None:
        binary = features.descriptors.dtype == bool
        arrays["descriptors"] = features.descriptors.T.astype(bool if binary else np.float16)
    if features.global_descriptor is not None:
        arrays["global_descriptor"] = features.global_descriptor
    with open_atomically(parts / f"{hashlib.sha256(name.encode()).hexdigest()}.npz") as file:
        np.savez(file, **arrays)


def _extract_video(
    network: Network, job: _Job, path: Path, done: set[str], quiet: bool
) -> tuple[int, str | None]:
    """Extract a video's frames; returns how many, and what is wrong with the video."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such video")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"{path}: not a video that OpenCV can read")
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # that its header says
    code = cv2.COLOR_BGR2GRAY if network.channels == 1 else cv2.COLOR_BGR2RGB
    number = extracted = 0
    whole, frame = capture.read()
    with progress("frames", max(total, 1), quiet=quiet) as advance:
        while whole:
            # The last frame of a video that breaks off may be half a picture.
            whole, following = capture.read()
            if not whole and number + 1 < BROKEN_OFF * total:
                return extracted, f"{path}: breaks off in frame {number + 1} of {total}"
            name = f"{path.stem}/{number:06d}"
            if name not in done:
                batch = [(name, cv2.cvtColor(frame, code))]
                extracted += len(list(_extract_batch(network, batch, job)))
            number, frame = number + 1, following
            advance()
    return extracted, None


def _assemble(output: Path, parts: Path, settings: ExtractSettings) -> None:
    """The features file from the one there is and the files of single images."""
    sweep(output)
    fresh = sorted(parts.glob("*.npz"))
    if fresh or not output.exists():
        with (
            open_atomically(output, flush=True) as stream,
            h5py.File(stream, "w", libver=CHECKSUMMED) as file,
        ):
            # Of fixed length: HDF5 keeps others where no checksum is, and damage makes it hang.
            file.attrs["settings"] = np.bytes_(settings.to_json().encode())
            file.attrs["software"] = f"hfnet-distill {__version__}"
            if output.exists():
                with open_hdf5(output) as before:
                    for name in image_names(before):
                        before.copy(name, file, name)
            for path in fresh:
                with np.load(path) as part:
                    group = file.create_group(str(part["name"]))
                    for key in part.files:
                        if key not in ("name", "uncertainty"):
                            array = part[key]
                            chunks = array.shape if array.size else None
                            summed = {"chunks": chunks, "fletcher32": chunks is not None}
                            group.create_dataset(key, data=array, **summed)
                    group["keypoints"].attrs["uncertainty"] = float(part["uncertainty"])
    shutil.rmtree(parts)
