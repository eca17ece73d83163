"""The full sequences of HPatches (Balntas et al., CVPR 2017), fetched and unpacked."""

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...download import download
from ...errors import AlreadyExistsError, DownloadError, InputError
from ...files import beside
from .hpatches import HPatches

__all__ = ["ARCHIVE", "Archive", "fetch_hpatches"]


@dataclass(frozen=True)
class Archive:
    """A released archive: its size in bytes, its digest as ``download`` takes it, and how many
    sequences it holds."""

    url: str
    size: int
    digest: str
    sequences: int


ARCHIVE = Archive(
    url="https://huggingface.co/datasets/vbalnt/hpatches/resolve/main/hpatches-sequences-release.zip",
    size=1_279_545_572,
    # As projects that use this file publish it, and as the host registers it, they say; the
    # authors give none.
    digest="sha256:99cf7e1ca167896eb4ca2fe3d903beff6566243a3c0c8e07a13a2596648ad670",
    sequences=116,
)
MEMBER = re.compile(r"(?:[^/]+/)*([iv]_[\w-]+)/([1-6]\.\w+|H_1_[2-6])")
"""A sequence's file; whatever else the archive holds is left in it."""


def fetch_hpatches(
    root: Path, archive: Archive = ARCHIVE, *, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Make ``root`` the full HPatches, unless it is there.

    The archive is fetched beside ``root``, verified, unpacked beside it, looked through and only
    then renamed; it is removed in the end. ``advance`` is called with the bytes that came.

    Raises:
        AlreadyExistsError: ``root`` is there and is not the full HPatches.
        DownloadError: see ``data.download``; or too little space, said before the first byte.
        InputError, NotFoundError: the archive holds something else.
    """
    if root.exists():
        found = len(HPatches(root).sequences)
        if found != archive.sequences:
            raise AlreadyExistsError(
                f"{root} exists already, with {found} sequences instead of {archive.sequences}; "
                "remove it or name another folder"
            )
        return
    path = root.with_name(f"{root.name}.zip")
    root.parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(root.parent).free, 3 * archive.size
    if not path.is_file() and free < needed:
        raise DownloadError(
            f"{root.parent}: {free / 1e9:.1f} GB are free; archive and images take up to "
            f"{needed / 1e9:.1f} GB"
        )
    try:
        download(archive.url, path, archive.digest, advance=advance)
    except DownloadError as error:
        raise DownloadError(
            f"HPatches: {error}; or unpack {archive.url} yourself and name its folder with --root"
        ) from error
    partial = beside(root)
    try:
        _unpack(path, partial)
        if (found := len(HPatches(partial).sequences)) != archive.sequences:
            raise InputError(f"{path}: holds {found} sequences, expected {archive.sequences}")
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    path.unlink()
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of sequences to ``folder/SEQUENCE/FILE``: no name leads elsewhere."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if match := MEMBER.fullmatch(member.filename):
                target = folder / match[1] / match[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
