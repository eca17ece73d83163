"""The loader: the same batches in whichever process, no copy of a store in any of them."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training import make_dataset, store  # noqa: F401  (a fixture)
from torch.utils.data import Dataset

from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.errors import InputError, WorkerError
from hfnet_distill.student.loader import Batches, _Loader, check_shared_memory, make_loader

RECORD = 2**22


def load(dataset, num_workers: int = 0, **options) -> list[dict[str, torch.Tensor]]:
    batches = Batches(len(dataset), 2, epochs=2, seed=3, **options)
    return list(make_loader(dataset, batches, num_workers))


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_follow_from_seed_and_step_alone(store, photographs):  # noqa: F811
    dataset = make_dataset(store, photographs, crop=(24, 16), photometric=0.5, seed=3)
    whole = load(dataset)
    assert len(whole) == 6
    assert_same(load(dataset, num_workers=2), whole)
    assert_same(load(dataset, num_workers=1, start=4), whole[4:])
    parts = [load(dataset, part=(number, 2)) for number in range(2)]
    together = [
        {name: torch.cat([first[name], second[name]]) for name in first}
        for first, second in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


def test_batches_are_pinned_for_a_gpu(store, photographs, monkeypatch):  # noqa: F811
    dataset = make_dataset(store, photographs)
    for present in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda present=present: present)
        assert make_loader(dataset, [[(0, 0)]], 0).pin_memory is present


def test_shared_memory_that_is_too_small_is_named(store, photographs, monkeypatch):  # noqa: F811
    dataset = make_dataset(store, photographs, num_workers=4)
    check_shared_memory(dataset, dataset)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    alone = make_dataset(store, photographs, num_workers=0)
    check_shared_memory(alone, alone)
    with pytest.raises(
        InputError, match=r"0 MB are free, .* 4 loader processes take up to \d MB; .*"
    ):
        check_shared_memory(dataset, dataset)


class Reading(Dataset):
    """Reads a whole store per item; says how much of the process's own memory that took."""

    targets = SimpleNamespace(stores=())

    def __init__(self, store: RecordStore):  # noqa: F811
        self.store = store

    def __getitem__(self, key):
        before = own_memory()
        arrays = [self.store.read(name, "map") for name in self.store.names]
        total = sum(int(array.max()) for array in arrays)
        return {"own": own_memory() - before, "mapped": all(map(is_mapped, arrays)), "max": total}


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def is_mapped(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None and not array.flags.writeable


@pytest.fixture(params=["zarr", "hdf5"])
def large_store(request, tmp_path) -> RecordStore:
    """Twelve records of 4 MiB."""
    schema = Schema(
        teacher="toy",
        weights="0" * 64,
        settings={},
        image_size=(64, 48),
        fields={"map": Field(shape=(RECORD,), dtype="uint8")},
        shard_size=4,
        compression="none",
        software="0",
    )
    names = [str(number) for number in range(12)]
    store = RecordStore.create(tmp_path / "store", schema, names, request.param)  # noqa: F811
    for number in range(store.num_shards):
        store.write_shard(number, {"map": np.full((4, RECORD), number, np.uint8)})
    store.finish()
    return store


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_file(large_store):
    dataset = Reading(large_store)
    assert len(pickle.dumps(dataset)) < 1000
    for batch in make_loader(dataset, [[0], [1], [2], [3]], 2):
        assert batch["max"] == 4 * (0 + 1 + 2)
        assert batch["mapped"]
        assert batch["own"] < RECORD


class Interrupted(Dataset):
    """Items that arrive although Ctrl-C is pressed while they are made."""

    targets = SimpleNamespace(stores=())

    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGINT)
        return {"key": key}


def test_an_interrupt_is_left_to_the_loop():
    keys = [batch["key"].item() for batch in make_loader(Interrupted(), [[0], [1], [2]], 2)]
    assert keys == [0, 1, 2]


def test_an_error_in_a_worker_ends_the_command_with_a_sentence():
    code = """
import click
from hfnet_distill.console import shared_options
from hfnet_distill.errors import InputError
from hfnet_distill.student.loader import make_loader

class Targets:
    stores = ()

class Damaged:
    targets = Targets()

    def __getitem__(self, key):
        raise InputError("p2.png: not a readable photograph")

@click.command()
@shared_options
def command(**flags):
    list(make_loader(Damaged(), [[0], [1]], 1))

command()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stderr == "Error: p2.png: not a readable photograph\n"
    assert done.returncode == 1


def test_a_loader_killed_while_it_sends_is_said(monkeypatch):
    def reset(self):
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", reset)
    with pytest.raises(WorkerError, match="a loader's process was killed"):
        next(iter(_Loader([1])))
