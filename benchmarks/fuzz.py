"""Damaged files: ten thousand random flips and truncations, each read as a command would read it.

    python benchmarks/fuzz.py --json fuzz.json
    python benchmarks/fuzz.py --cases 2000 --only checkpoint

A case changes a bit or a few bytes of a file, or cuts it off. What may come of it: an error that
the commands print as a sentence; the answer of the undamaged file, where the byte did not matter;
for a record of a store another answer that --verify finds; for a text, or a file of another program
without checksums, another value that it may hold as well. Faults are all else: other exceptions,
crashes, hangs, other answers. Cases run in a process of their own with a limit to its time and
memory.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import h5py
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hfnet_distill.config import load_settings, shipped_settings
from hfnet_distill.data.features import image_names, open_hdf5, read_features
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.schema import Field, Schema
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.errors import DistillError
from hfnet_distill.networks.registry import load, load_checkpoint

LIMIT = 60
"""Seconds after which a case hangs."""
MEMORY = 8 << 30
"""Bytes of address space: what takes more was not looked at before it was believed."""
SHOWN = 40
"""Faults that are printed; all of them are in the JSON."""
KINDS = ("error", "same answer", "found by --verify", "another value", "fault")


@dataclass(frozen=True)
class Subject:
    """A kind of file to be damaged.

    Attributes:
        make: writes it into a folder.
        read: the folder -> what the reader says.
        files: a pattern of those to be damaged in the folder.
        verify: the folder -> whether damage is found that reading does not look for.
        free: nothing in the file could tell another value from the one that was written.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    files: str
    verify: Callable[[Path], bool] = lambda folder: False
    free: bool = False


def _schema(compression: str) -> Schema:
    fields = {
        "score_map": Field(shape=(5, 3, 4), dtype="float16"),
        "global_descriptor": Field(shape=(8,), dtype="float16"),
    }
    return Schema(
        teacher="none",
        weights="0" * 64,
        settings={"top_k": 7},
        image_size=(32, 24),
        fields=fields,
        shard_size=3,
        compression=compression,
        software="0",
    )


def _make_store(folder: Path, format: str, compression: str = "none") -> None:
    rng, schema = np.random.default_rng(0), _schema(compression)
    names = [f"walk/{number}.jpg" for number in range(8)]
    words = {"words": rng.random((4, 8), np.float32)}
    store = RecordStore.create(folder / "store", schema, names, format, words)
    for number in range(store.num_shards):
        count = len(store.shard(number))
        arrays = {n: rng.random((count, *f.shape)).astype("f2") for n, f in schema.fields.items()}
        store.write_shard(number, arrays)
    store.finish()


def _read_store(folder: Path) -> object:
    store = RecordStore.open(folder / "store").require_complete()
    records = {
        name: {key: array.tobytes() for key, array in store.record(name).items()}
        for name in store.names
    }
    words = {name: array.tobytes() for name, array in store.parameters.items()}
    return store.schema.model_dump(), store.names, records, words


def _verify_store(folder: Path) -> bool:
    store = RecordStore.open(folder / "store")
    return any(store.corrupt_records(number) for number in range(store.num_shards))


def _make_checkpoint(folder: Path) -> None:
    from hfnet_distill.networks.light import Light, LightConfig
    from hfnet_distill.networks.registry import save_checkpoint

    torch.manual_seed(0)
    student = Light(LightConfig(channels=(8, 8, 16, 16, 16), descriptor_dim=16, global_dim=8))
    with torch.no_grad():
        student.pixel_head[1].weight *= 30
    save_checkpoint(folder / "best.safetensors", student, {"step": 3})


def _read_checkpoint(folder: Path) -> object:
    network, description = load_checkpoint(folder / "best.safetensors")
    tensors = {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}
    return network.name, network.config, tensors, description


def _photographs(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "photos" / "walk").mkdir(parents=True)
    for name in ("a.png", "walk/b.png"):
        coarse = rng.integers(0, 255, (9, 12)).astype(np.uint8)
        image = cv2.resize(coarse, (96, 72), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "photos" / name), image)
    return folder / "photos"


