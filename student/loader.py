"""Photographs and their targets -> batches, in an order that seed and epoch alone decide."""

import atexit
import copy
import functools
import math
import multiprocessing
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import TrainSettings
from ..data.augment import Photometric
from ..data.geometry import Homographies, resize_matrix
from ..data.images import crop_to_shape, fit_image, load_photograph, read_image, view_through
from ..data.stores.names import Names
from ..errors import LOADER_KILLED, InputError, WorkerError
from .device_views import describe_views
from .distributed import world_size
from .targets import Targets
from .views import ViewSampler

__all__ = ["Batches", "DistillationDataset", "check_shared_memory", "make_loader"]

BATCHES_AHEAD = 4
"""Batches that each of the loader's processes makes ahead."""
SHARED_MEMORY = Path("/dev/shm")
"""Through which they are handed over."""


class DistillationDataset(Dataset):
    """Views of one photograph, with what the stores hold of the photograph.

    An item is asked for as ``(epoch, index)``, and the same pair gives the same item in whichever
    process: ``image`` (V, 1, h, w) uint8, ``H_view_to_photo`` (V, 3, 3) float64 from their pixels
    to those that the teacher saw, and the fields of the targets. With ``views_on="device"``, what
    ``device_views.cut_views`` makes the images from stands in place of ``image``.

    Args:
        folder: where the photographs lie under their names.
        settings: of the views, with ``full_resolution`` cut from a photograph's own pixels where it
            has more of them than the teacher saw, and so sharp where they zoom in.

    Attributes:
        size, crop: (width, height) of the photographs as the teacher saw them, and of the views.
        partial: views may show what lies beyond the photograph.
        canvas: (width, height) of photographs that the device cuts views from: as large as the
            teacher saw them, or with ``full_resolution`` as fine as the view that zooms in most.

    Raises:
        InputError: a crop larger than the images.
    """

    def __init__(
        self, folder: str | Path, names: list[str], targets: Targets, settings: TrainSettings
    ):
        self.folder, self.targets, self.settings = Path(folder), targets, settings
        self.names = Names.of(names)  # a list would be copied by each process, for it is counted
        self.size = size = targets.image_size
        self.crop = settings.crop or size
        self.partial = settings.warp > 0 and not settings.inside
        form = Homographies(
            scale=settings.zoom,
            rotation=settings.rotation,
            perspective=settings.perspective,
            tilt=settings.tilt,
            inside=settings.inside,
        )
        self.sampler = ViewSampler(settings.warp, form, settings.overlap)
        finest = min(1.0, settings.zoom[0]) if settings.full_resolution else 1.0
        self.canvas = tuple(math.ceil(side / finest) for side in size)
        if self.crop[0] > size[0] or self.crop[1] > size[1]:
            raise InputError(
                f"crop {self.crop[0]}x{self.crop[1]} is larger than the store's images, "
                f'{size[0]}x{size[1]}; lower crop in [train] or set it to "whole"'
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        name = self.names[index]
        homographies, changes = [], []
        for H_view_to_photo in self.sampler.draw(rng, self.size, self.crop, self.settings.views):
            homographies.append(H_view_to_photo)
            changes.append(Photometric.draw(rng, self.settings.photometric))
        item = self._images(self.folder / name, homographies, changes)
        item["H_view_to_photo"] = np.stack(homographies)
        item |= self.targets.read(name, item["H_view_to_photo"], self.crop, rng)
        return {key: torch.from_numpy(np.asarray(value, order="C")) for key, value in item.items()}

    def _images(
        self, path: Path, homographies: list[np.ndarray], changes: list[Photometric]
    ) -> dict[str, np.ndarray]:
        """The views of a photograph, or what they are made of on the device."""
        photograph = self._photograph(path)
        H_seen_to_own = resize_matrix(self.size, photograph.shape[1::-1])
        homographies = [H_seen_to_own @ H_view_to_photo for H_view_to_photo in homographies]
        if self.settings.views_on == "device":
            return describe_views(photograph, self.canvas, homographies, self.crop, changes)
        # What lies beyond the photograph is masked, but a black edge would be seen from inside.
        border = cv2.BORDER_REFLECT_101 if self.partial else cv2.BORDER_CONSTANT
        views = [
            change(view_through(photograph, H_view_to_own, self.crop, border=border))
            for H_view_to_own, change in zip(homographies, changes, strict=True)
        ]
        return {"image": np.stack(views)[:, None]}

    def _photograph(self, path: Path) -> np.ndarray:
        """A gray photograph (H, W) uint8 of the shape that the teacher saw, as large or larger."""
        if not self.settings.full_resolution:
            return load_photograph(path, self.size, channels=1)
        own = crop_to_shape(read_image(path, channels=1), self.size)
        if own.shape[1] <= self.size[0]:
            return fit_image(own, self.size)
        if self.settings.views_on == "device" and (np.array(own.shape[::-1]) > self.canvas).any():
            return fit_image(own, self.canvas)
        return own


class Batches(Sampler):
    """The keys ``(epoch, index)`` of every batch from step ``start`` on, epoch after epoch.

    Each epoch is shuffled by (seed, epoch); what does not fill its last batch is left out, so a
    step's batch follows from its number alone and a run can go on at any step.

    Args:
        count: of photographs.
        part: (number, of so many) leaves of each batch one of equal contiguous parts.

    Attributes:
        stop: the steps of all epochs.

    Raises:
        InputError: a batch that cannot be shared equally.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        epochs: int,
        seed: int,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        number, parts = part
        if batch_size % parts:
            raise InputError(
                f"batch_size {batch_size} cannot be shared equally by {parts} processes; make it "
                f"a multiple of {parts}"
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.part = slice(number * batch_size // parts, (number + 1) * batch_size // parts)
        self.steps_per_epoch = count // batch_size
        self.start, self.stop = start, self.steps_per_epoch * epochs

    def following(self, count: int) -> "Batches":
        """So many that would come next."""
        batches = copy.copy(self)
        batches.start, batches.stop = self.stop, self.stop + count
        return batches

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            epoch, within = divmod(step, self.steps_per_epoch)
            if within == 0 or step == self.start:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            rows = order[within * self.batch_size : (within + 1) * self.batch_size]
            yield [(epoch, int(row)) for row in rows[self.part]]


def make_loader(dataset: DistillationDataset, batches: Iterable, num_workers: int) -> DataLoader:
    """Batches read ahead by ``num_workers`` processes, pinned where a GPU will take them.

    Args:
        batches: lists of keys ``(epoch, index)``.
    """
    if num_workers:
        _kill_workers_at_exit()
    remote = any(store.is_remote for store in dataset.targets.stores)
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        # A connection to object storage does not survive a fork.
        multiprocessing_context="spawn" if remote and num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
    )


class _Loader(DataLoader):
    """One that says when a process was killed while it sent a batch; else torch says so."""

    def __iter__(self):
        try:
            yield from super().__iter__()
        except (ConnectionResetError, EOFError) as error:
            raise WorkerError(LOADER_KILLED) from error


def check_shared_memory(training: DistillationDataset, validation: DistillationDataset) -> None:
    """See that the batches on their way from the loaders' processes fit into /dev/shm.

    Raises:
        InputError: they do not; a container usually has 64 MB, and ends a process that needs more.
    """
    num_workers = training.settings.num_workers
    if not num_workers or not SHARED_MEMORY.is_dir():
        return
    needed = 0
    for dataset, processes in ((training, world_size()), (validation, 1)):
        if len(dataset):
            each = sum(value.nbytes for value in dataset[0, 0].values())
            ahead = num_workers * BATCHES_AHEAD
            needed += ahead * dataset.settings.batch_size // processes * each
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"{SHARED_MEMORY}: {free / 1e6:.0f} MB are free, the batches of {num_workers} loader "
            f"processes take up to {needed / 1e6:.0f} MB; use --num-workers 0, or start the "
            f"container with --shm-size {math.ceil(needed / 1e9) + 1}g"
        )


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # Both reach every process of a group; the loop answers them and still needs its batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@functools.cache
def _kill_workers_at_exit() -> None:
    """End workers that an error left behind; Python would wait for them to heed a SIGTERM."""

    def kill():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's answer to it is an error
        for child in multiprocessing.active_children():
            child.kill()

    # The last to be registered is the first to run: this comes before multiprocessing's own.
    atexit.register(kill)
