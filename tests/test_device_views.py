"""Views that the device cuts are those that the loader cuts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import make_dataset, store  # noqa: F401  (a fixture)

from hfnet_distill.data.augment import Photometric
from hfnet_distill.student.device_views import cut_views, describe_views


def views(store, photographs, views_on, **changes) -> tuple[torch.Tensor, dict]:  # noqa: F811
    """Gray values of two views of each photograph in three epochs, and all else of the batch."""
    dataset = make_dataset(
        store, photographs, crop=(48, 32), views=2, warp=0.6, views_on=views_on, **changes
    )
    items = [dataset[epoch, row] for epoch in range(3) for row in range(len(dataset))]
    batch = torch.utils.data.default_collate(items)
    if views_on == "device":
        return cut_views(batch, dataset.crop), batch
    return batch.pop("image").flatten(0, 1).float(), batch


@pytest.mark.parametrize("photometric", [0.0, 1.0])
@pytest.mark.parametrize(("full_resolution", "tolerance"), [(False, 0.05), (True, 0.5)])
def test_pictures_are_those_of_the_loader(
    store,  # noqa: F811
    photographs,
    monkeypatch,
    photometric,
    full_resolution,
    tolerance,
):
    draw = Photometric.draw
    monkeypatch.setattr(Photometric, "draw", lambda *given: replace(draw(*given), noise=0.0))
    changes = {"photometric": photometric, "full_resolution": full_resolution}
    (expected, rest), (found, others) = (
        views(store, photographs, place, **changes) for place in ("loader", "device")
    )
    assert found.shape == expected.shape == (36, 1, 32, 48)
    assert (found - expected).abs().mean() < tolerance
    assert expected.std((1, 2, 3)).mean() > 10
    assert rest.keys() == others.keys()
    assert all(torch.equal(rest[name], others[name]) for name in rest)  # fields and homographies


def test_a_photograph_finer_than_the_view_is_averaged():
    photograph = np.random.default_rng(0).integers(0, 256, (240, 320)).astype(np.uint8)
    fifth = np.array([[5.0, 0, 2], [0, 5, 2], [0, 0, 1]])  # pixels are blocks of 5x5
    item = describe_views(photograph, (330, 250), [fifth], (64, 48), [Photometric()])
    batch = {name: torch.from_numpy(values)[None] for name, values in item.items()}
    expected = photograph.reshape(48, 5, 64, 5).mean((1, 3))
    found = cut_views(batch, (64, 48))[0, 0]
    assert not batch
    assert np.abs(found.numpy() - expected).max() <= 0.51


def test_noise_follows_from_its_seed_alone():
    photograph = np.full((48, 64), 128, np.uint8)
    changes = [Photometric(noise=10.0, seed=seed) for seed in (5, 6, 5)]
    item = describe_views(photograph, (64, 48), [np.eye(3)] * 3, (64, 48), changes)
    batch = {name: torch.from_numpy(values)[None] for name, values in item.items()}
    first, other, again = cut_views(batch, (64, 48)) - 128
    assert torch.equal(first, again)
    for noise in (first, other):
        assert noise.mean().abs() < 0.6
        assert noise.std().item() == pytest.approx(10, abs=0.4)
        neighbors = (
            (noise[:, 1:] * noise[:, :-1]).mean(),
            (noise[:, :, 1:] * noise[:, :, :-1]).mean(),
        )
        assert max(map(abs, neighbors)) < 6
    assert (first * other).mean().abs() < 6
