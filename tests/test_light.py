"""The light student: any size of image, its three sizes, copies for inference, of other sizes."""

from dataclasses import replace

import pytest
import torch

from hfnet_distill.errors import InputError
from hfnet_distill.networks.base import GlobalTeacher
from hfnet_distill.networks.hfnet import HFNetConfig
from hfnet_distill.networks.light import CONFIGS, Light
from hfnet_distill.networks.registry import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("size", [*CONFIGS])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (40, 72), (45, 71), (8, 8)])
def test_maps_of_any_size(size, height, width):
    output = Light(CONFIGS[size]).eval()(torch.rand(2, 1, height, width))
    cells = (height // 8, width // 8)
    assert output.score_logits.shape == (2, 65, *cells)
    assert output.descriptor_map.shape == (2, 128, *cells)
    torch.testing.assert_close(output.descriptor_map.norm(dim=1), torch.ones(2, *cells))
    assert output.global_descriptor is None


def test_an_image_without_a_cell_is_refused():
    with pytest.raises(InputError, match="an image of 64x7 pixels is too small"):
        Light()(torch.rand(1, 1, 7, 64))


def test_sizes_are_in_order_and_small():
    sizes = {
        name: sum(p.numel() for p in Light(CONFIGS[name]).parameters())
        for name in ("nano", "small", "base")
    }
    assert list(sizes.values()) == sorted(sizes.values())
    assert 2 * sizes["base"] < 2.5e6  # bytes in float16


def train_a_little(network: Light) -> Light:
    """Normalizations whose statistics are not those of the first step."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(2, 1, 48, 64))
    return network.eval()


def test_the_copy_for_inference_says_the_same(tmp_path):
    torch.manual_seed(0)
    config = Light.configure({"size": "nano"}, 16, GlobalTeacher(8, (4, 16)))
    assert (config.descriptor_dim, config.global_dim, config.clusters) == (16, 8, 4)
    network = train_a_little(Light(config))
    save_checkpoint(tmp_path / "light.safetensors", network, {})
    again, _ = load_checkpoint(tmp_path / "light.safetensors")
    assert again.config == config
    image = torch.rand(1, 1, 48, 64)
    with torch.inference_mode():
        for found, expected in zip(again.for_inference()(image), network(image), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in again.for_inference().modules())


@pytest.mark.parametrize("mode", [False, True])
def test_a_wider_copy_says_the_same(mode):
    torch.manual_seed(0)
    small = train_a_little(Light(replace(CONFIGS["small"], global_dim=8))).train(mode)
    base = small.resized(CONFIGS["base"])
    assert base.config == replace(CONFIGS["base"], global_dim=8)
    image = torch.rand(2, 1, 48, 64)
    with torch.no_grad():
        for found, expected in zip(base(image), small(image), strict=True):
            torch.testing.assert_close(found, expected)
    base.train()(image).descriptor_map[:, 0].sum().backward()
    new = base.descriptor_head[0][0].weight.grad[:, CONFIGS["small"].fused :]
    assert (new != 0).any()  # what is new does learn


def test_a_narrower_copy_keeps_the_first_channels():
    small = train_a_little(Light())
    small.refine_radius = 2
    nano = small.resized(CONFIGS["nano"])
    assert nano.config == CONFIGS["nano"]
    assert (nano.refine_radius, nano.rank_radius) == (2, 1)
    kept, whole = nano.stages[2][1][0].weight, small.stages[2][1][0].weight
    assert torch.equal(kept, whole[:32, :32])
    assert torch.equal(nano.descriptor_head[1].weight, small.descriptor_head[1].weight)


def test_copies_of_other_kinds_are_not_made():
    small = Light()
    assert small.resized(replace(CONFIGS["nano"], depths=(1, 1, 1, 1, 1))) is small
    assert small.resized(replace(small.config, global_dim=8)) is small
    assert small.resized(HFNetConfig()) is small


def test_settings_that_it_does_not_have():
    with pytest.raises(InputError, match="size 'tiny': expected one of nano, small, base"):
        Light.configure({"size": "tiny"}, 128, None)
    with pytest.raises(InputError, match=r"\[train.networks.light\]: .*width"):
        Light.configure({"width": 0.5}, 128, None)
    with pytest.raises(InputError, match="local descriptors of 256 numbers, the student's have 16"):
        Light.configure({}, 16, GlobalTeacher(8, (4, 256)))
    assert Light.configure({"fused": 32, "depths": [1, 1, 1, 1, 1]}, 64, None).fused == 32
