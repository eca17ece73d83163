"""VLAD: a global descriptor of an image from its local ones, learnt without labels.

Jegou et al.: Aggregating Local Image Descriptors into Compact Codes, PAMI 2012; Arandjelovic and
Zisserman: All About VLAD, CVPR 2013 (intra-normalisation); Jegou and Chum: Negative Evidences and
Co-occurrences in Image Retrieval, ECCV 2012 (whitening).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from sklearn.cluster import KMeans

from ..data.stores.store import RecordStore, StoreError

__all__ = ["VLAD", "StoredDescriptors", "fit_vlad", "flatten_map", "pool_residuals"]

SAMPLE = 100_000  # descriptors that the words are learnt from
MOST_IMAGES = 4096  # that the whitening is learnt from
SMALLEST_ENERGY = 1e-6  # of an axis, relative to the largest: below it is float32's noise
# Of the largest axis, added to all: weak axes of few images are chance, and full whitening to
# nearly as many axes as images would put all of them equally far apart.
SHRINKAGE = 0.1


@dataclass(frozen=True)
class VLAD:
    """What was learnt from many images, and encodes any.

    Attributes:
        words: (K, D) float32, the centres of the local descriptors.
        mean: (K * D,) float32, of the images' residuals.
        projection: (G, K * D) float32, onto their principal axes, the strongest first, each divided
            by its deviation, which counts for more than it is (``SHRINKAGE``).
    """

    words: np.ndarray
    mean: np.ndarray
    projection: np.ndarray

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """An image's local descriptors (N, D) of unit length -> (G,) float32 of unit length."""
        return _normalise(self.projection @ (pool_residuals(descriptors, self.words) - self.mean))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as a store's ``parameters`` keep them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "VLAD":
        """The inverse of ``to_arrays``.

        Raises:
            KeyError: names the array that is missing.
        """
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


class StoredDescriptors(Sequence):
    """The local descriptors of a store's images, read one image at a time: (N, D) float each.

    Attributes:
        group: which ones: ``sparse``, those of the keypoints, where the store has them; else
            ``descriptor_map``, those of every position, with its form as ``--fields`` names it.

    Raises:
        StoreError: the store is not complete, or has neither.
    """

    def __init__(self, store: RecordStore, names: Sequence[str]):
        self.store, self.names = store.require_complete(), names
        if "descriptors" in store.schema.fields:
            self.group = "sparse"
        elif "descriptor_map" in store.schema.fields:
            form = store.schema.settings.get("descriptor_map")
            self.group = f"descriptor_map:{form}" if form else "descriptor_map"
        else:
            raise StoreError(
                f"{store.path}: has no local descriptors, only {', '.join(store.schema.fields)}; "
                "name the store of a local teacher with --from-store"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        record = self.store.record(self.names[index])
        if self.group == "sparse":
            return record.descriptors
        return flatten_map(record.descriptor_map)


def flatten_map(descriptor_map: np.ndarray) -> np.ndarray:
    """A descriptor map (D, h, w) as rows (h * w, D)."""
    return descriptor_map.reshape(len(descriptor_map), -1).T


def fit_vlad(
    images: Sequence[np.ndarray],
    *,
    num_words: int,
    dim: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> VLAD:
    """Learn words and whitening from the local descriptors of many images.

    Each image is asked for twice, one at a time: they need not be in memory. Of very many, an even
    share is used.

    Args:
        images: of each (N, D) float of unit length; N varies and may be 0.
        num_words: centres, K.
        dim: numbers in a global descriptor, fewer than there are images.
        seed: of the sample and of the first centres; the same one gives the same words.
        advance: called ``2 * len(images)`` times.

    Raises:
        ValueError: too few images or descriptors; says what to lower.
    """
    chosen = range(0, len(images), -(-len(images) // MOST_IMAGES))
    if dim >= len(chosen):
        raise ValueError(
            f"dim {dim}: {len(chosen)} photographs have {len(chosen) - 1} axes at most; lower "
            "--dim to that, or export more photographs"
        )
    words = _learn_words(images, chosen, num_words, seed, advance)
    pooled = np.empty((len(chosen), words.size), np.float32)
    for row, index in enumerate(chosen):
        pooled[row] = pool_residuals(images[index], words)
        advance()
    mean = pooled.mean(axis=0)
    return VLAD(words, mean, _learn_projection(pooled - mean, dim))


def _learn_words(images, chosen: range, num_words: int, seed: int, advance) -> np.ndarray:
    random = np.random.default_rng(seed)
    share = -(-SAMPLE // len(chosen))
    sample = []
    for index in chosen:
        descriptors = images[index]
        rows = random.permutation(len(descriptors))[:share]
        sample.append(descriptors[rows].astype(np.float32))
        advance()
    sample = np.concatenate(sample)
    if len(sample) < num_words:
        raise ValueError(
            f"{num_words} words: the photographs have {len(sample)} local descriptors; lower "
            "--words, or export more photographs"
        )
    found = KMeans(num_words, n_init=1, max_iter=50, random_state=seed).fit(sample)
    return found.cluster_centers_


def _learn_projection(centred: np.ndarray, dim: int) -> np.ndarray:
    """(N, C) images without their mean -> (dim, C), as ``VLAD.projection``.

    There may be fewer images than numbers: the axes come from the (N, N) products of the images.
    """
    energies, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    energies, vectors = energies[: -dim - 1 : -1], vectors[:, : -dim - 1 : -1]
    rank = int((energies > SMALLEST_ENERGY * energies[0]).sum())
    if rank < dim:
        raise ValueError(
            f"dim {dim}: {len(centred)} photographs differ in {rank} directions only; lower --dim "
            "to that, or export other photographs"
        )
    axes = (vectors / np.sqrt(energies)).T.astype(np.float32) @ centred
    variances = (energies + SHRINKAGE * energies[0]) / len(centred)
    return axes / np.sqrt(variances).astype(np.float32)[:, None]


def pool_residuals(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sum each descriptor's difference from its nearest word, word by word.

    Args:
        descriptors: (N, D) float.
        words: (K, D) float32.

    Returns:
        (K * D,) float32 of unit length, word after word, each word's part of the same length; zeros
        for words that no descriptor is nearest to.
    """
    descriptors = descriptors.astype(np.float32)
    nearest = (descriptors @ words.T - (words**2).sum(axis=1) / 2).argmax(axis=1)
    members = (nearest == np.arange(len(words))[:, None]).astype(np.float32)
    sums = members @ descriptors - members.sum(axis=1, keepdims=True) * words
    return _normalise(_normalise(sums).ravel())


def _normalise(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
