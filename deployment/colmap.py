"""Features files -> pairs, matches and a COLMAP database that is ready for mapping."""

from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import torch

from ..console import progress
from ..data.features import Features, image_names, open_hdf5, read_features
from ..errors import AlreadyExistsError, InputError, NotFoundError
from ..extras import require
from ..files import beside, open_atomically, sweep, write_atomically

__all__ = [
    "Matcher",
    "make_matcher",
    "match",
    "pairs_from_retrieval",
    "read_pairs",
    "write_database",
    "write_matches",
]

Matcher = Callable[[Features, Features], tuple[np.ndarray, np.ndarray]]
"""Features of two images -> matches (K, 2), rows of both, and scores (K,)."""

FROM_CORNER = 0.5
"""COLMAP counts pixels from the corner of the first one; we count from its centre."""


def match(
    descriptors0: np.ndarray, descriptors1: np.ndarray, *, ratio: float, min_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours that are alike enough, and much more so than the second nearest.

    Args:
        descriptors0, descriptors1: (N, D) and (M, D) float32 of unit length.
        ratio: of the distances to the nearest and the second nearest, at most (Lowe, IJCV 2004); 1
            takes all.
        min_similarity: of the cosine, at least; -1 takes all.

    Returns:
        (K, 2) intp, the rows of both, and their cosines (K,) float32.
    """
    if min(len(descriptors0), len(descriptors1)) == 0:
        return np.zeros((0, 2), np.intp), np.zeros(0, np.float32)
    similarity = torch.from_numpy(descriptors0) @ torch.from_numpy(descriptors1).T
    best, partner = similarity.max(1)
    rows = torch.arange(len(similarity))
    good = (similarity.argmax(0)[partner] == rows) & (best >= min_similarity)
    if ratio < 1 and similarity.shape[1] > 1:
        second = similarity.topk(2, dim=1).values[:, 1]
        # Of unit vectors the squared distance is 2 - 2 cos.
        good &= (1 - best).clamp(min=0) < ratio**2 * (1 - second)
    pairs = torch.stack([rows[good], partner[good]], 1)
    return pairs.numpy(), best[good].numpy()


def make_matcher(
    name: str, *, ratio: float, min_similarity: float, device: str = "auto"
) -> Matcher:
    """The matcher of that name.

    Args:
        name: nearest, see ``match``, or lightglue, see ``networks.lightglue``.
        ratio, min_similarity: of nearest.
        device: of lightglue: auto, cpu, cuda or cuda:N.

    Raises:
        InputError, NotFoundError: lightglue without kornia or without its weights.
    """
    if name == "lightglue":
        from ..networks.lightglue import LightGlueMatcher

        return LightGlueMatcher(device=device).match
    how = {"ratio": ratio, "min_similarity": min_similarity}
    return lambda one, other: match(one.descriptors, other.descriptors, **how)


def pairs_from_retrieval(features: Path, count: int) -> list[tuple[str, str]]:
    """Each image with the ``count`` that are most alike by global descriptor, each pair once.

    Raises:
        InputError: the features have no global descriptors.
    """
    names, descriptors = [], []
    with open_hdf5(features) as file:
        for name in image_names(file):
            if "global_descriptor" not in file[name]:
                raise InputError(
                    f"{features}: image {name} has no global descriptor, so none can be retrieved; "
                    "extract with a model that has one, or give --match-with a list"
                )
            names.append(name)
            descriptors.append(file[name]["global_descriptor"][()].astype(np.float32))
    similarity = np.stack(descriptors) @ np.stack(descriptors).T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(names) - 1)]
    pairs = {tuple(sorted((row, int(other)))) for row, rows in enumerate(nearest) for other in rows}
    return [(names[row], names[other]) for row, other in sorted(pairs)]


def all_pairs(features: Path) -> list[tuple[str, str]]:
    """Every image with every other one."""
    with open_hdf5(features) as file:
        return list(combinations(image_names(file), 2))


def read_pairs(path: Path, features: Path) -> list[tuple[str, str]]:
    """A text file of two names a line, as hloc writes it.

    Raises:
        InputError, NotFoundError: no such file, a line of another kind, or an image that the
            features file lacks.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such list of pairs")
    with open_hdf5(features) as file:
        known = set(image_names(file))
    pairs = []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        names = line.split()
        if not names:
            continue
        if len(names) != 2:
            raise InputError(f"{path}, line {number}: {len(names)} names; expected two")
        for name in names:
            if name not in known:
                raise InputError(f"{path}, line {number}: {features} has no image {name}")
        pairs.append((names[0], names[1]))
    return pairs


def write_pairs(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Two names a line, as hloc reads it."""
    write_atomically(path, "".join(f"{one} {other}\n" for one, other in pairs).encode())


def _read(file: h5py.File, name: str) -> Features:
    features = read_features(file, name)
    if features.descriptors is None or features.descriptors.dtype == bool:
        raise InputError(f"{file.filename}: image {name} has no descriptors of numbers to match")
    return features


def write_matches(
    features: Path,
    pairs: list[tuple[str, str]],
    path: Path,
    matcher: Matcher,
    *,
    quiet: bool = False,
) -> None:
    """The matches of pairs as hloc keeps them.

    A group ``NAME0/NAME1`` a pair, with - for / in the names: ``matches0`` (N0,) int16, the row of
    the other image or -1, and ``matching_scores0`` (N0,) float16.
    """
    sweep(path)
    with (
        open_hdf5(features) as file,
        open_atomically(path) as stream,
        h5py.File(stream, "w") as out,
        progress("pairs", len(pairs), quiet=quiet) as advance,
    ):
        for one, other in pairs:
            first, second = _read(file, one), _read(file, other)
            found, scores = matcher(first, second)
            group = out.create_group(f"{one.replace('/', '-')}/{other.replace('/', '-')}")
            matches = np.full(len(first.keypoints), -1, np.int16)
            matches[found[:, 0]] = found[:, 1]
            all_scores = np.zeros(len(matches), np.float16)
            all_scores[found[:, 0]] = scores
            group["matches0"], group["matching_scores0"] = matches, all_scores
            advance()


def write_database(
    features: Path,
    images: Path,
    path: Path,
    pairs: list[tuple[str, str]],
    matcher: Matcher,
    *,
    single_camera: bool = False,
    quiet: bool = False,
) -> None:
    """A COLMAP database with cameras, keypoints, matches and geometrically verified matches.

    Cameras are guessed from EXIF data, as COLMAP does. The database is whole or absent.

    Args:
        images: the folder of the photographs.
        single_camera: all photographs are of one camera with one lens setting.

    Raises:
        AlreadyExistsError: there is a database, with these or with other images.
        InputError: pycolmap is not installed, or a photograph cannot be read by it.
    """
    pycolmap = require("pycolmap", "colmap")
    with open_hdf5(features) as file:
        names = image_names(file)
    if path.exists():
        raise AlreadyExistsError(f"{path}: {_difference(pycolmap, path, names)}; remove it first")
    sweep(path)
    partial = beside(path)
    pycolmap.logging.minloglevel = pycolmap.logging.WARNING.value
    try:
        pycolmap.Database.open(partial).close()  # makes an empty one
        mode = pycolmap.CameraMode.SINGLE if single_camera else pycolmap.CameraMode.AUTO
        pycolmap.import_images(partial, images, mode, image_names=names)
        database = pycolmap.Database.open(partial)
        ids = {image.name: image.image_id for image in database.read_all_images()}
        if missing := [name for name in names if name not in ids]:
            raise InputError(f"{images / missing[0]}: COLMAP cannot read this photograph")
        with open_hdf5(features) as file:
            known = {name: _read(file, name) for name in names}
        for name, found in known.items():
            database.write_keypoints(ids[name], found.keypoints + np.float32(FROM_CORNER))
        with progress("pairs", len(pairs), quiet=quiet) as advance:
            for one, other in pairs:
                found, _ = matcher(known[one], known[other])
                database.write_matches(ids[one], ids[other], found.astype(np.uint32))
                advance()
        database.close()
        pycolmap.geometric_verification(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _difference(pycolmap, path: Path, names: list[str]) -> str:
    try:
        database = pycolmap.Database.open(path)
        there = {image.name for image in database.read_all_images()}
        database.close()
    except Exception as error:  # of SQLite, by way of C++
        return f"not a COLMAP database ({str(error).splitlines()[0]})"
    if there == set(names):
        return "a database of these images is there already"
    return f"a database of {len(there)} images that are not these {len(names)}"