def _make_features(folder: Path) -> None:
    from hfnet_distill.deployment.extract import extract

    _make_checkpoint(folder)
    choice = KeypointChoice.of(shipped_settings().predict, 20)
    photographs = _photographs(folder)
    extract(str(folder), photographs, folder / "features.h5", choice=choice, quiet=True)


def _make_foreign_features(folder: Path) -> None:
    """As hloc writes them."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "features.h5", "w") as file:
        for name in ("a.png", "walk/b.png"):
            group = file.create_group(name)
            group["keypoints"] = rng.random((20, 2)).astype("f4") * 90
            group["scores"] = rng.random(20).astype("f4")
            group["descriptors"] = rng.random((16, 20)).astype("f2")
            group["image_size"] = np.array([96, 72])


def _read_features(folder: Path) -> object:
    with open_hdf5(folder / "features.h5") as file:
        found = {name: read_features(file, name) for name in image_names(file)}
    return {
        name: [v.tobytes() if isinstance(v, np.ndarray) else v for v in vars(each).values()]
        for name, each in found.items()
    }


def _make_settings(folder: Path) -> None:
    shipped = Path(__file__).parent.parent / "pipeline.toml"
    shutil.copy(shipped, folder / "settings.toml")


def _make_homography(folder: Path) -> None:
    sequence = folder / "v_a"
    sequence.mkdir()
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(sequence / name), np.zeros((8, 8), np.uint8))
    (sequence / "H_1_2").write_text("0.9 0.01 3.5\n-0.02 1.1 -2\n1e-5 2e-6 1\n")


def _read_homography(folder: Path) -> object:
    from hfnet_distill.evaluation.datasets.hpatches import HPatches

    return [pair.H_0to1.tobytes() for pair in HPatches(folder).pairs]


def _make_onnx(folder: Path) -> None:
    from hfnet_distill.data.images import read_image
    from hfnet_distill.deployment.onnx import export_onnx

    _make_checkpoint(folder)
    image = read_image(_photographs(folder) / "a.png", channels=1)
    choice = KeypointChoice.of(shipped_settings().predict, 20)
    network = load(folder, device="cpu")
    export_onnx(network, "maps", folder / "student.onnx", choice=choice, photographs=[image])


def _read_onnx(folder: Path) -> object:
    network = load(f"onnx:{folder / 'student.onnx'}")
    image = cv2.imread(str(folder / "photos" / "a.png"), cv2.IMREAD_GRAYSCALE)
    found = network.extract(image, max_num_keypoints=20)
    told = network.channels, network.descriptor_dim, network.global_dim, network.exported_choice
    return told, [v.tobytes() if isinstance(v, np.ndarray) else v for v in vars(found).values()]


def _store(*how: str) -> Subject:
    files = "store/**/*" if how[0] == "zarr" else "store"
    return Subject(lambda folder: _make_store(folder, *how), _read_store, files, _verify_store)


SUBJECTS = {
    "zarr": _store("zarr"),
    "zarr-zstd": _store("zarr", "zstd"),
    "hdf5": _store("hdf5"),
    "hdf5-zstd": _store("hdf5", "zstd"),
    "checkpoint": Subject(_make_checkpoint, _read_checkpoint, "best.safetensors"),
    "features": Subject(_make_features, _read_features, "features.h5"),
    "features-hloc": Subject(_make_foreign_features, _read_features, "features.h5", free=True),
    "settings": Subject(
        _make_settings, lambda f: load_settings(f / "settings.toml"), "settings.toml", free=True
    ),
    "homography": Subject(_make_homography, _read_homography, "v_a/H_1_2", free=True),
    "onnx": Subject(_make_onnx, _read_onnx, "student.onnx"),
}


def damage(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The data with one bit or up to eight bytes changed, or without its end; and what was done."""
    place = rng.randrange(len(data))
    kind = rng.random()
    if kind < 0.25:
        return data[:place], f"cut off at {place} of {len(data)}"
    if kind < 0.75:
        bit = 1 << rng.randrange(8)
        changed = bytes([data[place] ^ bit])
    else:
        changed = rng.randbytes(min(rng.randint(1, 8), len(data) - place))
    after = data[:place] + changed + data[place + len(changed) :]
    return after, f"{changed.hex()} for {data[place : place + len(changed)].hex()} at {place}"


