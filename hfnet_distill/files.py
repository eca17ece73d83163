"""Files that are whole or absent, and texts as people's editors save them."""

import codecs
import functools
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from .errors import InputError, NotFoundError

__all__ = [
    "beside",
    "checksum",
    "file_digest",
    "flush_to_disk",
    "made_beside",
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
def made_beside(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Where to make a file or folder that becomes ``path`` at the end, and goes after an error.

    Args:
        flush: wait until the name, and the bytes of a file, are on the disk, so that a power cut
            cannot lose them.
    """
    partial = beside(path)
    try:
        yield partial
        if flush and partial.is_file():
            flush_to_disk(partial)
        os.replace(partial, path)
        if flush:
            flush_to_disk(path.parent)
    except BaseException:
        remove(partial)
        raise


@contextmanager
def open_atomically(path: str | Path, *, flush: bool = False) -> Iterator[BinaryIO]:
    """A file that is whole or absent; see ``made_beside``."""
    with made_beside(Path(path), flush=flush) as partial, open(partial, "wb") as file:
        yield file


def flush_to_disk(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":  # there folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
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


def checksum(parts: Iterable) -> int:
    """CRC-32C over bytes and contiguous arrays, one after the other."""
    return functools.reduce(google_crc32c.extend, parts, 0)


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
