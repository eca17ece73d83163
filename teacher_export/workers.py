"""Shards spread over processes: of this machine, or of a Dask cluster that sees the same files."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from data.config import ExportSettings
from data.console import choose_device
from data.store import RecordStore, StoreError
from teacher_export.export import fill_shards
from teacher_export.teachers import TEACHERS, Teacher

__all__ = ["ShardJob", "WorkerError", "export_in_workers"]


class WorkerError(RuntimeError):
    """Workers died or cannot be reached; what they finished is kept."""


@dataclass(frozen=True)
class ShardJob:
    """All that a process needs to fill shards of a store.

    Attributes:
        folder, path: of the photographs and of the store, where every worker finds them.
        weights: of the teacher, where not in their usual place.
    """

    folder: Path
    path: Path
    settings: ExportSettings
    weights: str | None


def export_in_workers(
    job: ShardJob,
    store: RecordStore,
    advance: Callable[[int], None],
    *,
    workers: int,
    scheduler: str | None = None,
) -> None:
    """Fill the shards of a store that are not done yet, one task each, and mark it complete.

    To be called under the store's lock. A shard whose worker dies on a cluster is given to another
    one, which writes the same bytes.

    Args:
        advance: called with the number of photographs of each finished shard.
        workers: processes on this machine; with a scheduler, its own.
        scheduler: address of a Dask scheduler, such as "tcp://10.0.0.1:8786".

    Raises:
        WorkerError: a process of this machine was killed, or the scheduler cannot be reached.
        UnreadablePhotographError, OSError: as ``fill_shards``.
    """
    tasks = (joblib.delayed(_fill_shard)(job, number) for number in store.pending_shards())
    with ExitStack() as stack:
        if scheduler is not None:
            stack.enter_context(_cluster(scheduler))
        pool = joblib.Parallel(
            n_jobs=-1 if scheduler else workers, batch_size=1, return_as="generator_unordered"
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
    """In a worker: fill one shard. Returns how many photographs it has."""
    try:
        store = RecordStore.open(job.path)
    except StoreError as error:
        raise StoreError(
            f"{error} (seen from {socket.gethostname()}; store and photographs must lie on a file "
            "system that all workers share)"
        ) from error
    settings = job.settings
    teacher = _make_teacher(settings.model, job.weights, settings.device, settings.precision)
    fill_shards(teacher, job.folder, store, job.settings, [number], lambda count: None)
    return len(store.shard(number))


@lru_cache(maxsize=1)
def _make_teacher(model: str, weights: str | None, device: str, precision: str) -> Teacher:
    """One for all tasks of a process."""
    return TEACHERS[model](weights, choose_device(device), precision)


def _cluster(scheduler: str):
    """The context in which joblib's work goes to a Dask scheduler."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise WorkerError(
            "--scheduler needs Dask; pip install hfnet-distill[cluster] here and on the workers"
        ) from error
    try:
        client = Client(scheduler, timeout=5)
    except OSError as error:
        raise WorkerError(
            f"{scheduler}: no Dask scheduler answers there; start one with `dask scheduler`"
        ) from error
    stack = ExitStack()
    stack.enter_context(client)
    stack.enter_context(joblib.parallel_config(backend="dask", client=client))
    return stack
