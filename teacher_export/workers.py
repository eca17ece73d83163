"""Work distributed over processes of this machine, or of a Dask cluster with the same files."""

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path

import joblib
import torch
from joblib.externals.loky.backend.context import get_context
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ..config import ExportSettings
from ..data.stores.store import RecordStore
from ..errors import StoreError, WorkerError
from ..networks.base import Network
from ..networks.registry import load
from ..registry import import_plugins
from .shards import fill_shards, make_schema

__all__ = ["RUNS", "ShardJob", "device_of", "fill_in_workers", "worker_pool"]

RUNS = 8
"""Of shards that a process takes in one export: more share the work better, fewer are faster."""


@dataclass(frozen=True)
class ShardJob:
    """Everything that a process needs to fill shards of a store. All workers must see the paths.

    Attributes:
        folder, path: of the photographs and of the store.
        plugins: files that register the teacher.
        weights: a file with the teacher's weights, instead of the usual one.
        keypoints: the store of another teacher, whose keypoints are described.
        run: distinguishes one export from the next. The workers of a cluster outlive an export, and
            the next store or weights may have the same name.
    """

    folder: Path = field(compare=False)
    path: Path = field(compare=False)
    settings: ExportSettings = field(compare=False)
    weights: str | None = field(compare=False)
    plugins: tuple[str, ...] = field(default=(), compare=False)
    keypoints: RecordStore | None = field(default=None, compare=False)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)


@contextmanager
def worker_pool(
    workers: int, scheduler: str | None = None
) -> Iterator[Callable[[Iterable], Iterator]]:
    """Processes for the work of an export; yields a function that does joblib's delayed tasks.

    It gives the tasks' results as they come, in any order; the same processes do what it is called
    with next. If a worker of a cluster dies, its task goes to another one. Processes of this
    machine share its cores: joblib sets their OMP_NUM_THREADS to cores / workers unless it is set
    already.

    Args:
        workers: processes on this machine; 1 is this one. Ignored with a scheduler.
        scheduler: address of a Dask scheduler, such as "tcp://10.0.0.1:8786".

    Raises:
        WorkerError: a process of this machine was killed, or the cluster cannot be reached or gave
            up a task.
    """
    if scheduler:
        try:
            from .cluster import cluster
        except ModuleNotFoundError as error:
            raise WorkerError(
                "--scheduler needs Dask; pip install hfnet-distill[cluster] here, on the scheduler "
                "and on the workers"
            ) from error
        context = cluster(scheduler)
    else:
        numbers = [get_context("loky").Lock() for _ in range(workers)]
        context = joblib.parallel_config(
            "loky", initializer=_begin, initargs=(os.getpid(), numbers)
        )
    with context:
        try:
            yield joblib.Parallel(
                n_jobs=-1 if scheduler else workers,
                batch_size=1,
                pre_dispatch="all" if scheduler else "2 * n_jobs",  # for workers that join later
                return_as="generator_unordered",
            )
        except TerminatedWorkerError as error:
            raise WorkerError(
                "a worker was killed, perhaps because memory ran out; what was finished is kept, "
                "run the same command again, with fewer --workers"
            ) from error


def fill_in_workers(
    job: ShardJob,
    store: RecordStore,
    numbers: list[int],
    advance: Callable[[int], None],
    run: Callable[[Iterable], Iterator],
    *,
    tasks: int | None,
) -> None:
    """Fill some shards of a store, as ``fill_shards``.

    A task is a run of adjacent shards, at least those that share a batch, whose photographs are
    decoded while the run's earlier ones are written. With several GPUs the processes of a machine
    take them in turn.

    Call it under the store's lock. A shard that is filled twice gets the same bytes.

    Args:
        advance: called with the number of photographs of each finished task.
        run: as ``worker_pool`` yields it.
        tasks: into how many the shards are divided; None makes each as small as it can be.

    Raises:
        WorkerError: as ``worker_pool``.
        UnreadablePhotographError, OSError: as ``fill_shards``.
    """
    # Cut where a batch starts, too: one that two tasks are part of, both would compute.
    period = job.settings.batch_size // math.gcd(job.settings.batch_size, store.schema.shard_size)
    cut = [[*group] for _, group in groupby(numbers, lambda number: number // period)]
    length = -(-len(cut) // tasks) if cut and tasks else 1
    runs = (chain(*cut[start : start + length]) for start in range(0, len(cut), length))
    for count in run(joblib.delayed(_fill)(job, [*numbers]) for numbers in runs):
        advance(count)


def _fill(job: ShardJob, numbers: list[int]) -> int:
    """In a worker: fill shards. Returns the number of their photographs."""
    store, teacher = _prepare(job)
    fill_shards(teacher, job.folder, store, job.settings, numbers, lambda _: None, job.keypoints)
    return sum(len(store.shard(number)) for number in numbers)


@lru_cache(maxsize=1)
def _prepare(job: ShardJob) -> tuple[RecordStore, Network]:
    """The store and the teacher, once for all shards that a process fills in one export."""
    try:
        store = RecordStore.open(job.path)
    except StoreError as error:
        raise StoreError(
            f"{error} (seen from {socket.gethostname()}; store and photographs must lie on a file "
            "system that all workers share)"
        ) from error
    settings = job.settings
    import_plugins(job.plugins)
    device = device_of(settings.device, _number, torch.cuda.device_count())
    teacher = load(settings.model, device=device, precision=settings.precision, weights=job.weights)
    if found := make_schema(teacher, settings, job.keypoints).difference(store.schema):
        raise StoreError(
            f"{job.path}: a worker on {socket.gethostname()} would fill it with other values: "
            f"{found}; give all workers the same software and weights, and start them again"
        )
    return store, teacher


def device_of(name: str, number: int, gpus: int) -> str:
    """The device of a process of this machine: the GPUs in turn where the setting names none."""
    return f"cuda:{number % gpus}" if gpus > 1 and name in ("auto", "cuda") else name


_number = 0
"""Of this process among those that fill a store on this machine; 0 in a cluster's workers."""


def _begin(parent: int, numbers: list) -> None:
    """In a worker: take a number, and end when the parent does, even if the parent was killed."""
    global _number
    _number = next((n for n, lock in enumerate(numbers) if lock.acquire(block=False)), 0)

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
