"""The plug-ins of examples/ against what their clients expect of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.config import shipped_settings
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.deployment import onnx as deployment
from hfnet_distill.deployment.photographs import photographs_of_sizes
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGE = photographs_of_sizes(None, 1)[2]


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    """A small student of random weights as an ONNX file."""
    torch.manual_seed(0)
    config = HFNetConfig(
        width=0.25, descriptor_dim=16, global_dim=8, global_pooling="local", clusters=4
    )
    network = HFNet(config).for_inference().requires_grad_(False)
    choice = KeypointChoice.of(shipped_settings().predict, 100)
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    path.write_bytes(deployment.to_onnx(deployment.make_graph(network, "sparse", choice), {}))
    return path


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base_model(monkeypatch):
    """``base_model("hloc.utils.base_model")``: BaseModel as the two clients have it, in short."""

    class BaseModel(torch.nn.Module):
        def __init__(self, conf):
            super().__init__()
            self.conf = SimpleNamespace(**{**self.default_conf, **conf})
            self._init({**self.default_conf, **conf} if is_dict else self.conf)

        def forward(self, data):
            return self._forward(data)

    is_dict = True

    def install(name: str) -> None:
        nonlocal is_dict
        is_dict = name.startswith("hloc")
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(parts[count - 1]))
        sys.modules[name].BaseModel = BaseModel

    return install


def test_hloc(student_file, base_model):
    base_model("hloc.utils.base_model")
    module = load_example("hloc_extractor")
    models = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    assert len(models) == 1  # hloc takes the one child in the module
    model = models[0]({"file": str(student_file)})
    found = model({"image": torch.from_numpy(IMAGE)[None, None].float() / 255})
    count = len(found["scores"][0])
    assert found["keypoints"][0].shape == (count, 2)
    assert found["descriptors"][0].shape == (16, count)
    assert found["global_descriptor"].shape == (1, 8)
    assert module.CONF["preprocessing"] == {"grayscale": True, "resize_max": 1024}


def test_glue_factory(student_file, base_model):
    base_model("gluefactory.models.base_model")
    module = load_example("glue_factory_extractor")
    model = module.HFNetDistill({"model": f"onnx:{student_file}", "max_num_keypoints": 60})
    images = torch.from_numpy(IMAGE)[None, None].float() / 255
    pair = torch.cat([images, torch.zeros_like(images)]).expand(-1, 3, -1, -1)
    found = model({"image": pair})
    assert found["keypoints"].shape == (2, 60, 2)
    assert found["keypoint_scores"].shape == (2, 60)
    assert found["descriptors"].shape == (2, 60, 16)
    wanted = model.extractor.extract(IMAGE, max_num_keypoints=60)
    np.testing.assert_allclose(found["keypoints"][0], wanted.keypoints + 0.5, atol=1e-5)


def test_rtabmap(student_file, monkeypatch):
    monkeypatch.setenv("HFNET_DISTILL_ONNX", str(student_file))
    detector = load_example("rtabmap_detector")
    detector.init(0)
    keypoints, descriptors = detector.detect(IMAGE)
    assert keypoints.shape == (100, 3)
    assert descriptors.shape == (100, 16)
    for array in (keypoints, descriptors):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous

    descriptor = load_example("rtabmap_descriptor")
    descriptor.init(4096)
    as_bytes = cv2.cvtColor(IMAGE, cv2.COLOR_GRAY2BGR).view(np.int8)
    found = descriptor.extract(as_bytes)
    assert found.dtype == np.float32
    assert found.shape == (1, 8)
    np.testing.assert_allclose(descriptor.extract(IMAGE[..., None].view(np.int8)), found, atol=1e-3)
    descriptor.init(4)
    assert np.linalg.norm(descriptor.extract(as_bytes)) == pytest.approx(1, abs=1e-5)
