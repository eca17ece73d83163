"""A Dask cluster as a joblib backend. Needs the extra ``cluster``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
from distributed import CancelledError, Client
from distributed.scheduler import KilledWorker
from joblib._dask import DaskDistributedBackend

from ..errors import WorkerError

__all__ = ["cluster"]

AGAIN = "what was finished is kept, run the same command again"


@contextmanager
def cluster(scheduler: str) -> Iterator[None]:
    """A context in which the workers of a scheduler do joblib's work.

    Raises:
        WorkerError: no scheduler answers at that address, or it has no workers.
    """
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except OSError as error:
        raise WorkerError(
            f"{scheduler}: no Dask scheduler answers there; start one with `dask scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=10)
        except TimeoutError as error:
            raise WorkerError(
                f"{scheduler}: the scheduler has no workers; start some with "
                f"`dask worker {scheduler}`"
            ) from error
        with joblib.parallel_config(backend=_Backend(client=client)):
            yield


class _Backend(DaskDistributedBackend):
    """joblib's own waits forever for a task that Dask gives up, and does not use a single core."""

    def effective_n_jobs(self, n_jobs):
        return max(2, super().effective_n_jobs(n_jobs))  # one job joblib would do itself

    def submit(self, func, callback=None):
        future = super().submit(func, callback)  # an error is set on it without a callback

        def call_back(done):
            if done.exception() is not None:
                callback(_GivenUp(done.exception()))

        future.add_done_callback(call_back)
        return future

    def retrieve_result_callback(self, out):
        if isinstance(out, _GivenUp):
            raise WorkerError(f"{out.reason}; {AGAIN}")
        if isinstance(out, CancelledError):
            raise WorkerError(f"the Dask scheduler went away; {AGAIN} when it is back")
        return super().retrieve_result_callback(out)


class _GivenUp:
    """In place of a task's result: an error of Dask, not of the task."""

    def __init__(self, error: BaseException):
        self.reason = f"the Dask cluster gave a task up ({error.__cause__ or error})"
        if isinstance(error, KilledWorker):
            self.reason = (
                "the workers that took a task died one after the other, the last "
                f"{error.last_worker.address}, perhaps because memory ran out"
            )
