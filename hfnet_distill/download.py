"""Downloads: resumed after an interruption, verified, whole or absent."""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from .errors import DownloadError
from .files import file_digest

__all__ = ["download"]

BLOCK = 2**20
TIMEOUT = 30


def download(
    url: str, path: Path, digest: str, *, advance: Callable[[int], None] = lambda count: None
) -> Path:
    """Download a file to ``path``, unless it is there already.

    What was received so far is kept beside it, ending in ``.partial``, and is not requested again.
    Of several processes one downloads and the others wait.

    Args:
        digest: in hexadecimal: ``sha256:...``, or ``git:...``, the id under which a repository
            keeps the file (SHA-1 over git's blob header and the bytes).
        advance: called with the number of bytes received, those of an earlier attempt included.

    Raises:
        DownloadError: the download failed or was interrupted, or gave unexpected bytes, which are
            removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_file():
            return path
        try:
            _fetch(url, partial, advance)
        except OSError as error:
            raise DownloadError(f"download failed ({getattr(error, 'reason', error)})") from error
        kind = digest.partition(":")[0]
        if (found := f"{kind}:{file_digest(partial, kind)}") != digest:
            size = partial.stat().st_size
            partial.unlink()
            raise DownloadError(
                f"{url} gave {size} bytes with the digest {found}, expected {digest}"
            )
        return partial.replace(path)


def _fetch(url: str, partial: Path, advance: Callable[[int], None]) -> None:
    done = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing is missing; the digest decides whether it is right
            return
        raise
    with response:
        resumed = done if response.status == 206 else 0
        expected = response.headers.get("Content-Length")
        came = resumed
        advance(resumed)
        with open(partial, "ab" if resumed else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                came += len(block)
                advance(len(block))
    if expected is not None and came < resumed + int(expected):
        raise DownloadError(
            f"it broke off after {came} of {resumed + int(expected)} bytes; run the same command "
            "again to go on"
        )
