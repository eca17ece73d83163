"""Our SuperPoint against the outputs of the official code."""

import numpy as np
import pytest
import torch
from references import suppress_non_maxima
from torch.nn import functional as F

from hfnet_distill.data.geometry import MapGeometry, sample_map
from hfnet_distill.networks.superpoint import SuperPoint
from hfnet_distill.networks.weights import load_arrays, load_strictly


@pytest.fixture(scope="module")
def synthetic_network(synthetic_weights) -> SuperPoint:
    path = synthetic_weights / "superpoint_v1.npz"
    network = SuperPoint().eval()
    load_strictly(network, load_arrays(path)[0], path)
    return network


@torch.inference_mode()
def run(network: SuperPoint, image_u8: np.ndarray):
    logits, descriptor_map = network(torch.from_numpy(image_u8 / np.float32(255))[None, None])
    return (
        logits,
        descriptor_map,
        F.pixel_shuffle(SuperPoint.cell_distribution(logits)[:, :64], 8)[:, 0],
    )


def demo_keypoints(score_map: np.ndarray, size, threshold: float):
    """As the official demo: threshold, suppression with radius 4, then a border of 4 pixels."""
    rows, columns = np.nonzero(score_map >= threshold)
    scores = score_map[rows, columns]
    points = np.stack([columns, rows], 1).astype(np.float32)
    keep = suppress_non_maxima(points, scores, size, 4)
    points, scores = points[keep], scores[keep]
    inside = ((points >= 4) & (points < np.array(size) - 4)).all(1)
    return points[inside], scores[inside]


def demo_descriptors(descriptor_map, points, size, align_corners: bool) -> np.ndarray:
    """As the official demo samples: x / (W / 2) - 1, under both meanings of align_corners."""
    points = torch.from_numpy(points)[None]
    if align_corners:
        cells = torch.tensor([descriptor_map.shape[3] - 1, descriptor_map.shape[2] - 1])
        points = points * cells / torch.tensor(size)
        geometry = MapGeometry(1, 0)
    else:
        # Its map covers W / 8 cells even where W is no multiple of 8.
        cells = torch.tensor([descriptor_map.shape[3], descriptor_map.shape[2]])
        points = points * cells / torch.tensor(size)
        geometry = MapGeometry(1, 0.5)
    samples = sample_map(descriptor_map, points, geometry, padding="zeros")[0]
    return F.normalize(samples, dim=1).numpy()


def check(network, recorded, threshold, prefix=""):
    """Every tensor recorded for an image, whatever part of it was kept."""
    image_u8 = recorded[prefix + "image_u8"]
    size = (image_u8.shape[1], image_u8.shape[0])
    logits, descriptor_map, score_map = run(network, image_u8)
    points, scores = demo_keypoints(score_map[0].numpy(), size, threshold)
    # Processors differ in the last bits, and so in the order of scores that are equal but for them.
    kept, place = recorded[prefix + "keypoints"], {tuple(at): row for row, at in enumerate(points)}
    order = [place[tuple(at)] for at in kept]
    assert len(order) == len(points)
    points, scores = points[order], scores[order]
    assert (np.diff(scores) < 1e-6).all()
    ours = {
        "semi": logits[0].numpy(),
        "coarse_desc": descriptor_map[0].numpy(),
        "heatmap": score_map[0].numpy(),
        "scores": scores,
        "descriptors_align_corners_False": demo_descriptors(descriptor_map, points, size, False),
        "descriptors_align_corners_True": demo_descriptors(descriptor_map, points, size, True),
    }
    np.testing.assert_array_equal(points, kept)
    compared = 0
    for key in recorded.files:
        name, _, part = key.removeprefix(prefix).partition("_sub")
        name, _, every = name.partition("_every")
        if name in ours and key.startswith(prefix):
            step = int(part or every or 1)
            cut = ours[name][..., ::step, ::step] if part else ours[name][::step]
            np.testing.assert_allclose(cut, recorded[key], atol=1e-4, rtol=0, err_msg=key)
            compared += 1
    assert compared == 6


@pytest.mark.parametrize("image", ["img0", "img1", "odd"])
def test_official_weights_give_the_recorded_outputs(golden, weights, image):
    network = SuperPoint().eval()
    path = weights / "superpoint_v1.pth"
    load_strictly(network, load_arrays(path)[0], path)
    check(network, golden(f"superpoint_{image}"), 0.015)


@pytest.mark.parametrize("prefix", ["a/", "b/"])
def test_synthetic_weights_give_the_recorded_outputs(golden, synthetic_network, prefix):
    check(synthetic_network, golden("superpoint_synth"), 0.05, prefix)


def test_synthetic_weights_give_the_excerpt(excerpt, synthetic_network):
    check(synthetic_network, excerpt("superpoint_synth"), 0.05)
