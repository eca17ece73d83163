"""VLAD: residuals by hand, words and whitening learned from a few images."""

import numpy as np
import pytest

from hfnet_distill.networks.vlad import VLAD, pool_residuals
from hfnet_distill.teacher_export.places import SHRINKAGE, fit_vlad


def make_images(count: int, seed: int = 0, places: int = 5) -> list[np.ndarray]:
    """Local descriptors of images of a few places, each with a place's own mixture of kinds."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(99).standard_normal((20, 6))
    images = []
    for number in range(count):
        mine = kinds[4 * (number % places) : 4 * (number % places) + 4]
        rows = mine[rng.integers(0, 4, 30)] + 0.2 * rng.standard_normal((30, 6))
        images.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return images


def test_residuals_by_hand():
    words = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    descriptors = np.array([[0.6, 0], [0.9, 0.3], [0, 0.5]], np.float32)
    # The first word: (-0.4, 0) + (-0.1, 0.3); the second: (0, -0.5); the third has none.
    first = np.array([-0.5, 0.3]) / np.hypot(0.5, 0.3)
    expected = np.concatenate([first, [0, -1], [0, 0]]) / np.sqrt(2)
    np.testing.assert_allclose(pool_residuals(descriptors, words), expected, atol=1e-6)
    nothing = pool_residuals(np.zeros((0, 2), np.float32), words)
    np.testing.assert_array_equal(nothing, np.zeros(6))


def test_whitened_axes_are_apart_and_more_alike():
    images = make_images(40)
    vlad = fit_vlad(images, num_words=4, dim=6)
    pooled = np.stack([pool_residuals(image, vlad.words) for image in images])
    np.testing.assert_allclose(vlad.mean, pooled.mean(axis=0), atol=1e-6)
    axes = (pooled - vlad.mean) @ vlad.projection.T
    covariance = axes.T @ axes / len(axes)
    energies = np.linalg.svd(pooled - vlad.mean, compute_uv=False)[:6] ** 2
    expected = energies / (energies + SHRINKAGE * energies[0])
    np.testing.assert_allclose(covariance, np.diag(expected), atol=1e-4)


def test_images_of_a_place_are_near():
    vlad = fit_vlad(make_images(40), num_words=8, dim=8)
    encoded = np.stack([vlad.encode(image) for image in make_images(20, seed=1)])
    assert encoded.shape == (20, 8)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1, atol=1e-6)
    similarities = encoded @ encoded.T - 2 * np.eye(20)
    np.testing.assert_array_equal(similarities.argmax(axis=1) % 5, np.arange(20) % 5)


def test_the_seed_decides():
    first, second = (fit_vlad(make_images(20), num_words=4, dim=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.projection, second.projection)


def test_arrays_and_back():
    vlad = fit_vlad(make_images(20), num_words=4, dim=5)
    image = make_images(1, seed=2)[0]
    again = VLAD.from_arrays(vlad.to_arrays())
    np.testing.assert_array_equal(again.encode(image), vlad.encode(image))


def test_an_image_without_descriptors():
    images = [*make_images(20), np.zeros((0, 6), np.float32)]
    vlad = fit_vlad(images, num_words=4, dim=5)
    np.testing.assert_allclose(np.linalg.norm(vlad.encode(images[-1])), 1, atol=1e-6)


def test_too_few_photographs_or_descriptors():
    with pytest.raises(ValueError, match="dim 20: 20 photographs have 19 axes at most; lower"):
        fit_vlad(make_images(20), num_words=4, dim=20)
    with pytest.raises(ValueError, match=r"4 words: the photographs have 3 .*lower --words"):
        fit_vlad([image[:1] for image in make_images(3)], num_words=4, dim=2)
    with pytest.raises(ValueError, match="dim 3: 9 photographs differ in 2 directions only"):
        fit_vlad(make_images(3) * 3, num_words=4, dim=3)
