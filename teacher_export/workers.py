"""Shards distributed over processes of this machine, or of a Dask cluster with the same files."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ..config import ExportSettings
from ..data.stores.store import RecordStore
from ..errors import StoreError, WorkerError
from ..networks.base import Network
from ..networks.registry import load
from ..registry import import_plugins
from .export import fill_shards, make_schema

__all__ = ["ShardJob", "export_in_workers"]


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


def export_in_workers(
    job: ShardJob,
    store: RecordStore,
    advance: Callable[[int], None],
    *,
    workers: int,
    scheduler: str | None = None,
) -> None:
    """Fill the shards of a store that are not done yet, one task each, and mark it complete.

    Call it under the store's lock. If a worker of a cluster dies, its shard goes to another one,
    which writes the same bytes. Processes of this machine share its cores: joblib sets their
    OMP_NUM_THREADS to cores / workers unless it is set already.

    Args:
        advance: called with the number of photographs of each finished shard.
        workers: processes on this machine; ignored with a scheduler.
        scheduler: address of a Dask scheduler, such as "tcp://10.0.0.1:8786".

    Raises:
        WorkerError: a process of this machine was killed, or the cluster cannot be reached or gave
            up a shard.
        UnreadablePhotographError, OSError: as ``fill_shards``.
    """
    tasks = (joblib.delayed(_fill_shard)(job, number) for number in store.pending_shards())
    with _cluster(scheduler) if scheduler else _this_machine():
        pool = joblib.Parallel(
            n_jobs=-1 if scheduler else workers,
            batch_size=1,
            pre_dispatch="all" if scheduler else "2 * n_jobs",  # for workers that join later
            return_as="generator_unordered",
        )
        try:
            for count in pool(tasks):
                advance(count)
        except TerminatedWorkerError as error:
            raise WorkerError(
                f"{job.path}: a worker was killed, perhaps because memory ran out; what was "
                "finished is kept, run the same command again, with fewer --workers"
            ) from error
    store.finish()


def _fill_shard(job: ShardJob, number: int) -> int:
    """In a worker: fill one shard. Returns the number of its photographs."""
    store, teacher = _prepare(job)
    fill_shards(
        teacher, job.folder, store, job.settings, [number], lambda count: None, job.keypoints
    )
    return len(store.shard(number))


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
    teacher = load(
        settings.model, device=settings.device, precision=settings.precision, weights=job.weights
    )
    if found := make_schema(teacher, settings, job.keypoints).difference(store.schema):
        raise StoreError(
            f"{job.path}: a worker on {socket.gethostname()} would fill it with other values: "
            f"{found}; give all workers the same software and weights, and start them again"
        )
    return store, teacher


def _this_machine():
    """The context in which joblib runs its work in processes of this machine."""
    return joblib.parallel_config("loky", initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    """In a worker: end when the parent does, even if the parent was killed."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cluster(scheduler: str):
    """The context in which joblib runs its work on a Dask cluster."""
    try:
        from .cluster import cluster
    except ModuleNotFoundError as error:
        raise WorkerError(
            "--scheduler needs Dask; pip install hfnet-distill[cluster] here, on the scheduler and "
            "on the workers"
        ) from error
    return cluster(scheduler)
