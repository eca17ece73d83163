"""LightGlue: matches between ALIKED's features of two images, also those of its students.

Lindenberger, Sarlin, Pollefeys: LightGlue: Local Feature Matching at Light Speed, ICCV 2023. The
network is kornia's, the weights are the authors'; they were trained with descriptors of ALIKED-N16.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.features import Features
from ..device import choose_device
from ..errors import InputError
from ..extras import require
from .weights import OfficialWeights, find_weights, load_arrays, load_strictly

__all__ = ["LightGlueMatcher"]

OFFICIAL = OfficialWeights(
    model="LightGlue for ALIKED",
    file="aliked_lightglue.pth",
    url="https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/aliked_lightglue.pth",
    digest="sha256:d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
    license="Apache-2.0",
)

DESCRIPTOR_DIM = 128


class LightGlueMatcher:
    """Matches the features of two images by their descriptors and where they lie.

    Args:
        weights: the authors' ``aliked_lightglue.pth`` where not in its usual place.
        device: auto, cpu, cuda or cuda:N.
        min_score: matches have a higher one; the authors' own is 0.1.

    Attributes:
        digest: the SHA-256 of the weights.
        license: of the weights.

    Raises:
        InputError: kornia is not installed, or the file holds other weights.
        NotFoundError: the weights are nowhere to be had.
    """

    license = OFFICIAL.license

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        min_score: float = 0.1,
    ):
        network = _kornia_network(min_score)
        path = find_weights(OFFICIAL, weights)
        state, self.digest = load_arrays(path)
        # Kornia keeps as a buffer what the authors compute.
        computed = {"confidence_thresholds": network.confidence_thresholds}
        load_strictly(network, computed | state, path)
        self.device = choose_device(str(device))
        self.network = network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def match(self, features0: Features, features1: Features) -> tuple[np.ndarray, np.ndarray]:
        """Matches (K, 2) intp between rows of both, first rows ascending; scores (K,) in [0, 1].

        Raises:
            InputError: descriptors that are not ALIKED's or of a student of it.
        """
        found = self.network({"image0": self._arrays(features0), "image1": self._arrays(features1)})
        matches, scores = found["matches"][0], found["scores"][0]
        return matches.cpu().numpy().astype(np.intp), scores.float().cpu().numpy()

    def _arrays(self, features: Features) -> dict[str, Tensor]:
        """What the network asks for of one image; it counts pixels from the first one's center."""
        descriptors = features.descriptors
        shape = None if descriptors is None else descriptors.shape[1:]
        if shape != (DESCRIPTOR_DIM,) or descriptors.dtype == bool:
            found = "none" if descriptors is None else f"{descriptors.dtype} {descriptors.shape}"
            raise InputError(
                f"LightGlue: descriptors are {found}; expected (N, {DESCRIPTOR_DIM}) float32 of "
                "aliked:n16 or a student of it"
            )
        size = np.array(features.image_size, np.float32)
        # Kornia refuses what lies left of the first pixel's center, which refinement may give.
        keypoints = features.keypoints.clip(0, size)
        arrays = {"keypoints": keypoints, "descriptors": descriptors, "image_size": size}
        return {
            name: torch.from_numpy(array)[None].to(self.device) for name, array in arrays.items()
        }


def _kornia_network(min_score: float) -> nn.Module:
    kornia = require("kornia.feature", "lightglue")
    return kornia.LightGlue(None, input_dim=DESCRIPTOR_DIM, filter_threshold=min_score)
