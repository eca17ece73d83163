"""Stores on object storage: ``s3://bucket/path/store.zarr``, read through a folder of this machine.

The description of a store is fetched when it is opened and each shard when it is first read; from
then on it is a memory map like any other. A cache belongs to one version of the store: one that was
uploaded anew is fetched anew. Credentials and addresses come from the usual environment variables
(``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``).
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs

from data.files import write_atomically
from data.layouts import PARAMETERS, ZarrLayout
from data.schema import Schema, StoreError

__all__ = ["RemoteZarrLayout", "is_url"]


def is_url(path: str | Path) -> bool:
    """Whether a store's path is an address on object storage."""
    return "://" in str(path)


class RemoteZarrLayout(ZarrLayout):
    """A complete Zarr store on object storage.

    Several processes may fetch the same shard at once: each writes it beside and renames it. To be
    opened anew in a process of its own, never inherited by a fork.

    Raises:
        StoreError: obstore is not installed, or the storage does not give what is asked for.
    """

    def __init__(self, url: str):
        try:
            import obstore
        except ModuleNotFoundError as error:
            raise StoreError(f"{url}: needs obstore; pip install hfnet-distill[s3]") from error
        self.url, self._obstore = url.rstrip("/"), obstore
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        with self._explained():
            self._bucket = obstore.store.from_url(self.url, client_options={"allow_http": plain})
            version = [self._head("zarr.json"), self._head("name/c/0"), self._head("complete/c/0")]
        digest = hashlib.sha256(repr((self.url, version)).encode()).hexdigest()[:24]
        super().__init__(platformdirs.user_cache_path("hfnet-distill") / "stores" / digest)
        with self._explained():
            self._fetch_description()

    def _head(self, key: str) -> tuple:
        try:
            found = self._obstore.head(self._bucket, key)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url}: no complete Zarr store there ({key} is missing); upload one after "
                "its export has ended"
            ) from error
        return found["size"], found["e_tag"], found["last_modified"].isoformat()

    def _fetch_description(self) -> None:
        self._fetch("zarr.json")
        self._fetch("complete/c/0")
        for folder in self._obstore.list_with_delimiter(self._bucket, "")["common_prefixes"]:
            name = folder.rsplit("/", 1)[-1]
            if name in ("name", PARAMETERS):
                for objects in self._obstore.list(self._bucket, name):
                    for entry in objects:
                        self._fetch(entry["path"])
            else:
                self._fetch(f"{name}/zarr.json")

    def _fetch(self, key: str) -> None:
        path = self.path / key
        if not path.exists():
            data = self._obstore.get(self._bucket, key).bytes()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, memoryview(data))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, FileNotFoundError) as error:
            raise StoreError(
                f"{self.url}: object storage does not give it ({str(error).splitlines()[0]}); "
                "check the address and the AWS_ variables"
            ) from error

    def bind(self, schema: Schema) -> None:
        super().bind(schema)
        self._fetched: set[tuple[str, int]] = set()

    def read(self, field: str, index: int) -> np.ndarray:
        number = index // self.schema.shard_size
        if (field, number) not in self._fetched:
            key = self._shard_path(field, number).relative_to(self.path).as_posix()
            with self._explained():
                self._fetch(key)
            self._fetched.add((field, number))
        return super().read(field, index)
