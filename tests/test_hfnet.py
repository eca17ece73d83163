"""HF-Net against the outputs that its TensorFlow code gave, and its parts by hand."""

import numpy as np
import pytest
import torch
from tensorflow_variables import load_variables
from torch import nn
from torch.nn import functional as F

from hfnet_distill.data.geometry import MapGeometry, sample_map
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.networks.base import DenseMaps
from hfnet_distill.networks.hfnet import ConvBN, HFNet, HFNetConfig, LocalVLAD, scale_channels

SIZES = ["s96x128", "s200x264", "s101x135"]


@pytest.fixture(scope="module")
def variables(golden):
    files = [golden("hfnet_vars_backbone"), golden("hfnet_vars_heads")]
    return {name: file[name] for file in files for name in file.files}


@pytest.fixture(scope="module")
def excerpt_variables(excerpt):
    """Those that the score logits follow from, as recorded; ones for every other."""
    files = excerpt("hfnet_backbone"), excerpt("hfnet_detector")
    variables = {
        name: np.ones([int(side) for side in shape.split(",")], np.float32)
        for name, shape in zip(files[0]["names"], files[0]["shapes"], strict=True)
    }
    recorded = {key: file[key] for file in files for key in file.files if "variables/" in key}
    return variables | {key.removeprefix("variables/"): recorded[key] for key in recorded}


def pixel_scores(output) -> torch.Tensor:
    """The probability of each pixel (B, H, W)."""
    return DenseMaps((0, 0), output.score_logits.softmax(1)).pixel_scores()


def make_network(variables, global_dim=256) -> HFNet:
    network = HFNet(HFNetConfig(global_dim=global_dim)).eval()
    load_variables(network, variables)
    return network


def keep_layers(network: HFNet, **modules) -> dict[str, torch.Tensor]:
    """What the named modules give when the network runs, each (h, w, channels)."""
    kept = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda *call, name=name: kept.update({name: call[2][0].permute(1, 2, 0)})
        )
    return kept


def to_image(image_u8) -> torch.Tensor:
    return torch.from_numpy(image_u8 / np.float32(255))[None, None]


def check(found: torch.Tensor, recorded: np.ndarray, tolerance: float):
    np.testing.assert_allclose(found.numpy(), recorded, atol=tolerance, rtol=0)


