import numpy as np
import pytest
import torch

from hfnet_distill.data.geometry import MapGeometry
from hfnet_distill.errors import InputError
from hfnet_distill.networks.registry import save_checkpoint
from hfnet_distill.networks.silk import (
    SiLK,
    SiLKConfig,
)

RUNS = ("default", "nms4_top300", "nms4_top300_border6", "thr", "nms4_thr_no_topk")
OFFICIAL_LENGTH = 1.41  # of its descriptors; ours have unit length
MICRO = SiLKConfig(channels=(64,), lateral=32, descriptor_dim=32)


def run(network, image_u8):
    with torch.inference_mode():
        return network(torch.from_numpy(image_u8)[None, None].float() / 255)


def official_state(recorded, prefix=""):
    """The tensors of an official checkpoint by their own names."""
    state = {}
    for name in recorded.files:
        if name.startswith(f"{prefix}_mods"):
            array = recorded[name]
            array = array.astype(np.float32) if array.dtype == np.float16 else array
            state[name.removeprefix(prefix)] = torch.tensor(array)
    return state


@pytest.fixture
def micro(excerpt, tmp_path):
    """The recorded checkpoint of pvgg-micro as Lightning writes one."""
    state = official_state(excerpt("silk_micro"), "state/")
    torch.save({"state_dict": state, "epoch": 7, "callbacks": {}}, tmp_path / "micro.ckpt")
    return tmp_path / "micro.ckpt"


def check_positions(network, image_u8, recorded, name, every=1):
    """SiLK's own keypoints: our maps have its scores and descriptors at the same places.

    SiLK counts (row, column) from the corner of the top-left pixel of the map, we (x, y) from the
    center of that of the image.
    """
    image = torch.from_numpy(image_u8)[None, None].float() / 255
    positions = torch.from_numpy(recorded[f"{name}/sparse_positions"])
    keypoints = network.config.geometry.to_image(positions[:, [1, 0]] - 0.5)
    with torch.inference_mode():
        maps = network.maps(image)
        x, y = keypoints.long().T
        scores = maps.pixel_scores()[0, y, x]
        descriptors = network.describe(maps, 0, keypoints[::every])
    np.testing.assert_allclose(scores, positions[:, 2], atol=2e-5)
    kept = next(key for key in recorded.files if key.startswith(f"{name}/sparse_descriptors"))
    np.testing.assert_allclose(descriptors * OFFICIAL_LENGTH, recorded[kept], atol=1e-4)
    return keypoints


def test_excerpt_micro(excerpt, micro):
    recorded = excerpt("silk_micro")
    network = SiLK.read(micro)
    assert network.config == MICRO
    assert network.config.geometry == MapGeometry(1, 3)
    assert len(network.weights) == 64
    output = run(network, recorded["out/image_u8"])
    raw = output.raw_descriptor_map.numpy()
    np.testing.assert_allclose(output.score_logits.numpy(), recorded["out/logits"], atol=2e-4)
    np.testing.assert_allclose(raw[..., ::4, ::4], recorded["out/raw_descriptors_sub4"], atol=2e-4)
    excerpt_of = {key.removeprefix("out/"): recorded[key] for key in recorded.files}
    found = check_positions(network, recorded["out/image_u8"], Recorded(excerpt_of), "nms4_top300")
    # SiLK's (row, column) count from the pixel's corner, our (x, y) from its center.
    on_image = recorded["out/nms4_top300/sparse_positions_image"]
    np.testing.assert_array_equal(found, on_image[:, 1::-1] - 0.5)


class Recorded(dict):
    """Arrays by name, read as those of an .npz."""

    files = property(lambda self: [*self])


@pytest.mark.parametrize("image", "ABC")
def test_full_reference(golden, image):
    network = SiLK.read(golden("silk_state_dict").fid.name)
    assert network.config == SiLKConfig()
    recorded = golden(f"silk_outputs_{image}")
    output = run(network, recorded["image_u8"])
    np.testing.assert_allclose(output.score_logits.numpy(), recorded["logits"], atol=2e-4)
    step = 1 if image == "C" else 16
    name = "raw_descriptors" if image == "C" else "raw_descriptors_sub16"
    raw = output.raw_descriptor_map.numpy()
    np.testing.assert_allclose(raw[..., ::step, ::step], recorded[name], atol=2e-4)
    for name in RUNS:
        kept = next(k for k in recorded.files if k.startswith(f"{name}/sparse_descriptors"))
        every = int(kept.partition("_every")[2] or 1)
        found = check_positions(network, recorded["image_u8"], recorded, name, every)
        on_image = recorded[f"{name}/sparse_positions_image_every17"]
        np.testing.assert_array_equal(found[::17], on_image[:, 1::-1] - 0.5)


def test_full_reference_batch(golden):
    network = SiLK.read(golden("silk_state_dict").fid.name)
    recorded = golden("silk_batch")
    images = torch.from_numpy(recorded["images_u8"])[:, None].float() / 255
    with torch.inference_mode():
        probability = network(images).score_logits.sigmoid()
    for index in range(2):
        row, column, wanted = recorded[f"sparse_positions_{index}"].T
        found = probability[index, 0, row.astype(int), column.astype(int)]
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_keypoint_is_where_the_network_looked():
    # A dot in the image moves nothing but what lies within the receptive field around it.
    torch.manual_seed(0)
    network = SiLK(MICRO).eval()
    image = np.zeros((20, 24), np.uint8)
    before = run(network, image).raw_descriptor_map
    image[9, 13] = 255
    change = (run(network, image).raw_descriptor_map - before).abs().sum(1)[0]
    rows, columns = change.nonzero().T
    x, y = network.config.geometry.to_image(
        torch.stack([columns.float().mean(), rows.float().mean()])
    )
    assert (x, y) == (13, 9)


def test_own_weights_come_back(tmp_path):
    torch.manual_seed(0)
    network = SiLK(MICRO)
    save_checkpoint(tmp_path / "silk.safetensors", network, {"step": 3})
    again = SiLK.read(tmp_path / "silk.safetensors")
    assert again.config == MICRO
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_errors_name_the_tensor(excerpt, tmp_path):
    state = official_state(excerpt("silk_micro"), "state/")
    missing = "_mods.model.backbone._heads._mods.logits._detH2.0.bias"
    state["_mods.loss.weight"] = state.pop(missing)
    torch.save({"state_dict": state}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=missing):
        SiLK.read(tmp_path / "odd.ckpt")
    state[missing] = state["_mods.loss.weight"]
    torch.save({"state_dict": state}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"unknown tensor _mods\.loss\.weight"):
        SiLK.read(tmp_path / "odd.ckpt")


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"silk\.ckpt: no such file of weights"):
        SiLK.read(tmp_path / "silk.ckpt")
    for name in ("silk.ckpt", "silk.npz", "silk.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match=name):
            SiLK.read(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="state_dict of tensors"):
        SiLK.read(tmp_path / "list.ckpt")


def test_image_too_small():
    with pytest.raises(ValueError, match="30x6 pixels: this SiLK needs more than 6"):
        run(SiLK(MICRO), np.zeros((6, 30), np.uint8))


def test_a_size_without_a_cell_inside_the_border_is_refused():
    with pytest.raises(InputError, match="--size 16x16: silk says nothing of the outermost 9"):
        SiLK.open().fields(["score_map"], (16, 16), 10)
