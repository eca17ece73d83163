"""Stores on object storage: ``s3://bucket/path/store.zarr``, read through a local cache.

The description of a store is downloaded when it is opened, and each shard when it is first read;
from then on it is a memory map. A cache belongs to one version of the store. docs/stores.md names
the environment variables.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs

from ...errors import StoreError
from ...files import write_atomically
from .layout import PARAMETERS
from .names import NAME_ARRAYS
from .zarr import ZarrLayout

__all__ = ["RemoteZarrLayout", "is_url"]

PART = 8 * 2**20  # bytes per request; many requests run in parallel and are retried
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
INSTANCE_METADATA = "169.254.169.254"  # where credentials are looked for when none are set


def is_url(path: str | Path) -> bool:
    """Whether a store's path is an address on object storage."""
    return "://" in str(path)


class RemoteZarrLayout(ZarrLayout):
    """A complete Zarr store on object storage.

    Several processes may download the same shard at once: each writes a file of its own and renames
    it. Every process opens the store itself; a fork must not inherit it.

    Raises:
        StoreError: the address is not that of a Zarr store, obstore is not installed, or a request
            failed.
    """

    def __init__(self, url: str):
        if not url.startswith("s3://"):
            raise StoreError(f"{url}: expected a path or an address s3://bucket/path")
        if url.endswith((".h5", ".hdf5")):
            raise StoreError(
                f"{url}: on object storage only Zarr stores are read; copy it to a file system, or "
                "export it with --format zarr"
            )
        try:
            import obstore
        except ModuleNotFoundError as error:
            raise StoreError(f"{url}: needs obstore; pip install hfnet-distill[s3]") from error
        self.url, self._obstore = url.rstrip("/"), obstore
        plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
        options = {"allow_http": True} if plain else {}
        with self._explained():
            self._bucket = obstore.store.from_url(self.url, client_options=options)
            version = [self._head("zarr.json"), self._head("name/c/0"), self._head("complete/c/0")]
        digest = hashlib.sha256(repr((self.url, version)).encode()).hexdigest()[:24]
        chosen = os.environ.get("HFNET_DISTILL_CACHE")
        cache = Path(chosen) if chosen else platformdirs.user_cache_path("hfnet-distill")
        super().__init__(cache / "stores" / digest)
        for key in self._description():
            self._fetch(key)
        self._fetched: set[tuple[str, int]] = set()

    def _head(self, key: str) -> tuple:
        try:
            found = self._obstore.head(self._bucket, key)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url}: no complete Zarr store there ({key} is missing), or no such bucket; "
                "upload a store after its export has ended"
            ) from error
        return found["size"], found["e_tag"], found["last_modified"].isoformat()

    def _description(self) -> list[str]:
        """The keys of everything that is not a shard."""
        with self._explained():
            folders = self._obstore.list_with_delimiter(self._bucket, "")["common_prefixes"]
            names = {folder.rsplit("/", 1)[-1] for folder in folders}
            whole = names & {"name", *NAME_ARRAYS, PARAMETERS}
            pages = [page for name in whole for page in self._obstore.list(self._bucket, name)]
        keys = [entry["path"] for page in pages for entry in page]
        return ["zarr.json", "complete/c/0", *keys, *(f"{name}/zarr.json" for name in names)]

    def _fetch(self, key: str) -> None:
        path = self.path / key
        if path.exists():
            return
        with self._explained():
            size = self._obstore.head(self._bucket, key)["size"]
            starts = [*range(0, size, PART)]
            ends = [*starts[1:], size]
            parts = self._obstore.get_ranges(
                self._bucket, key, starts=starts, ends=ends, coalesce=0
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, *map(memoryview, parts))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            reason = str(error).split(": Error")[0]
            raise StoreError(f"{self.url}: {reason}; upload the store again") from error
        except self._obstore.exceptions.BaseError as error:
            reason = str(error).splitlines()[0]
            advice = "check the address and the AWS_ variables"
            if INSTANCE_METADATA in reason:
                advice = "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise StoreError(
                f"{self.url}: object storage does not give it ({reason}); {advice}"
            ) from error

    def read(self, field: str, index: int) -> np.ndarray:
        shard = field, index // self.schema.shard_size
        if shard not in self._fetched:
            self._fetch(self._shard_path(*shard).relative_to(self.path).as_posix())
            self._fetched.add(shard)
        return super().read(field, index)
