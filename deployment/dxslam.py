"""Features as DXSLAM reads them (Li et al., IROS 2020): three folders of a file an image."""

from pathlib import Path

import numpy as np

from ..data.features import image_names, open_hdf5, read_features
from ..errors import InputError
from ..files import open_atomically, write_atomically

__all__ = ["write_dxslam"]


def write_dxslam(features: Path, folder: Path) -> None:
    """Write ``des/STEM.npy`` (N, D), ``glb/STEM.npy`` (G,) and ``point-txt/STEM.txt``, x y a line.

    Raises:
        InputError: two images of the same stem, or features without a global descriptor.
    """
    with open_hdf5(features) as file:
        names = image_names(file)
        stems = [Path(name).stem for name in names]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise InputError(
                f"{features}: several images are called {twice.pop()}; DXSLAM needs one"
            )
        for kind in ("des", "glb", "point-txt"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, stem in zip(names, stems, strict=True):
            found = read_features(file, name)
            if found.global_descriptor is None:
                raise InputError(
                    f"{features}: image {name} has no global descriptor; DXSLAM needs one"
                )
            for kind, array in (("des", found.descriptors), ("glb", found.global_descriptor)):
                with open_atomically(folder / kind / f"{stem}.npy") as stream:
                    np.save(stream, array)
            lines = "".join(f"{x:.3f} {y:.3f}\n" for x, y in found.keypoints)
            write_atomically(folder / "point-txt" / f"{stem}.txt", lines.encode())
