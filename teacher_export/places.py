"""VLAD of a local teacher's store: global descriptors that need no weights.

Jegou et al.: Aggregating Local Image Descriptors into Compact Codes, PAMI 2012; Jegou and Chum:
Negative Evidences and Co-occurrences in Image Retrieval, ECCV 2012 (whitening).
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from ..config import ExportSettings, load_settings, override
from ..console import progress
from ..data.images import list_images
from ..data.stores.store import Field, RecordStore, Schema
from ..errors import InputError, StoreError
from ..networks.vlad import VLAD, flatten_map, pool_residuals
from .export import with_shard_size, writing

__all__ = ["StoredDescriptors", "export_vlad", "fit_vlad"]

SAMPLE = 100_000  # descriptors that the words are learned from
MOST_IMAGES = 4096  # that the whitening is learned from
SMALLEST_ENERGY = 1e-6  # of an axis, relative to the largest; below it is the noise of float32
# Share of the largest variance that is added to all: with few images the weak axes are chance, and
# full whitening to nearly as many axes as images would make all images equally distant.
SHRINKAGE = 0.1


def export_vlad(
    from_store: str | Path,
    store: str | Path,
    *,
    images: str | Path | None = None,
    config: str | Path | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **options,
) -> Path:
    """Learn a VLAD from a local teacher's store and write the global descriptors of its images.

    No photograph is read. Words, mean and projection are kept in the store's ``parameters``, so
    that ``vlad:STORE`` can describe other images.

    Args:
        from_store: the store of a local teacher.
        store: where to write.
        images: a folder; its photographs must be those of ``from_store``.
        config, limit, overwrite, options: see ``teacher_export.export.export``.

    Returns:
        The store's path.

    Raises:
        InputError: too few photographs for the words or numbers asked for; says what to lower.
        StoreError: ``from_store`` is not complete or has no local descriptors, or the store
            at ``store`` was made with other settings.
    """
    path = Path(store)
    settings = override(load_settings(config).export, model="vlad", **options)
    if Path(from_store).resolve() == path.resolve():
        raise InputError(f"{path}: --store and --from-store are the same; choose another --store")
    local = RecordStore.open(from_store)
    if images is not None and (changed := sorted(set(local.names) ^ set(list_images(images)))):
        raise InputError(
            f"{from_store}: not of the photographs in {images}, first difference {changed[0]}; "
            "leave --images out to take the photographs of the store"
        )
    described = StoredDescriptors(local, local.names[:limit])
    settings = with_shard_size(settings, path, len(described), overwrite)
    schema = _make_schema(described, settings)
    with RecordStore.lock(path):
        if overwrite:
            RecordStore.remove(path)
        parameters = None
        if not path.exists():
            with progress("learn words and whitening", 2 * len(described), quiet=quiet) as advance:
                words, dim = settings.vlad_words, settings.vlad_dim
                vlad = fit_vlad(described, num_words=words, dim=dim, advance=advance)
            parameters = vlad.to_arrays()
        records = RecordStore.create(path, schema, described.names, settings.format, parameters)
        vlad = VLAD.from_arrays(records.parameters)
        with writing(records, quiet) as (pending, advance):
            for number in pending:
                rows = [vlad.encode(described[index]) for index in records.shard(number)]
                arrays = {"global_descriptor": np.stack(rows).astype(np.float16)}
                records.write_shard(number, arrays)
                advance(len(rows))
    return path


class StoredDescriptors(Sequence):
    """The local descriptors of a store's images, (N, D) float each, read when they are needed.

    Attributes:
        group: ``sparse``, those of the keypoints, if the store has them; otherwise
            ``descriptor_map``, those of every position, with its form as ``--fields`` names it.

    Raises:
        StoreError: the store is incomplete, has neither, or describes another teacher's keypoints,
            which no other image would have.
    """

    def __init__(self, store: RecordStore, names: Sequence[str]):
        self.store, self.names = store.require_complete(), names
        if "keypoints_teacher" in store.schema.settings:
            raise StoreError(
                f"{store.path}: describes the keypoints of "
                f"{store.schema.settings['keypoints_teacher']}, which vlad would not find in other "
                "images; expected a store made without --keypoints-from"
            )
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
            return record["descriptors"]
        return flatten_map(record["descriptor_map"])


def fit_vlad(
    images: Sequence[np.ndarray],
    *,
    num_words: int,
    dim: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> VLAD:
    """Learn words and whitening from the local descriptors of many images.

    Each image is read twice, one at a time, so they need not fit into memory. Of very many images
    an evenly spaced subset is used.

    Args:
        images: of each (N, D) float of unit length; N varies and may be 0.
        num_words: number of centers, K.
        dim: numbers in a global descriptor; less than the number of images.
        seed: of the sample and of the initial centers.
        advance: called ``2 * len(images)`` times.

    Raises:
        InputError: too few images or descriptors; says what to lower.
    """
    chosen = range(0, len(images), -(-len(images) // MOST_IMAGES))
    if dim >= len(chosen):
        raise InputError(
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
        raise InputError(
            f"{num_words} words: the photographs have {len(sample)} local descriptors; lower "
            "--words, or export more photographs"
        )
    found = KMeans(num_words, n_init=1, max_iter=50, random_state=seed).fit(sample)
    return found.cluster_centers_


def _learn_projection(centered: np.ndarray, dim: int) -> np.ndarray:
    """(N, C) images minus their mean -> (dim, C), as ``VLAD.projection``.

    N may be less than C: the axes come from the (N, N) products of the images.
    """
    energies, vectors = np.linalg.eigh((centered @ centered.T).astype(np.float64))
    energies, vectors = energies[: -dim - 1 : -1], vectors[:, : -dim - 1 : -1]
    rank = int((energies > SMALLEST_ENERGY * energies[0]).sum())
    if rank < dim:
        raise InputError(
            f"dim {dim}: {len(centered)} photographs differ in {rank} directions only; lower --dim "
            "to that, or export other photographs"
        )
    axes = (vectors / np.sqrt(energies)).T.astype(np.float32) @ centered
    variances = (energies + SHRINKAGE * energies[0]) / len(centered)
    return axes / np.sqrt(variances).astype(np.float32)[:, None]


def _make_schema(images: StoredDescriptors, settings: ExportSettings) -> Schema:
    """The schema of the store that VLAD over a local teacher's store would fill."""
    if set(settings.fields) - {"global_descriptor"}:
        raise InputError(
            f"--fields {','.join(settings.fields)}: vlad offers global_descriptor, nothing else"
        )
    local = images.store.schema
    return Schema(
        teacher="vlad",
        weights=local.weights,
        settings={
            "local": local.teacher,
            "descriptors": images.group,
            "words": settings.vlad_words,
            "dim": settings.vlad_dim,
            **{f"local_{key}": value for key, value in local.settings.items()},
        },
        image_size=local.image_size,
        fields={"global_descriptor": Field(shape=(settings.vlad_dim,), dtype="float16")},
        shard_size=settings.shard_size,
        compression=settings.compression,
        software=version("hfnet-distill"),
    )
