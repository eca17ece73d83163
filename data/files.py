"""Files that are whole or absent."""

import os
import uuid
from pathlib import Path

__all__ = ["beside", "write_atomically"]


def beside(path: Path) -> Path:
    """Where a file or folder is written before it is renamed to ``path``."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def write_atomically(path: str | Path, *parts, flush: bool = False) -> None:
    """Write buffers one after the other to a file beside its place, then rename it.

    Args:
        flush: wait until the bytes are on the disk, so that a power cut cannot lose them.
    """
    path = Path(path)
    partial = beside(path)
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
