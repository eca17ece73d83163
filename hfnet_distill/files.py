"""Files that are whole or absent."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["beside", "flush_file", "flush_folder", "open_atomically", "reserve", "write_atomically"]


def beside(path: Path) -> Path:
    """Where a file or folder is written before it is renamed to ``path``."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


@contextmanager
def open_atomically(path: str | Path, *, flush: bool = False) -> Iterator[BinaryIO]:
    """A file to write beside its place; renamed at the end, removed where that is not reached.

    Args:
        flush: wait until bytes and name are on the disk, so that a power cut cannot lose them.
    """
    path = Path(path)
    partial = beside(path)
    try:
        with open(partial, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if flush:
            flush_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush_file(path: Path) -> None:
    """Wait until a file that a library wrote is on the disk, whatever the library did."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a renamed file may else be lost by one."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: str | Path, *parts, flush: bool = False) -> None:
    """Write buffers one after the other to a file that is whole or absent."""
    with open_atomically(path, flush=flush) as file:
        for part in parts:
            file.write(part)


def reserve(file: BinaryIO, offset: int, size: int) -> None:
    """Have the file system find room for bytes that are about to be written, where it can.

    They come to lie in one piece, and writing them takes less of the kernel's time.
    """
    with suppress(AttributeError, OSError):  # a full disk is what the write will name
        os.posix_fallocate(file.fileno(), offset, size)