@torch.inference_mode()
def test_score_logits_of_a_photograph(excerpt, excerpt_variables):
    backbone, detector = excerpt("hfnet_backbone"), excerpt("hfnet_detector")
    network = make_network(excerpt_variables)
    kept = keep_layers(network, layer_1=network.stem, layer_7=network.local_blocks[-1])
    output = network(to_image(backbone["image_u8"]))  # 101 x 135 pixels, cropped to 96 x 128
    check(kept["layer_1"][::2, ::2, :3], backbone["layer_1_first3ch_sub2"], 1e-4)
    check(kept["layer_7"][..., ::4], backbone["layer_7"], 1e-4)
    logits = output.score_logits[0].permute(1, 2, 0)
    check(logits[::2, ::2], detector["logits_sub2"], 1e-4)
    check(pixel_scores(output)[0, ::2, ::2], detector["scores_dense_sub2"], 3e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_every_recorded_output(golden, variables, size):
    recorded = golden(f"hfnet_outputs_{size}")
    network = make_network(variables)
    kept = keep_layers(
        network,
        layer_1=network.stem,
        layer_7=network.local_blocks[-1],
        layer_18=network.global_blocks,
    )
    output = network(to_image(recorded["image_u8"]))
    step = 2 if "local_descriptor_map_sub2" in recorded else 1
    name = "local_descriptor_map_sub2" if step == 2 else "local_descriptor_map"
    check(kept["layer_1"][..., :3], recorded["layer_1_first3ch"], 1e-4)
    check(kept["layer_7"], recorded["layer_7"], 1e-4)
    # Two builds of the reference's own convolutions differ by 4e-4 here.
    check(kept["layer_18"], recorded["layer_18"], 2e-3)
    check(output.score_logits[0].permute(1, 2, 0), recorded["logits"], 1e-4)
    check(pixel_scores(output)[0], recorded["scores_dense"], 3e-5)
    check(output.descriptor_map[0].permute(1, 2, 0)[::step, ::step], recorded[name], 5e-6)
    check(output.global_descriptor[0], recorded["global_descriptor"], 3e-5)


def sample_as_hfnet(descriptor_map: torch.Tensor, keypoints_xy: np.ndarray) -> torch.Tensor:
    """HF-Net's own sampling, (N, D).

    It stretches the map's outer centers over the image's, ``(cells - 1) / (pixels - 1)``. Ours
    (``CELL_MAP``) puts a cell's descriptor at the cell's center; they agree in the middle of the
    image and are 0.44 cells apart at its edges.
    """
    height, width = descriptor_map.shape[2:]
    stretch = torch.tensor([(width - 1) / (8 * width - 1), (height - 1) / (8 * height - 1)])
    points = torch.from_numpy(keypoints_xy).float() * stretch
    samples = sample_map(descriptor_map, points[None], MapGeometry(1, 0))[0]
    return F.normalize(samples, dim=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("run", "choice", "every"),
    [
        (
            "thr0.015",
            KeypointChoice(threshold=0.015, nms_radius=0, border=0, max_num_keypoints=10**6),
            41,
        ),
        (
            "nms4_top50",
            KeypointChoice(threshold=0.005, nms_radius=4, border=0, max_num_keypoints=50),
            1,
        ),
    ],
)
@torch.inference_mode()
def test_recorded_keypoints_and_descriptors(golden, variables, size, run, choice, every):
    recorded = golden(f"hfnet_outputs_{size}")
    output = make_network(variables)(to_image(recorded["image_u8"]))
    ((keypoints, scores),) = choice(pixel_scores(output)[:1])
    keypoints, scores = keypoints.numpy(), scores.numpy()
    expected = recorded[f"{run}/keypoints_xy"]
    flips = {tuple(point) for point in keypoints} ^ {tuple(point) for point in expected}
    assert len(flips) <= 2  # a score may fall on the threshold's other side
    if not flips:
        check(torch.from_numpy(scores), np.sort(recorded[f"{run}/scores"])[::-1], 3e-5)
    name = f"{run}/local_descriptors" + (f"_every{every}" if every > 1 else "")
    check(sample_as_hfnet(output.descriptor_map, expected[::every]), recorded[name], 1e-5)


@torch.inference_mode()
def test_the_published_projection_size(golden, variables):
    integers = np.random.RandomState(4096).randint(0, 65536, size=(7680, 4096), dtype=np.uint16)
    biases = np.random.RandomState(4097).standard_normal(4096) * 0.05
    scope = "global_head/dimensionality_reduction/"
    projection = {
        f"{scope}weights": (integers.astype(np.float32) - 32768) / (32768 * 64),
        f"{scope}biases": biases.astype(np.float32),
    }
    network = make_network({**variables, **projection}, global_dim=4096)
    for size in SIZES:
        recorded = golden(f"hfnet_outputs_{size}")
        output = network(to_image(recorded["image_u8"]))
        check(output.global_descriptor[0], recorded["global_descriptor_4096"], 3e-5)


def test_a_student_without_global_branch_loads_the_local_variables(excerpt_variables):
    network = make_network(excerpt_variables, global_dim=0)
    parts = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert parts == {"stem", "local_blocks", "descriptor_head", "detector_head"}


def convolve_same(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """TensorFlow's definition of SAME at stride 2, of (H, W) with (3, 3)."""
    sides = [-(-side // 2) for side in image.shape]
    total = [(out - 1) * 2 + 3 - side for out, side in zip(sides, image.shape, strict=True)]
    padded = np.pad(image, [(pad // 2, pad - pad // 2) for pad in total])
    return np.array(
        [
            [(padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3] * kernel).sum() for x in range(sides[1])]
            for y in range(sides[0])
        ]
    )


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (6, 9), (7, 8)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_strided_convolutions_pad_as_tensorflow_does(shape, precision, training):
    rng = np.random.default_rng(0)
    # Small whole numbers: exact in both precisions.
    image = rng.integers(-4, 5, (2, *shape)).astype(np.float32)
    kernels = rng.integers(-2, 3, (2, 3, 3)).astype(np.float32)
    layer = ConvBN(2, 2, 3, stride=2, groups=2)
    layer.conv.weight.data = torch.from_numpy(kernels)[:, None]
    layer.norm = nn.Identity()
    layer.activate = False
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        values = torch.from_numpy(image)[None].to(precision).requires_grad_(training)
        found = layer(values)[0].detach()
    assert found.dtype == precision
    expected = np.stack([convolve_same(*pair) for pair in zip(image, kernels, strict=True)])
    np.testing.assert_array_equal(found.float().numpy(), expected)


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
    assert pixel_scores(output).shape == (2, 8 * cells[0], 8 * cells[1])


def test_training_in_bfloat16_gives_float32_maps_of_unit_length_and_gradients():
    network = HFNet(HFNetConfig(global_dim=16)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(2, 1, 64, 64))
    assert {tensor.dtype for tensor in output} == {torch.float32}
    for unit in output[1:]:
        torch.testing.assert_close(unit.norm(dim=1), torch.ones_like(unit[:, 0]))
    sum(tensor.square().mean() + tensor.mean() for tensor in output).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("part", ["detector_skip", "context_block"])
def test_what_hfnet_has_not_changes_nothing_until_it_is_trained(part):
    plain = HFNet(HFNetConfig(width=0.35))
    student = HFNet(HFNetConfig(width=0.35, **{part: True}))
    student.start_from(plain)
    image = torch.rand(1, 1, 48, 64)
    expected, found = plain.eval()(image), student.eval()(image)
    torch.testing.assert_close(found.score_logits, expected.score_logits)
    student.train()(image).score_logits.logsumexp(1).sum().backward()
    scales = [p for n, p in student.named_parameters() if n.startswith(part) and p.ndim == 1]
    assert max(scale.grad.abs().max() for scale in scales) > 0


@pytest.mark.parametrize("size", [(64, 48), (40, 24)])
def test_folding_the_normalization_changes_no_number(size):
    torch.manual_seed(0)
    added = {"detector_skip": True, "context_block": True, "global_dim": 16, "clusters": 4}
    student = HFNet(HFNetConfig(width=0.35, **added)).train()
    for _ in range(20):  # statistics of its own
        student(torch.rand(2, 1, 48, 64))
    student.eval()
    image = torch.rand(1, 1, *size[::-1])
    with torch.no_grad():
        for expected, found in zip(student(image), student.for_inference()(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert any(p.requires_grad for p in student.parameters())


def test_an_image_smaller_than_a_cell_is_refused():
    with pytest.raises(ValueError, match="an image of 9x7 pixels is too small"):
        HFNet()(torch.zeros(1, 1, 7, 9))


def test_places_from_local_descriptors_are_their_vlad():
    generator = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    near = torch.randint(4, (30,), generator=generator)
    descriptors = words[near] + 0.05 * torch.randn(30, 16, generator=generator)
    logits = torch.randn(1, 65, 5, 6, generator=generator)
    mean, matrix = torch.randn(64, generator=generator), torch.randn(8, 64, generator=generator)

    vlad, projection = LocalVLAD(16, 4), torch.nn.Linear(64, 8)
    arrays = {"words": words.numpy(), "mean": mean.numpy(), "projection": matrix.numpy()}
    vlad.start_from(projection, arrays)
    with torch.no_grad():
        found = projection(vlad(logits, descriptors.T.reshape(1, 16, 5, 6)))[0]

    likely = 1 - logits.softmax(1)[0, 64].flatten()
    sums = torch.zeros(4, 16).index_add_(0, near, (descriptors - words[near]) * likely[:, None])
    pooled = F.normalize(F.normalize(sums, dim=1).flatten(), dim=0)
    torch.testing.assert_close(found, matrix @ (pooled - mean), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [0, 1, 40, 2000])
def test_descriptors_at_keypoints_alone_are_those_of_the_map(count):
    torch.manual_seed(0)
    network = HFNet(HFNetConfig(width=0.25, descriptor_dim=16)).for_inference()
    images = torch.rand(2, 1, 101, 135)
    with torch.inference_mode():
        whole, sparse = network.maps(images), network.sparse_maps(images)
        assert sparse.descriptor_map is None
        keypoints = torch.rand(count, 2) * torch.tensor([134.0, 100.0])  # also beyond the cells
        for row in range(2):
            expected = network.describe(whole, row, keypoints)
            found = network.describe(sparse, row, keypoints)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_global_descriptor_needs_the_whole_map():
    network = HFNet(HFNetConfig(global_dim=8, global_pooling="local")).for_inference()
    assert network.sparse_maps(torch.rand(1, 1, 16, 16)).global_descriptor is not None
