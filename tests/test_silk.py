import numpy as np
import pytest
import torch

from hfnet_distill.data.geometry import MapGeometry
from hfnet_distill.networks.silk import (
    SiLK,
    SiLKConfig,
    SiLKOutput,
    load_silk,
    save_silk,
    silk_features,
    sparse_positions,
)

RUNS = {
    "default": {},
    "nms4_top300": {"nms_radius": 4, "top_k": 300},
    "nms4_top300_border6": {"nms_radius": 4, "top_k": 300, "border": 6},
    "thr": {"threshold": 0.5, "top_k": 100},
    "nms4_thr_no_topk": {"nms_radius": 4, "threshold": 0.6, "top_k": None},
}
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


def check_positions(positions, recorded):
    np.testing.assert_array_equal(positions[:, :2].numpy(), recorded[:, :2])
    np.testing.assert_allclose(positions[:, 2].numpy(), recorded[:, 2], atol=2e-5)


def test_excerpt_micro(excerpt, micro):
    recorded = excerpt("silk_micro")
    network, digest = load_silk(micro)
    assert network.config == MICRO
    assert network.config.geometry == MapGeometry(1, 3)
    assert len(digest) == 64
    output = run(network, recorded["out/image_u8"])
    raw = output.raw_descriptor_map.numpy()
    np.testing.assert_allclose(output.score_logits.numpy(), recorded["out/logits"], atol=2e-4)
    np.testing.assert_allclose(raw[..., ::4, ::4], recorded["out/raw_descriptors_sub4"], atol=2e-4)
    positions = sparse_positions(output.score_logits.sigmoid()[0, 0], **RUNS["nms4_top300"])
    check_positions(positions, recorded["out/nms4_top300/sparse_positions"])

    features = silk_features(output, network.config.geometry, (64, 48), positions)
    order = np.argsort(-positions[:, 2].numpy(), kind="stable")
    # SiLK's (row, column) count from the pixel's corner, our (x, y) from its centre.
    row_column = recorded["out/nms4_top300/sparse_positions_image"][order, :2]
    np.testing.assert_array_equal(features.keypoints, row_column[:, ::-1] - 0.5)
    np.testing.assert_allclose(
        features.descriptors * 1.41,
        recorded["out/nms4_top300/sparse_descriptors"][order],
        atol=1e-4,
    )


@pytest.mark.parametrize("name", RUNS)
def test_excerpt_positions(excerpt, name):
    recorded = excerpt("silk_positions")
    probability = torch.from_numpy(recorded["probability"])[0, 0]
    positions = sparse_positions(probability, **RUNS[name])
    check_positions(positions, recorded[f"{name}/sparse_positions"])


@pytest.mark.parametrize("image", "ABC")
def test_full_reference(golden, image):
    network, _ = load_silk(golden("silk_state_dict").fid.name)
    assert network.config == SiLKConfig()
    recorded = golden(f"silk_outputs_{image}")
    output = run(network, recorded["image_u8"])
    probability = output.score_logits.sigmoid()[0, 0]
    np.testing.assert_allclose(output.score_logits.numpy(), recorded["logits"], atol=2e-4)
    step = 1 if image == "C" else 16
    name = "raw_descriptors" if image == "C" else "raw_descriptors_sub16"
    raw = output.raw_descriptor_map.numpy()
    np.testing.assert_allclose(raw[..., ::step, ::step], recorded[name], atol=2e-4)
    dense = 1.41 * output.descriptor_map[0].flatten(1).T.numpy()
    for name, settings in RUNS.items():
        positions = sparse_positions(probability, **settings)
        check_positions(positions, recorded[f"{name}/sparse_positions"])
        kept = next(k for k in recorded.files if k.startswith(f"{name}/sparse_descriptors"))
        every = int(kept.partition("_every")[2] or 1)
        rows, columns = positions[::every, :2].long().T.numpy()
        found = dense[rows * probability.shape[1] + columns]
        np.testing.assert_allclose(found, recorded[kept], atol=1e-4)
        on_image = recorded[f"{name}/sparse_positions_image_every17"][:, :2]
        ours = network.config.geometry.to_image(positions[::17, :2] - 0.5) + 0.5
        np.testing.assert_array_equal(ours.numpy(), on_image)


def test_full_reference_batch(golden):
    network, _ = load_silk(golden("silk_state_dict").fid.name)
    recorded = golden("silk_batch")
    images = torch.from_numpy(recorded["images_u8"])[:, None].float() / 255
    with torch.inference_mode():
        probability = network(images).score_logits.sigmoid()
    for index in range(2):
        positions = sparse_positions(probability[index, 0], nms_radius=4, top_k=120)
        check_positions(positions, recorded[f"sparse_positions_{index}"])


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


def test_features_by_hand():
    raw = torch.zeros(1, 2, 4, 5)
    raw[0, :, 1, 3] = torch.tensor([3.0, 4.0])
    raw[0, :, 2, 0] = torch.tensor([0.0, 2.0])
    output = SiLKOutput(torch.zeros(1, 1, 4, 5), raw)
    positions = torch.tensor([[1.5, 3.5, 0.2], [2.5, 0.5, 0.9]])
    features = silk_features(output, MapGeometry(1, 9), (23, 22), positions)
    np.testing.assert_array_equal(features.keypoints, [[9, 11], [12, 10]])
    np.testing.assert_allclose(features.scores, [0.9, 0.2])
    np.testing.assert_allclose(features.descriptors, [[0, 1], [0.6, 0.8]], atol=1e-6)


def test_top_k_leaves_one_more():
    probability = torch.rand(30, 40, generator=torch.Generator().manual_seed(0))
    assert len(sparse_positions(probability, top_k=100)) == 101
    assert len(sparse_positions(probability, top_k=1200)) == 1200
    assert len(sparse_positions(probability, top_k=100, threshold=0.5)) > 500


def test_own_weights_come_back(tmp_path):
    torch.manual_seed(0)
    network = SiLK(MICRO)
    save_silk(tmp_path / "silk.safetensors", network, {"step": 3})
    again, _ = load_silk(tmp_path / "silk.safetensors")
    assert again.config == MICRO
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert [path.name for path in tmp_path.iterdir()] == ["silk.safetensors"]


def test_errors_name_the_tensor(excerpt, tmp_path):
    state = official_state(excerpt("silk_micro"), "state/")
    missing = "_mods.model.backbone._heads._mods.logits._detH2.0.bias"
    state["_mods.loss.weight"] = state.pop(missing)
    torch.save({"state_dict": state}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=missing) as error:
        load_silk(tmp_path / "odd.ckpt")
    assert "_mods.loss.weight" in str(error.value)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"silk\.ckpt: no such SiLK checkpoint"):
        load_silk(tmp_path / "silk.ckpt")
    for name in ("silk.ckpt", "silk.npz", "silk.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match=name):
            load_silk(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="state_dict of tensors"):
        load_silk(tmp_path / "list.ckpt")


def test_image_too_small():
    with pytest.raises(ValueError, match="30x6 pixels: this SiLK needs more than 6"):
        run(SiLK(MICRO), np.zeros((6, 30), np.uint8))
