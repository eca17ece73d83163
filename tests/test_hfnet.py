"""HF-Net against the outputs that its TensorFlow code gave, and its parts by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.geometry import MapGeometry, sample_map
from data.keypoints import KeypointChoice
from student.hfnet import (
    ConvBN,
    HFNet,
    HFNetConfig,
    load_tensorflow_variables,
    scale_channels,
    score_map,
)

SIZES = ["s96x128", "s200x264", "s101x135"]


@pytest.fixture(scope="module")
def variables(golden):
    files = [golden("hfnet_vars_backbone"), golden("hfnet_vars_heads")]
    return {name: file[name] for file in files for name in file.files}


def make_network(variables, global_dim=256) -> HFNet:
    network = HFNet(HFNetConfig(global_dim=global_dim)).eval()
    load_tensorflow_variables(network, variables)
    return network


def to_image(image_u8) -> torch.Tensor:
    return torch.from_numpy(image_u8 / np.float32(255))[None, None]


def check(found: torch.Tensor, recorded: np.ndarray, tolerance=1e-4):
    np.testing.assert_allclose(found.numpy(), recorded, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_every_recorded_output(golden, variables, size):
    recorded = golden(f"hfnet_outputs_{size}")
    network = make_network(variables)
    image = to_image(recorded["image_u8"])
    kept = {}
    network.stem.register_forward_hook(lambda *call: kept.update(layer_1=call[2]))
    network.local_blocks.register_forward_hook(lambda *call: kept.update(layer_7=call[2]))
    network.global_blocks.register_forward_hook(lambda *call: kept.update(layer_18=call[2]))
    output = network(image)
    step = 2 if "local_descriptor_map_sub2" in recorded else 1
    name = "local_descriptor_map_sub2" if step == 2 else "local_descriptor_map"
    check(output.score_logits[0].permute(1, 2, 0), recorded["logits"])
    check(score_map(output.score_logits)[0], recorded["scores_dense"])
    check(output.descriptor_map[0].permute(1, 2, 0)[::step, ::step], recorded[name])
    check(output.global_descriptor[0], recorded["global_descriptor"])
    check(kept["layer_1"][0, :3].permute(1, 2, 0), recorded["layer_1_first3ch"])
    check(kept["layer_7"][0].permute(1, 2, 0), recorded["layer_7"])
    # The reference itself moves by 4e-4 here between two builds of its convolutions.
    check(kept["layer_18"][0].permute(1, 2, 0), recorded["layer_18"], 2e-3)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_recorded_keypoints_and_descriptors(golden, variables, size):
    recorded = golden(f"hfnet_outputs_{size}")
    output = make_network(variables)(to_image(recorded["image_u8"]))
    choice = KeypointChoice(threshold=0.005, nms_radius=4, border=0, top_k=50)
    keypoints, scores = choice(score_map(output.score_logits)[0].numpy())
    found = {tuple(point) for point in keypoints.astype(int)}
    assert len(found & {tuple(p) for p in recorded["nms4_top50/keypoints_xy"]}) >= 49
    check(torch.from_numpy(scores), recorded["nms4_top50/scores"])
    # HF-Net stretches the map's outer centres over the image's; our own sampling does not.
    points = torch.from_numpy(recorded["nms4_top50/keypoints_xy"]).float()
    height, width = output.descriptor_map.shape[2:]
    stretch = torch.tensor([(width - 1) / (8 * width - 1), (height - 1) / (8 * height - 1)])
    samples = sample_map(output.descriptor_map, (points * stretch)[None], MapGeometry(1, 0))[0]
    check(F.normalize(samples, dim=1), recorded["nms4_top50/local_descriptors"])


@torch.inference_mode()
def test_the_published_projection_size(golden, variables):
    recorded = golden("hfnet_outputs_s96x128")
    integers = np.random.RandomState(4096).randint(0, 65536, size=(7680, 4096), dtype=np.uint16)
    biases = np.random.RandomState(4097).standard_normal(4096) * 0.05
    scope = "global_head/dimensionality_reduction/"
    projection = {
        f"{scope}weights": (integers.astype(np.float32) - 32768) / (32768 * 64),
        f"{scope}biases": biases.astype(np.float32),
    }
    network = make_network({**variables, **projection}, global_dim=4096)
    output = network(to_image(recorded["image_u8"]))
    check(output.global_descriptor[0], recorded["global_descriptor_4096"])


def test_a_student_without_global_branch_loads_the_local_variables(golden, variables):
    network = make_network(variables, global_dim=0)
    assert not any("global" in name for name, _ in network.named_parameters())


def test_variables_are_loaded_strictly(golden, variables):
    name = "MobilenetV2/expanded_conv_4/project/weights"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        make_network({key: value for key, value in variables.items() if key != name})
    with pytest.raises(ValueError, match=f"{name} has shape"):
        make_network({**variables, name: np.zeros((1, 1, 3, 3), np.float32)})
    with pytest.raises(ValueError, match="unknown variable local_head/extra"):
        make_network({**variables, "local_head/extra": np.zeros(1)})


@pytest.mark.parametrize("side", [6, 7])
def test_strided_convolutions_pad_as_tensorflow_does(side):
    layer = ConvBN(1, 1, 3, stride=2, activate=False).eval()
    with torch.no_grad():
        layer.conv.weight.fill_(1)
        values = torch.arange(float(side)).expand(1, 1, side, side)
        found = layer(values)[0, 0, 1] * (1 + 1e-3) ** 0.5
    # Sums of three neighbours along x (times three rows), from the first column of an even side
    # and from one before the first of an odd side.
    starts = range(0, side, 2) if side == 6 else range(-1, side - 1, 2)
    expected = [3 * sum(x for x in range(s, s + 3) if 0 <= x < side) for s in starts]
    torch.testing.assert_close(found, torch.tensor(expected).float())


@pytest.mark.parametrize(("channels", "scaled"), [(32, 24), (16, 16), (24, 24), (64, 48)])
def test_channels_are_rounded_as_in_tf_slim(channels, scaled):
    assert scale_channels(channels, 0.75) == scaled


@pytest.mark.parametrize(("shape", "cells"), [((48, 64), (6, 8)), ((53, 71), (6, 8))])
@torch.inference_mode()
def test_shapes(shape, cells):
    output = HFNet(HFNetConfig(descriptor_dim=128, global_dim=16))(torch.rand(2, 1, *shape))
    assert output.score_logits.shape == (2, 65, *cells)
    assert output.descriptor_map.shape == (2, 128, *cells)
    assert output.global_descriptor.shape == (2, 16)
    torch.testing.assert_close(output.descriptor_map.norm(dim=1), torch.ones(2, *cells))
    assert score_map(output.score_logits).shape == (2, 8 * cells[0], 8 * cells[1])
