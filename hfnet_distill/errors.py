"""What the project raises on purpose. The commands print these, and only these, as one sentence.

Each is also the built-in exception that a caller would expect. Anything else is a bug and keeps its
traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "LOADER_KILLED",
    "AlreadyExistsError",
    "CheckpointError",
    "DistillError",
    "DownloadError",
    "InputError",
    "NotFoundError",
    "NotInStoreError",
    "StoreError",
    "TrainingError",
    "UnreadablePhotographError",
    "WorkerError",
    "damage_as",
]


class DistillError(Exception):
    """The base: what was wrong, what was found, what was expected, what to do."""


class InputError(DistillError, ValueError):
    """A setting, a file or an array that is not what was expected."""


class NotFoundError(DistillError, FileNotFoundError):
    """A file or folder that is not there."""


class AlreadyExistsError(DistillError, FileExistsError):
    """A file or folder that would be overwritten."""


class StoreError(InputError):
    """A store that is missing, damaged, incomplete, in use, or made with other settings."""


class NotInStoreError(StoreError, KeyError):
    """An image or a field that a store does not hold."""

    __str__ = Exception.__str__  # KeyError shows the repr


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or of another network."""


class UnreadablePhotographError(InputError):
    """A file with the suffix of a photograph that cannot be decoded completely."""


class DownloadError(DistillError, OSError):
    """A file that cannot be downloaded, or is not the expected one."""


class WorkerError(DistillError, RuntimeError):
    """Workers died or cannot be reached; what they finished is kept."""


LOADER_KILLED = "a loader's process was killed, perhaps because memory ran out; lower --num-workers"


class TrainingError(DistillError, RuntimeError):
    """A training that cannot continue; its checkpoints are valid."""


@contextmanager
def damage_as(kind: type[DistillError], what: str, advice: str) -> Iterator[None]:
    """Whatever a library raises where a file is damaged as an error of ours.

    That may be almost anything; what the project raises on purpose and what the disk says stays.
    """
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise
        raise kind(f"{what} ({error}); {advice}") from error
