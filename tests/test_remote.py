"""Stores on object storage, against a real S3 server on this machine."""

import json
import multiprocessing
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from test_targets import CELLS, make_store, pixels
from test_training import store, train  # noqa: F401  (fixtures)

from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.errors import StoreError
from hfnet_distill.networks.registry import load
from hfnet_distill.teacher_export.cli import export_teacher

obstore = pytest.importorskip("obstore", reason="install hfnet-distill[s3]")
pytest.importorskip("moto.server", reason="install moto[server]")


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """``bucket(folder, "name")`` uploads a folder and returns its URL."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "HFNET_DISTILL_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    request = urllib.request.Request(f"{server}/bucket", method="PUT")
    urllib.request.urlopen(request).close()

    def upload(folder: Path, name: str) -> str:
        url = f"s3://bucket/{tmp_path.name}/{name}"
        remote = obstore.store.from_url(url, client_options={"allow_http": True})
        for path in folder.rglob("*"):
            if path.is_file():
                obstore.put(remote, path.relative_to(folder).as_posix(), path.read_bytes())
        return url

    return upload


def test_records_are_those_of_the_folder_and_fetched_once(bucket, tmp_path, monkeypatch):
    local = make_store(tmp_path / "store", score_map=pixels(0), descriptor_map=CELLS)
    url = bucket(local.path, "store.zarr")
    remote = RecordStore.open(url)
    assert (remote.names, remote.schema) == (local.names, local.schema)
    assert remote.complete
    folder = remote._layout.path
    assert folder.is_relative_to(tmp_path / "cache")
    assert not list(folder.glob("score_map/c*"))
    np.testing.assert_array_equal(remote.read("a", "score_map"), local.read("a", "score_map"))
    assert not list(folder.glob("descriptor_map/c*"))
    assert remote.corrupt_records(0) == []
    again = RecordStore.open(url)
    monkeypatch.setattr(again._layout._obstore, "get_ranges", None)  # nothing is asked for again
    np.testing.assert_array_equal(again.read("a", "score_map"), local.read("a", "score_map"))


def test_a_store_that_was_uploaded_anew_is_fetched_anew(bucket, tmp_path):
    first = make_store(
        tmp_path / "first", {"score_map": np.zeros((1, 48, 64))}, score_map=pixels(0)
    )
    second = make_store(
        tmp_path / "second", {"score_map": np.ones((1, 48, 64))}, score_map=pixels(0)
    )
    url = bucket(first.path, "store.zarr")
    assert RecordStore.open(url).read("a", "score_map").max() == 0
    metadata = json.loads((second.path / "zarr.json").read_text())
    (second.path / "zarr.json").write_text(json.dumps(metadata, indent=1))
    bucket(second.path, "store.zarr")
    assert RecordStore.open(url).read("a", "score_map").max() == 1


def test_a_shard_of_many_parts(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("hfnet_distill.data.stores.remote.PART", 1000)
    local = make_store(tmp_path / "store", score_map=pixels(0))
    remote = RecordStore.open(bucket(local.path, "store.zarr"))
    np.testing.assert_array_equal(remote.read("a", "score_map"), local.read("a", "score_map"))


def read_at_once(url: str, barrier, queue) -> None:
    remote = RecordStore.open(url)
    barrier.wait(60)
    queue.put(remote.read("a", "score_map").copy())


def test_two_processes_fetch_the_same_shard(bucket, tmp_path):
    local = make_store(tmp_path / "store", score_map=pixels(0))
    url = bucket(local.path, "store.zarr")
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    other = context.Process(target=read_at_once, args=(url, barrier, queue))
    other.start()
    read_at_once(url, barrier, queue)
    for _ in range(2):
        np.testing.assert_array_equal(queue.get(timeout=60), local.read("a", "score_map"))
    other.join()
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_places_from_object_storage(bucket, store, run_command, tmp_path):  # noqa: F811
    url = bucket(store, "superpoint.zarr")
    command = ("--model", "vlad", "--words", 4, "--dim", 3, "--quiet", "--store")
    run_command(export_teacher, *command, tmp_path / "local", "--from-store", store)
    run_command(export_teacher, *command, tmp_path / "places", "--from-store", url)
    local = RecordStore.open(tmp_path / "local")
    remote = RecordStore.open(bucket(tmp_path / "places", "places.zarr"))
    for name, array in local.parameters.items():
        np.testing.assert_array_equal(remote.parameters[name], array)
    network = load(f"vlad:{remote.path}", device="cpu")
    np.testing.assert_array_equal(network.vlad.words, local.parameters["words"])


def test_training_from_object_storage(bucket, store, train, tmp_path):  # noqa: F811
    train("--epochs", 1, output="local")
    url = bucket(store, "superpoint.zarr")
    train("--epochs", 1, "--num-workers", 1, output="remote", stores=(url,))
    runs = [json.loads((tmp_path / run / "best.json").read_text()) for run in ("local", "remote")]
    assert runs[0]["validation"] == runs[1]["validation"]


def test_what_is_wrong_is_said(bucket, store, train, run_command, tmp_path, monkeypatch):  # noqa: F811
    url = bucket(store, "superpoint.zarr")
    assert "no complete Zarr store there" in train(stores=(url + "x",), code=1)
    assert "or no such bucket" in train(stores=("s3://none/store.zarr",), code=1)
    assert "only Zarr stores are read" in train(stores=("s3://bucket/store.h5",), code=1)
    assert "expected a path or an address s3://" in train(stores=("ftp://bucket/a",), code=1)
    output = run_command(
        export_teacher, "--model", "sift", "--images", tmp_path, "--store", url, code=1
    )
    assert "upload the store when it is complete" in output
    lost = RecordStore.open(url)
    obstore.delete(lost._layout._bucket, "score_map/c.0.0.0.0")
    with pytest.raises(StoreError, match=r"c\.0\.0\.0\.0 not found; upload the store again"):
        lost.read(lost.names[0], "score_map")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="object storage does not give it"):
        RecordStore.open(url)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install hfnet-distill\[s3\]"):
        RecordStore.open(url)
