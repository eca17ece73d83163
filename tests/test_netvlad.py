"""NetVLAD against hloc's, and the official file's layout."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

from hfnet_distill.data.images import fit_image, read_image
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.networks.netvlad import NetVLAD
from hfnet_distill.networks.registry import load
from hfnet_distill.teacher_export.cli import export_teacher


def draw_convolutions(random) -> list[tuple[np.ndarray, np.ndarray]]:
    """VGG-16's weights and biases as MATLAB keeps them, drawn as those of the reference."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    drawn = []
    for before, after in pairwise(widths):
        weight = random.standard_normal((3, 3, before, after)) * np.sqrt(2 / (9 * before))
        weight = weight.astype(np.float32)
        bias = (random.standard_normal(after) * 0.05).astype(np.float32)
        drawn.append((weight, bias))
    drawn[0] = (drawn[0][0] / np.float32(64), drawn[0][1])
    return drawn


def draw_pooling(random, clusters=64) -> tuple[np.ndarray, np.ndarray]:
    """The projection to the clusters and minus their centers, both (512, K)."""
    projection = (random.standard_normal((512, clusters)) * 4).astype(np.float32)
    return projection, (random.standard_normal((512, clusters)) * 0.05).astype(np.float32)


def write_mat(path, convolutions, pooling, whitening, mean=(123, 117, 104)):
    """A file in the layout of VGG16-NetVLAD-Pitts30K.mat."""
    layers = np.empty(34, object)
    layers[:] = [{"type": "other"} for _ in layers]
    positions = [
        n for n, layer in enumerate(NetVLAD(1, 1).backbone) if isinstance(layer, nn.Conv2d)
    ]
    for number, weights in [*zip(positions, convolutions, strict=True), (30, pooling)]:
        layers[number] = {"weights": cell(*weights)}
    layers[33] = {"weights": cell(whitening[0][None, None], whitening[1])}
    average = np.broadcast_to(np.array(mean, np.float32), (2, 2, 3))
    net = {"layers": layers, "meta": {"normalization": {"averageImage": average}}}
    scipy.io.savemat(path, {"net": net})


def cell(*arrays) -> np.ndarray:
    cells = np.empty(len(arrays), object)
    cells[:] = arrays
    return cells


