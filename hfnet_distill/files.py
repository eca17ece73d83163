"""Files that are whole or absent, and texts as people's editors save them."""

import codecs
import functools
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, NotFoundError

__all__ = [
    "beside",
    "file_digest",
    "flush_file",
    "flush_folder",
    "open_atomically",
    "read_text",
    "remove",
    "reserve",
    "sweep",
    "write_atomically",
]


def beside(path: Path) -> Path:
    """The name under which a file or folder is written before it is renamed to ``path``."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def sweep(path: Path) -> None:
    """Remove what killed writers left ``beside`` a path; only where no other process writes it."""
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        remove(partial)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def open_atomically(path: str | Path, *, flush: bool = False) -> Iterator[BinaryIO]:
    """A file that is written beside ``path``, renamed at the end, and removed after an error.

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


def file_digest(path: str | Path, kind: str = "sha256") -> str:
    """The digest of a file in hexadecimal: its SHA-256, or the ``git`` id of a blob (SHA-1)."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        blob = functools.partial(hashlib.sha1, b"blob %d\0" % size)
        return hashlib.file_digest(file, blob if kind == "git" else kind).hexdigest()


def reserve(file: BinaryIO, offset: int, size: int) -> None:
    """Let the file system allocate bytes that are about to be written, if it can.

    They then lie in one piece, and writing them takes less of the kernel's time.
    """
    with suppress(AttributeError, OSError):  # a full disk is what the write will name
        os.posix_fallocate(file.fileno(), offset, size)


def read_text(path: str | Path) -> str:
    """A text file that people edit; its lines end with ``\\n``, however they did.

    UTF-8 with or without a byte order mark, or UTF-16, as editors of Windows save it.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is in another encoding, or is no text.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    encoding = "utf-8-sig"
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # UTF-16 without a mark: every other byte of plain text is zero
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not a text in UTF-8 or UTF-16, byte {error.start} is "
            f"0x{data[error.start]:02x}; save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
