"""ONNX files against PyTorch and against their clients."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from hfnet_distill.config import shipped_settings
from hfnet_distill.data.images import to_tensor
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.deployment import onnx as deployment
from hfnet_distill.deployment.cli import export_onnx
from hfnet_distill.deployment.photographs import photographs_of_sizes
from hfnet_distill.errors import InputError, NotFoundError
from hfnet_distill.files import beside
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.light import Light, LightConfig
from hfnet_distill.networks.onnx import make_session
from hfnet_distill.networks.registry import load

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.timeout(900)  # an export takes a minute on a busy machine
EXAMPLES = Path(__file__).parent.parent / "examples"
CHOICE = KeypointChoice.of(shipped_settings().predict, 500)


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    """The packaged student as a file of profile sparse."""
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    network = load("default", device="cpu")
    photographs = photographs_of_sizes(None, network.channels)
    parity = deployment.export_onnx(network, "sparse", path, choice=CHOICE, photographs=photographs)
    assert parity.in_common == 1
    assert len(parity.sizes) == 5
    return path


@pytest.fixture(scope="module")
def small() -> HFNet:
    """A small student of random weights whose scores have clear peaks."""
    torch.manual_seed(0)
    config = HFNetConfig(
        width=0.25, descriptor_dim=16, global_dim=8, global_pooling="local", clusters=4
    )
    network = HFNet(config)
    with torch.no_grad():
        network.detector_head[1].weight *= 30
    return network.for_inference().requires_grad_(False)


@pytest.fixture(scope="module")
def small_maps(small) -> bytes:
    """The small student as a file of profile maps."""
    return deployment.to_onnx(deployment.make_graph(small, "maps", CHOICE), {})


def test_a_light_student(tmp_path):
    torch.manual_seed(0)
    network = Light(LightConfig(channels=(8, 8, 16, 16, 16), descriptor_dim=16, global_dim=8))
    with torch.no_grad():
        network.pixel_head[1].weight *= 30
    network = network.for_inference().requires_grad_(False)
    photographs = photographs_of_sizes(None, 1)[2:4]
    path = tmp_path / "light.onnx"
    deployment.export_onnx(network, "sparse", path, choice=CHOICE, photographs=photographs)
    found = load(f"onnx:{path}").extract(photographs[0], max_num_keypoints=50)
    wanted = network.extract(photographs[0], max_num_keypoints=50)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)


@pytest.mark.parametrize("profile", ["colmap", "hfnet-slam"])
def test_the_graph_gives_what_pytorch_gives(small, profile, tmp_path):
    photographs = photographs_of_sizes(None, 3 if profile == "colmap" else 1)[1:4]
    path = tmp_path / "small.onnx"
    beside(path).write_bytes(b"that a killed export left")
    deployment.export_onnx(small, profile, path, choice=CHOICE, photographs=photographs)
    assert list(tmp_path.iterdir()) == [path]
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["hfnet_distill.profile"] == profile
    assert "centre" in told["hfnet_distill.convention"]
    assert told["hfnet_distill.licence.code"] == "MIT"


def test_onnx_file_is_a_network(student_file):
    network, original = load(f"onnx:{student_file}"), load("default", device="cpu")
    image = photographs_of_sizes(None, 1)[1]
    found = network.extract(image, max_num_keypoints=100)
    wanted = original.extract(image, max_num_keypoints=100)
    assert found.image_size == wanted.image_size
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, atol=1e-3)
    np.testing.assert_allclose(found.descriptors, wanted.descriptors, atol=1e-5)
    np.testing.assert_allclose(found.global_descriptor, wanted.global_descriptor, atol=1e-5)


def test_the_file_says_nothing_of_the_machine_that_made_it(student_file):
    content = student_file.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(deployment.__file__).parent).encode() not in content


def test_small_images(student_file):
    network = load(f"onnx:{student_file}")
    found = network.extract(np.zeros((9, 20), np.uint8), max_num_keypoints=100)
    assert found.keypoints.shape[1] == 2  # a border of 4 leaves none, or few
    with pytest.raises(InputError, match="image of 20x7 pixels"):
        network.extract(np.zeros((7, 20), np.uint8), max_num_keypoints=100)


def test_the_file_keeps_its_settings(student_file):
    network = load(f"onnx:{student_file}")
    image = np.zeros((64, 64), np.uint8)
    with pytest.raises(InputError, match="nms_radius 2: the ONNX file was exported with 4"):
        network.extract(image, max_num_keypoints=100, nms_radius=2)
    with pytest.raises(InputError, match="gives 500 at most; export it with --max-num-keypoints"):
        network.extract(image, max_num_keypoints=501)


def test_files_that_are_none_of_ours(tmp_path):
    with pytest.raises(NotFoundError, match="no such ONNX file"):
        load(f"onnx:{tmp_path / 'missing.onnx'}")
    (tmp_path / "text.onnx").write_text("none")
    with pytest.raises(InputError, match="ONNX Runtime cannot read it"):
        load(f"onnx:{tmp_path / 'text.onnx'}")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="a file of another program; expected a file that export-"):
        load(f"onnx:{tmp_path / 'other.onnx'}")


def test_maps_give_what_pytorch_gives(small, small_maps, tmp_path):
    path = tmp_path / "maps.onnx"
    path.write_bytes(small_maps)
    image = photographs_of_sizes(None, 1)[2]
    found = load(f"onnx:{path}").extract(image, nms_radius=2, max_num_keypoints=50)
    wanted = small.extract(image, nms_radius=2, max_num_keypoints=50)
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, atol=1e-3)
    np.testing.assert_allclose(found.descriptors, wanted.descriptors, atol=1e-5)


def test_a_graph_that_differs_is_not_kept(small, small_maps, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "MAP_TOLERANCE", -1.0)
    monkeypatch.setattr(deployment, "to_onnx", lambda *_: small_maps)
    photographs = photographs_of_sizes(None, 1)[3:4]
    path = tmp_path / "small.onnx"
    with pytest.raises(InputError, match="not written, for the graph differs"):
        deployment.export_onnx(small, "maps", path, choice=CHOICE, photographs=photographs)
    assert list(tmp_path.iterdir()) == []


def test_networks_and_profiles_that_do_not_fit(small):
    with pytest.raises(InputError, match="only a network with a score map and a descriptor map"):
        deployment.make_graph(load("sift"), "sparse", CHOICE)
    with pytest.raises(InputError, match="takes images of any size"):
        deployment.make_graph(small, "sparse", CHOICE, (640, 480))
    local = HFNet(HFNetConfig(width=0.25)).for_inference()
    with pytest.raises(InputError, match="no global descriptor, which that client needs"):
        deployment.make_graph(local, "hfnet-slam", CHOICE)


def test_opencv_runs_it(tmp_path, run_command):
    if not hasattr(cv2, "ALIKED"):
        pytest.skip(f"OpenCV {cv2.__version__} has no cv2.ALIKED; OpenCV 5 has")
    path = tmp_path / "student.onnx"
    run_command(
        *(export_onnx, "--profile", "opencv", "--output", path, "--size", "320x240"),
        *("--max-num-keypoints", 200, "--quiet"),
    )
    parameters = cv2.ALIKED.Params()
    parameters.inputSize = (320, 240)
    photograph = cv2.resize(photographs_of_sizes(None, 3)[0], (320, 240))
    found, descriptors = cv2.ALIKED.create(str(path), parameters).detectAndCompute(
        photograph[..., ::-1].copy(), None
    )
    network = load("default", device="cpu")
    choice = KeypointChoice.of(shipped_settings().predict, 200)
    wanted = network.features(to_tensor(photograph, 1)[None], choice)[0]
    distances, rows = KDTree(wanted.keypoints).query([point.pt for point in found])
    same = distances < 1e-3
    assert same.mean() > 0.99
    np.testing.assert_allclose(descriptors[same], wanted.descriptors[rows[same]], atol=1e-5)


def test_the_robot_needs_onnxruntime_numpy_and_pillow(student_file, tmp_path):
    photograph = tmp_path / "photograph.png"
    cv2.imwrite(str(photograph), photographs_of_sizes(None, 1)[2])
    blocked = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "cv2", "scipy", "hfnet_distill", "onnx"}:
            raise ImportError(f"{name} is not on the robot")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    arguments = [EXAMPLES / "robot.py", student_file, photograph]
    output = subprocess.run(
        [sys.executable, "-c", blocked, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "keypoints float32 (500, 2)" in output
    assert "descriptors float32 (500, 128)" in output
    assert "global_descriptor float32 (256,)" in output


def test_int8(small, small_maps, photographs):
    graph = deployment.make_graph(small, "maps", CHOICE)
    quantized = deployment.quantize(graph, small_maps, photographs)
    model = onnx.load_from_string(quantized)
    kinds = {node.op_type for node in model.graph.node}
    assert "QuantizeLinear" in kinds
    image = photographs_of_sizes(None, 1)[3]
    exact, coarse = (
        make_session(file).run(None, graph.feed(image)) for file in (small_maps, quantized)
    )
    cosines = (exact[1] * coarse[1]).sum(1)
    assert cosines.mean() > 0.9