def to_image(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def test_the_reference_outputs_before_whitening(excerpt):
    """With the reference's weights, drawn anew; every fourth channel of what it gave."""
    wanted = excerpt("netvlad_excerpt")
    random = np.random.RandomState(2024)
    network = NetVLAD(dim=1).eval()
    convolutions = [layer for layer in network.backbone if isinstance(layer, nn.Conv2d)]
    for layer, (weight, bias) in zip(convolutions, draw_convolutions(random), strict=True):
        layer.weight.copy_(torch.from_numpy(weight).permute(3, 2, 0, 1))
        layer.bias.copy_(torch.from_numpy(bias))
    projection, minus_centers = draw_pooling(random)
    network.pooling.score_proj.weight.copy_(torch.from_numpy(projection.T))
    network.pooling.centers.copy_(torch.from_numpy(-minus_centers))
    network.mean.copy_(torch.from_numpy(wanted["mean_rgb"]))
    image = to_image(wanted["image_u8_rgb"])
    features = network.backbone(image * 255 - network.mean[:, None, None])
    np.testing.assert_allclose(features[0, ::4], wanted["conv5_3_every4"], atol=3e-4)
    vlad = network.pooling(features)[0].reshape(512, 64)
    np.testing.assert_allclose(vlad[::4], wanted["vlad_every4"], atol=1e-6)


@torch.inference_mode()
def test_the_reference_outputs(golden, tmp_path):
    """With 134 M generated weights; the file that holds them takes 0.6 GB and is removed."""
    wanted = golden("netvlad")
    random = np.random.RandomState(2024)
    convolutions, pooling = draw_convolutions(random), draw_pooling(random)
    whitening = random.randint(0, 65536, size=(32768, 4096), dtype=np.uint16).astype(np.float32)
    whitening -= 32768
    whitening /= 32768
    bias = (random.standard_normal(4096) * 0.05).astype(np.float32)
    np.testing.assert_array_equal(whitening[0, :4], wanted["check/first4"][28])
    path = tmp_path / "VGG16-NetVLAD-Pitts30K.mat"
    write_mat(path, convolutions, pooling, (whitening, bias), wanted["mean_rgb"])
    network = NetVLAD.read(path)
    path.unlink()
    for name in ("img0", "img1"):
        image = to_image(wanted[f"{name}/image_u8_rgb"])
        features = network.backbone(image * 255 - network.mean[:, None, None])
        np.testing.assert_allclose(features[0], wanted[f"{name}/conv5_3"], atol=3e-4)
        vlad = network.pooling(features)[0]
        np.testing.assert_allclose(vlad, wanted[f"{name}/vlad_unwhitened"], atol=1e-6)
        descriptor = network(to_image(wanted[f"{name}/image_u8_rgb"]))[0]
        np.testing.assert_allclose(descriptor, wanted[f"{name}/global_descriptor"], atol=2e-6)


@pytest.fixture(scope="module")
def small_mat(tmp_path_factory):
    """Weights with 2 clusters and 8 outputs, in the official layout."""
    path = tmp_path_factory.mktemp("netvlad") / "small.mat"
    random = np.random.RandomState(0)
    whitening = random.standard_normal((1024, 8)).astype(np.float32), np.zeros(8, np.float32)
    write_mat(path, draw_convolutions(random), draw_pooling(random, 2), whitening)
    return path


@torch.inference_mode()
def test_the_official_file_is_loaded_by_its_own_names(small_mat):
    network = NetVLAD.read(small_mat)
    assert len(network.weights) == 64
    random = np.random.RandomState(0)
    whitening = random.standard_normal((1024, 8)).astype(np.float32)
    convolutions, (projection, minus_centers) = draw_convolutions(random), draw_pooling(random, 2)
    np.testing.assert_array_equal(network.mean, [123, 117, 104])
    for layer, wanted in (
        (network.backbone[2].weight[7, 5], convolutions[1][0][:, :, 5, 7]),
        (network.backbone[28].bias, convolutions[12][1]),
        (network.pooling.score_proj.weight, projection.T),
        (network.pooling.centers, -minus_centers),
        (network.whitening.weight, whitening.T),
    ):
        np.testing.assert_array_equal(layer, wanted)
    descriptor = network(torch.rand(2, 3, 40, 33))
    assert descriptor.shape == (2, 8)
    np.testing.assert_allclose(descriptor.norm(dim=1), 1, atol=1e-6)


def test_netvlad_as_a_teacher(run_command, photographs, small_mat, tmp_path):
    run_command(
        export_teacher,
        *("--model", "netvlad", "--images", photographs, "--store", tmp_path / "places.zarr"),
        *("--weights", small_mat, "--size", "64x48", "--device", "cpu", "--quiet"),
    )
    store = RecordStore.open(tmp_path / "places.zarr").require_complete()
    assert [*store.schema.fields] == ["global_descriptor"]
    image = fit_image(read_image(photographs / "0.png", channels=3), (64, 48))
    found = load(f"netvlad:{small_mat}", device="cpu").extract(image)
    assert len(found.keypoints) == 0
    stored = store.record("0.png")["global_descriptor"].astype(np.float32)
    np.testing.assert_allclose(found.global_descriptor, stored, atol=1e-3)
    assert found.global_descriptor @ stored > (1 - 1e-6) * np.linalg.norm(stored)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.mat").write_text("not MATLAB's")
    with pytest.raises(ValueError, match=r"notes\.mat: not weights of NetVLAD"):
        NetVLAD.read(tmp_path / "notes.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"weights": np.zeros(3)})
    with pytest.raises(ValueError, match=r"KeyError: 'net'.*VGG16-NetVLAD-Pitts30K\.mat"):
        NetVLAD.read(tmp_path / "other.mat")


def test_a_tensor_of_another_shape_is_named(tmp_path):
    random = np.random.RandomState(0)
    convolutions = draw_convolutions(random)
    convolutions[1] = convolutions[1][0][:, :, :3], convolutions[1][1]
    whitening = np.zeros((1024, 8), np.float32), np.zeros(8, np.float32)
    write_mat(tmp_path / "a.mat", convolutions, draw_pooling(random, 2), whitening)
    with pytest.raises(ValueError, match=r"backbone.2.weight has shape \(64, 3, 3, 3\)"):
        NetVLAD.read(tmp_path / "a.mat")
