"""What is installed: a wheel with one name; it works beside folders of its parts' names."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = ("distributed", "obstore", "skimage", "pycolmap", "onnx", "onnxruntime", "kornia")
FIVE_LINES = """
import numpy as np
import hfnet_distill
network = hfnet_distill.load("default")
features = network.extract(np.random.default_rng(0).integers(0, 255, (96, 130, 3), np.uint8))
assert features.keypoints.shape[1] == 2 and features.image_size == (130, 96)
assert features.descriptors.shape == (len(features.scores), network.descriptor_dim)
store = hfnet_distill.RecordStore.open("sift.zarr")
assert len(store.record(store.names[0])["keypoints"]) > 0
"""
COMMANDS = ("export-teacher", "train-teacher", "train-student", "evaluate")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built beside it: building leaves files in its folder."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    folder = tmp_path_factory.mktemp("wheel")
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    subprocess.run([sys.executable, "-m", *build, folder, source], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and what it depends on, without the extras."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(
        "import sys\n" + "\n".join(f"sys.modules[{name!r}] = None" for name in EXTRAS)
    )
    install = ("pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps")
    subprocess.run([sys.executable, "-m", *install, wheel], check=True)
    return folder


def test_a_wheel_holds_one_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hfnet_distill"}
    for needed in ("py.typed", "pipeline.toml", "networks/packaged/hfnet-superpoint.safetensors"):
        assert f"hfnet_distill/{needed}" in names


def test_the_wheel_works_beside_folders_of_the_same_names(environment, photographs, tmp_path):
    for name in ("data", "student", "networks", "evaluation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")

    def run(*command) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in COMMANDS:
        assert "Usage" in run(environment / "bin" / command, "--help")
        assert "hfnet-distill" in run(environment / "bin" / command, "--version")
    run(
        *(environment / "bin" / "export-teacher", "--model", "sift", "--images", photographs),
        *("--store", "sift.zarr", "--size", "128x96", "--quiet"),
    )
    run(environment / "bin" / "python", "-c", FIVE_LINES)
