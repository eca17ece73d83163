"""export-teacher: what it writes, how it goes on, what it refuses."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.config import override, shipped_settings
from hfnet_distill.data.images import fit_image, read_image
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.networks.silk import SiLK
from hfnet_distill.networks.superpoint import SuperPoint
from hfnet_distill.networks.weights import VARIABLE, load_arrays, load_strictly
from hfnet_distill.teacher_export.cli import export_teacher
from hfnet_distill.teacher_export.export import with_shard_size

SMALL = ("--size", "64x48", "--batch-size", "2", "--quiet", "--device", "cpu")


def digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    parts = [str(file.relative_to(path)).encode() + file.read_bytes() for file in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def small_shards(tmp_path) -> Path:
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    path = tmp_path / "small.toml"
    path.write_text(text.replace('shard_size = "auto"', "shard_size = 2"))
    return path


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_the_store_holds_what_the_network_says(run_command, photographs, tmp_path, format):
    store = tmp_path / "store"
    fields = ("--fields", "score_map,descriptor_map,sparse")
    run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", store),
        *("--format", format, *fields, *SMALL),
    )
    store = RecordStore.open(store).require_complete()
    assert store.names == ["0.png", "1.png", "2.png", "3.png", "4.png", "walk/5.png"]

    network = SuperPoint().eval()
    path = Path(os.environ[VARIABLE]) / "superpoint_v1.npz"
    load_strictly(network, load_arrays(path)[0], path)
    image = fit_image(read_image(photographs / "walk/5.png", channels=1), (64, 48))
    with torch.inference_mode():
        logits, descriptors = network(torch.from_numpy(image / np.float32(255))[None, None])
    record = store.record("walk/5.png")
    cells = SuperPoint.cell_distribution(logits)[0].numpy()
    np.testing.assert_allclose(record["score_map"], cells, atol=1e-3)
    np.testing.assert_allclose(record["descriptor_map"], descriptors[0], atol=1e-3)
    assert len(record["keypoints"]) == len(record["scores"]) == len(record["descriptors"]) > 0
    assert (np.diff(record["scores"]) <= 0).all()
    norms = np.linalg.norm(record["descriptors"].astype(np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-2)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_killed_export_goes_on_to_the_same_bytes(
    run_command, synthetic_weights, photographs, tmp_path, format
):
    config = small_shards(tmp_path)  # of two writers the second one may be done first
    config.write_text(config.read_text().replace("writers = 2", "writers = 1"))
    arguments = [
        *("--model", "superpoint", "--images", str(photographs), "--format", format),
        *("--config", str(config), *SMALL),
    ]
    run_command(export_teacher, *arguments, "--store", tmp_path / "whole")
    # A child that kills itself, as a power cut would, once its second shard is on the disk.
    code = (
        "import os, signal\n"
        "from hfnet_distill.data.stores.store import RecordStore\n"
        "from hfnet_distill.teacher_export.cli import export_teacher\n"
        "write = RecordStore.write_shard\n"
        "def die(store, number, arrays):\n"
        "    write(store, number, arrays)\n"
        "    if number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RecordStore.write_shard = die\n"
        "export_teacher()\n"
    )
    command = [sys.executable, "-c", code, *arguments, "--store", str(tmp_path / "killed")]
    environment = {**os.environ, VARIABLE: str(synthetic_weights)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert RecordStore.open(tmp_path / "killed").pending_shards() == [2]
    run_command(export_teacher, *arguments, "--store", tmp_path / "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


@pytest.mark.parametrize("model", ["superpoint", "silk"])
def test_batches_cross_shards(run_command, photographs, tmp_path, monkeypatch, model):
    """A shard has the same bytes whatever is filled with it, though SiLK's scores depend on the
    batch: by the last bit, where vectors of eight numbers end."""
    seen, network = [], {"superpoint": SuperPoint, "silk": SiLK}[model]
    run = network.run

    def count(network, images):
        seen.append(len(images))
        return run(network, images)

    monkeypatch.setattr(network, "run", count)
    arguments = [
        *("--model", model, "--images", photographs, "--config", small_shards(tmp_path)),
        *("--size", "72x56", "--batch-size", 5, "--quiet", "--device", "cpu"),
    ]
    for name in ("whole", "resumed"):
        run_command(export_teacher, *arguments, "--store", tmp_path / name)
    assert seen == [5, 1, 5, 1]
    for number in range(3):
        RecordStore.open(tmp_path / "resumed").reopen_shards([number])
        run_command(export_teacher, *arguments, "--store", tmp_path / "resumed")
    assert seen == [5, 1, 5, 1, 5, 5, 5, 1]
    assert digest(tmp_path / "resumed") == digest(tmp_path / "whole")


def test_threads_change_no_byte(run_command, photographs, tmp_path):
    config = small_shards(tmp_path)
    text = config.read_text()
    export(run_command, photographs, tmp_path / "store", "--config", config, code=0)
    before = digest(tmp_path / "store")
    config.write_text(
        text.replace("decoders = 4", "decoders = 1").replace("writers = 2", "writers = 4")
    )
    RecordStore.open(tmp_path / "store").reopen_shards([0, 2])
    export(run_command, photographs, tmp_path / "store", "--config", config, code=0)
    assert digest(tmp_path / "store") == before


def test_memory_that_runs_out(run_command, photographs, tmp_path, monkeypatch):
    def fail(network, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SuperPoint, "run", fail)
    output = export(run_command, photographs, tmp_path / "store")
    assert "memory ran out; lower --batch-size, --size or the number of workers" in output


def test_an_interrupted_export_says_how_to_go_on(synthetic_weights, photographs, tmp_path):
    code = (
        "import time\n"
        "from hfnet_distill.data.stores.store import RecordStore\n"
        "from hfnet_distill.teacher_export.cli import export_teacher\n"
        "def wait(store, number, arrays):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(1)\n"
        "RecordStore.write_shard = wait\n"
        "export_teacher()\n"
    )
    command = [
        *(sys.executable, "-c", code, "--model", "superpoint", "--images", str(photographs)),
        *("--store", str(tmp_path / "store"), "--config", str(small_shards(tmp_path)), *SMALL),
    ]
    environment = {**os.environ, VARIABLE: str(synthetic_weights)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "run the same command again" in errors
    assert "Traceback" not in errors


def export(run_command, photographs, store, *arguments, code=1) -> str:
    return run_command(
        export_teacher,
        *("--model", "superpoint", "--images", photographs, "--store", store, *SMALL),
        *arguments,
        code=code,
    )


def test_no_photographs(run_command, tmp_path):
    (tmp_path / "empty").mkdir()
    output = export(run_command, tmp_path / "empty", tmp_path / "store")
    assert "no photographs found" in output


def test_an_unreadable_photograph_is_named_or_skipped(run_command, photographs, tmp_path):
    (photographs / "2.png").write_bytes(b"not a photograph")
    output = export(run_command, photographs, tmp_path / "store")
    assert "2.png: not a readable photograph" in output
    assert "--skip-unreadable" in output
    assert not (tmp_path / "store").exists()
    output = export(run_command, photographs, tmp_path / "store", "--skip-unreadable", code=0)
    assert "skipped:" in output
    assert len(RecordStore.open(tmp_path / "store").require_complete()) == 5


def test_shards_grow_with_the_collection(tmp_path):
    settings = shipped_settings().export
    sizes = {6: 16, 640_000: 16, 640_001: 32, 10_000_000: 256}
    for records, size in sizes.items():
        found = with_shard_size(settings, tmp_path / "store", records, overwrite=False)
        assert found.shard_size == size
    asked = override(settings, shard_size=7)
    assert with_shard_size(asked, tmp_path / "store", 10_000_000, overwrite=False) == asked


def test_a_store_keeps_its_shard_size(run_command, photographs, tmp_path):
    store, small = tmp_path / "store", ("--config", small_shards(tmp_path))
    export(run_command, photographs, store, *small, code=0)
    export(run_command, photographs, store, code=0)
    assert RecordStore.open(store).schema.shard_size == 2
    export(run_command, photographs, store, "--overwrite", code=0)
    assert RecordStore.open(store).schema.shard_size == 16
    assert "shard_size is 16 there and 2 here" in export(run_command, photographs, store, *small)


def test_small_photographs_are_counted(run_command, photographs, tmp_path):
    arguments = ("--images", photographs, "--store", tmp_path / "store", "--device", "cpu")
    command = ("--model", "superpoint", *arguments, "--size", "640x480", "--limit", "1")
    output = run_command(export_teacher, *command)
    assert "1 of 1 photographs are smaller than 640x480" in output


def test_weights_of_another_network(run_command, photographs, tmp_path):
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((3, 3))})
    output = export(
        run_command, photographs, tmp_path / "store", "--weights", tmp_path / "other.npz"
    )
    assert "not weights of SuperPoint: tensor conv1a.weight is missing" in output
    (tmp_path / "torn.pth").write_bytes(b"PK\3\4 torn")
    output = export(
        run_command, photographs, tmp_path / "store", "--weights", tmp_path / "torn.pth"
    )
    assert "not readable as weights" in output


def test_missing_weights(run_command, photographs, tmp_path, monkeypatch):
    output = export(run_command, photographs, tmp_path / "store", "--weights", tmp_path / "no.pth")
    assert "no such weights file" in output
    assert "non-commercial" in output

    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(
        "hfnet_distill.networks.weights.platformdirs.user_cache_path", lambda _: tmp_path
    )
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    output = export(run_command, photographs, tmp_path / "store")
    for part in ("download failed (no network)", "superpoint_v1.pth", "non-commercial", VARIABLE):
        assert part in output


def test_a_download_is_verified(run_command, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    monkeypatch.setattr(
        "hfnet_distill.networks.weights.platformdirs.user_cache_path", lambda _: tmp_path
    )
    (tmp_path / "download").write_bytes(b"something else")
    official = replace(SuperPoint.official, url=(tmp_path / "download").as_uri())
    monkeypatch.setattr(SuperPoint, "official", official)
    output = export(run_command, photographs, tmp_path / "store")
    assert "expected git:107a444ca318d487390137d619d49f2f0a3b1ad8" in output
    assert not (tmp_path / "superpoint_v1.pth").exists()


def test_a_store_with_other_settings(run_command, photographs, tmp_path):
    export(run_command, photographs, tmp_path / "store", code=0)
    output = export(run_command, photographs, tmp_path / "store", "--size", "96x48")
    assert "image_size is (64, 48) there and (96, 48) here" in output
    output = export(run_command, photographs, tmp_path / "store", "--format", "hdf5")
    assert "is zarr, hdf5 was asked for" in output
    export(run_command, photographs, tmp_path / "store", "--size", "96x48", "--overwrite", code=0)
    assert RecordStore.open(tmp_path / "store").schema.image_size == (96, 48)


def test_overwrite_spares_what_is_no_store(run_command, photographs, tmp_path):
    output = export(run_command, photographs, photographs, "--overwrite")
    assert "not a store, so it is not overwritten" in output
    assert (photographs / "0.png").exists()


def test_a_field_the_teacher_lacks(run_command, photographs, tmp_path):
    store = tmp_path / "store"
    output = export(run_command, photographs, store, "--fields", "global_descriptor")
    assert "superpoint has no such field; it offers score_map, descriptor_map, sparse" in output
    assert not store.exists()


def test_a_store_that_cannot_fit_is_refused_before_it_starts(
    run_command, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    output = export(run_command, photographs, tmp_path / "store")
    assert "6 photographs need" in output


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_disk_that_fills_up(run_command, photographs, tmp_path, monkeypatch, format):
    arguments = ("--config", small_shards(tmp_path), "--format", format)
    write = RecordStore.write_shard

    def full(store, number, arrays):
        if number == 1:
            raise OSError(28, "No space left on device", str(store.path))
        write(store, number, arrays)

    monkeypatch.setattr(RecordStore, "write_shard", full)
    output = export(run_command, photographs, tmp_path / "store", *arguments)
    assert "No space left on device; free some space" in output
    monkeypatch.setattr(RecordStore, "write_shard", write)
    assert 0 not in RecordStore.open(tmp_path / "store").pending_shards()
    export(run_command, photographs, tmp_path / "store", *arguments, code=0)
    assert RecordStore.open(tmp_path / "store").complete


def test_values_of_12_bits_in_a_16_bit_file_are_noticed(run_command, tmp_path):
    (tmp_path / "dark").mkdir()
    image = np.random.default_rng(0).integers(0, 4096, (96, 128)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "dark" / "a.png"), image)
    cv2.imwrite(str(tmp_path / "dark" / "b.png"), 16 * image)
    output = run_command(
        export_teacher,
        *("--model", "superpoint", "--images", tmp_path / "dark", "--store", tmp_path / "store"),
        *("--size", "64x48", "--device", "cpu"),
    )
    assert "1 of 2 photographs have no pixel brighter than a sixteenth of white" in output