def run_cases(subject: Subject, folder: Path, seed: str, numbers: range, out) -> None:
    """In a process of its own: send (what was done, kind, what was wrong) of each case."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    right = subject.read(folder)
    files = sorted(path for path in folder.glob(subject.files) if path.is_file())
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        path = rng.choice(files)
        whole = path.read_bytes()
        damaged, done = damage(whole, rng)
        out.send(f"{path.relative_to(folder)}: {done}")
        path.write_bytes(damaged)
        out.send(one_case(subject, folder, right))
        path.write_bytes(whole)


def one_case(subject: Subject, folder: Path, right: object) -> tuple[str, str]:
    try:
        if subject.read(folder) == right:
            return "same answer", ""
        if subject.free:
            return "another value", ""
        found = subject.verify(folder)
        return ("found by --verify", "") if found else ("fault", "another answer, without a word")
    except Exception as error:
        if isinstance(error, DistillError) or getattr(error, "errno", None):
            return "error", ""  # the commands print these as a sentence
        where = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(where) if "site-packages" not in f.filename), where[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        return "fault", f"{type(error).__name__} from {place}: {str(error)[:200]}"


def fuzz(name: str, cases: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """How many cases ended how, and what was wrong in each that is a fault."""
    subject, context = SUBJECTS[name], multiprocessing.get_context("fork")
    folder.mkdir()
    subject.make(folder)
    kinds, faults, number = Counter(), [], 0
    while number < cases:
        work = folder.with_name(f"{folder.name} {number}")
        shutil.copytree(folder, work)
        receiver, sender = context.Pipe(duplex=False)
        arguments = (subject, work, f"{seed} {name}", range(number, cases), sender)
        process = context.Process(target=run_cases, args=arguments)
        process.start()
        sender.close()
        while number < cases:
            done, (kind, wrong) = "", ("fault", "hangs")
            try:
                if receiver.poll(LIMIT):
                    done = receiver.recv()
                    if receiver.poll(LIMIT):
                        kind, wrong = receiver.recv()
            except EOFError:
                process.join()
                wrong = f"crash, exit code {process.exitcode}"
            kinds[kind] += 1
            number += 1
            if kind == "fault":
                faults.append(f"{name}, case {number - 1}, {done}: {wrong}")
            if wrong.startswith(("hangs", "crash")):
                break
        process.kill()
        process.join()
        shutil.rmtree(work)
    return kinds, faults


@click.command(context_settings={"show_default": True})
@click.option("--cases", type=click.IntRange(1), default=10_000, help="Of all kinds together.")
@click.option("--only", type=click.Choice(SUBJECTS), multiple=True, help="These kinds alone.")
@click.option("--seed", default=0)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
def main(cases: int, only: tuple[str, ...], seed: int, output: Path | None) -> None:
    """Damage files and read them; takes some minutes."""
    names = only or tuple(SUBJECTS)
    table = Table("file", "cases", *KINDS)
    results, everything = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            kinds, faults = fuzz(name, -(-cases // len(names)), seed, Path(temporary, name))
            table.add_row(name, *map(str, (kinds.total(), *(kinds[kind] for kind in KINDS))))
            results[name] = {kind: kinds[kind] for kind in KINDS} | {"faults": faults}
            everything += faults
    Console().print(table)
    for fault in everything[:SHOWN]:
        click.echo(fault)
    if output is not None:
        output.write_text(json.dumps(results, indent=2))
    if everything:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
