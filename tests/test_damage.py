"""Files with a byte that changed, or made by strangers: every reader says so, and runs nothing.

Cases that benchmarks/fuzz.py found.
"""

import ast
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hfnet_distill.checkpoints import read_tensors, write_tensors
from hfnet_distill.data.features import image_names, open_hdf5, read_features
from hfnet_distill.data.stores.schema import Field, Schema
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.deployment.cli import extract_features
from hfnet_distill.errors import CheckpointError, InputError, StoreError
from hfnet_distill.networks.onnx import _is_as_sealed, make_session, seal
from hfnet_distill.networks.weights import load_arrays

ROOT = Path(__file__).parent.parent
NAMES = ["walk/0.jpg", "walk/1.jpg"]


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.fixture(params=["zarr", "hdf5"])
def store(request, tmp_path) -> Path:
    """A finished store of two records with parameters."""
    path = tmp_path / "store"
    schema = Schema(
        teacher="none",
        weights="0" * 64,
        settings={},
        image_size=(32, 24),
        fields={"global_descriptor": Field(shape=(8,), dtype="float16")},
        shard_size=2,
        compression="none",
        software="0",
    )
    words = {"words": np.full((2, 4), 1.25, np.float32)}
    made = RecordStore.create(path, schema, NAMES, request.param, words)
    made.write_shard(0, {"global_descriptor": np.ones((2, 8), np.float16)})
    made.finish()
    assert RecordStore.open(path).parameters["words"].tolist() == words["words"].tolist()
    return path


def test_a_name_of_a_store_that_changed(store):
    path = store / "name_text" / "c" / "0" if store.is_dir() else store
    replace_bytes(path, b"walk/0.jpgwalk/", b"walk/8.jpgwalk/")
    with pytest.raises(StoreError, match="its schema and names do not match their checksum"):
        RecordStore.open(store)


def test_parameters_of_a_store_that_changed(store):
    path = store / "parameters" / "words" / "c" / "0" / "0" if store.is_dir() else store
    number = np.full(8, 1.25, np.float32).tobytes()
    replace_bytes(path, number, b"\1" + number[1:])
    with pytest.raises(StoreError, match="its parameters do not match their checksum"):
        _ = RecordStore.open(store).parameters


def test_metadata_of_a_store_that_changed(store):
    if store.is_dir():
        replace_bytes(store / "checksum" / "zarr.json", b"index_codecs", b"index_cdecs!")
    else:
        replace_bytes(store, b"global_descriptor", b"global_fescriptor")
    with pytest.raises(StoreError, match="damaged"):
        RecordStore.open(store)


def test_a_file_that_is_cut_off(store):
    os.truncate(store / "global_descriptor" / "c.0.0" if store.is_dir() else store, 0)
    with pytest.raises(StoreError, match="a damaged one"):
        RecordStore.open(store).read(NAMES[0], "global_descriptor")


def test_a_checkpoint_that_changed(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.full((4,), 1.25), "b": torch.tensor(3), "c": torch.ones(2).bfloat16()}
    write_tensors(path, tensors, {"step": 3, "loss": float("inf")})
    found, description = read_tensors(path)
    assert description == {"step": 3, "loss": float("inf")}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    whole = path.read_bytes()
    number = torch.full((1,), 1.25).numpy().tobytes()
    for old, new in ((number, b"\1" + number[1:]), (b'step\\": 3', b'step\\": 4')):
        path.write_bytes(whole)
        replace_bytes(path, old, new)
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            read_tensors(path)


def read_all(path: Path) -> list:
    with open_hdf5(path) as file:
        return [read_features(file, name) for name in image_names(file)]


def test_features_that_changed(photographs, tmp_path, run_command):
    path = tmp_path / "features.h5"
    command = ("--images", photographs, "--output", path, "--model", "sift", "--quiet")
    run_command(extract_features, *command)
    scores = read_all(path)[0].scores.tobytes()
    whole = path.read_bytes()
    for old, new in ((scores, b"\1" + scores[1:]), (b"image_size", b"image_sise")):
        path.write_bytes(whole)
        replace_bytes(path, old, new)
        with pytest.raises(InputError, match="damaged"):
            read_all(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "not an HDF5 file, or damaged" in run_command(extract_features, *command, code=1)


def test_features_of_hloc_with_an_object_that_is_damaged(tmp_path):
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a.png")
        group["keypoints"], group["scores"] = np.zeros((2, 2)), np.zeros(2)
        group["image_size"] = np.array([96, 72])
    replace_bytes(path, b"SNOD", b"SNOE")
    with pytest.raises(InputError, match="damaged"):
        read_all(path)


def test_a_seal_is_metadata_and_tells_what_changed():
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", kind, [1])], [value("y", kind, [1])])
    plain = onnx.helper.make_model(graph).SerializeToString()
    content = seal(plain)
    [entry] = onnx.load_from_string(content).metadata_props
    assert (entry.key, len(entry.value)) == ("hfnet_distill.checksum", 8)
    assert _is_as_sealed(content)
    assert _is_as_sealed(plain)
    assert not _is_as_sealed(content.replace(b"Identity", b"Identitx"))


def test_an_onnx_file_reads_no_file_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    kind = onnx.TensorProto.FLOAT
    for location in ("../secret.bin", str(tmp_path / "secret.bin")):
        weights = onnx.TensorProto(name="w", data_type=kind, dims=[4])
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [value("x", kind, [4])],
            [value("y", kind, [4])],
            [weights],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
        )
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match="ONNX Runtime cannot read it"):
            make_session(folder / "model.onnx")


class Mischief:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"a": Mischief(trace)}, tmp_path / "weights.pth")
    np.savez(tmp_path / "weights.npz", a=np.array([Mischief(trace)], dtype=object))
    for name in ("weights.pth", "weights.npz"):
        with pytest.raises(InputError, match="without running code in it"):
            load_arrays(tmp_path / name)
    assert not trace.exists()


def test_no_module_unpickles():
    rooms = ("hfnet_distill", "data", "networks", "teacher_export", "student", "evaluation")
    for path in (path for room in (*rooms, "deployment") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill"} & {alias.name for alias in node.names}, path
            if isinstance(node, ast.Call):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert "allow_pickle" not in given, path
                if ast.unparse(node.func) == "torch.load":
                    assert given.get("weights_only") == "True", path


def test_hdf5_keeps_no_json_where_damage_makes_it_hang(store, photographs, tmp_path, run_command):
    path = tmp_path / "features.h5"
    command = ("--images", photographs, "--output", path, "--model", "sift", "--quiet")
    run_command(extract_features, *command)
    for name, key in ((store, "hfnet_distill"), (path, "settings")):
        if name.is_file():
            with h5py.File(name) as file:
                assert file.attrs.get_id(key).dtype.kind == "S"  # of fixed length
