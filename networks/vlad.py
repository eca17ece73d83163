"""VLAD: a global descriptor of an image from its local ones, learned without labels.

Jegou et al.: Aggregating Local Image Descriptors into Compact Codes, PAMI 2012; Arandjelovic and
Zisserman: All About VLAD, CVPR 2013 (intra-normalization); Jegou and Chum: Negative Evidences and
Co-occurrences in Image Retrieval, ECCV 2012 (whitening).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..data.features import Features
from ..data.keypoints import KeypointChoice
from ..data.stores.store import RecordStore
from ..errors import InputError, StoreError
from .base import Network
from .registry import load, register

__all__ = ["VLAD", "StoredVLAD", "flatten_map", "pool_residuals"]


@dataclass(frozen=True)
class VLAD:
    """A VLAD learned from many images, which encodes any image.

    Attributes:
        words: (K, D) float32, the centers of the local descriptors.
        mean: (K * D,) float32, of the images' residuals.
        projection: (G, K * D) float32, onto their principal axes, the strongest first, each divided
            by its regularized standard deviation (see ``teacher_export.places``).
    """

    words: np.ndarray
    mean: np.ndarray
    projection: np.ndarray

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """An image's local descriptors (N, D) of unit length -> (G,) float32 of unit length."""
        return _normalize(self.projection @ (pool_residuals(descriptors, self.words) - self.mean))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as in a store's ``parameters``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "VLAD":
        """The inverse of ``to_arrays``.

        Raises:
            KeyError: names the array that is missing.
        """
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


@register("vlad")
class StoredVLAD(Network):
    """What a store of ``export-teacher --model vlad`` learned, for images that are not in it.

    It runs the local network with the settings that the local descriptors of the store were made
    with, at any image size. The keypoints it returns are the best of that network's.
    """

    usual_fields = ("global_descriptor",)

    def __init__(self, store: RecordStore, weights: str | None = None):
        super().__init__()
        schema = store.schema
        if schema.teacher != self.name:
            raise StoreError(
                f"{store.path}: made with --model {schema.teacher}; expected a store of "
                "export-teacher --model vlad"
            )
        settings = {
            key.removeprefix("local_"): value
            for key, value in schema.settings.items()
            if key.startswith("local_")
        }
        precision = settings.get("precision", "float32")
        name = schema.settings["local"]
        self.local = load(name, device="cpu", precision=precision, weights=weights)
        if self.local.weights != schema.weights:
            raise InputError(
                f"{store.path}: learned from {self.local.name} with the weights {schema.weights}, "
                f"here are {self.local.weights}; name those weights, or export the store anew"
            )
        self.weights, self.channels = schema.weights, self.local.channels
        self.global_dim = schema.fields["global_descriptor"].shape[0]
        self.group = schema.settings["descriptors"]
        self.local_choice = KeypointChoice.of_store(settings)
        self.vlad = VLAD.from_arrays(store.parameters)

    @property
    def origin(self) -> str:
        digest = hashlib.sha256()
        for array in self.vlad.to_arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"{super().origin}, VLAD sha256:{digest.hexdigest()}"

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "StoredVLAD":
        if source is None:
            raise InputError("vlad: name its store as vlad:STORE")
        return cls(RecordStore.open(source), weights)

    @torch.inference_mode()
    def features(self, images: Tensor, choice: KeypointChoice) -> list[Features]:
        if self.group != "sparse":
            maps = self.local.maps(images)
            rows = self.local.dense_values(maps, self.group).half().cpu().numpy()
            return [
                Features.without_keypoints(maps.image_size, self.vlad.encode(flatten_map(row)))
                for row in rows
            ]
        best = slice(choice.max_num_keypoints)
        features = []
        for found in self.local.features(images, self.local_choice):
            parts = (part[best] for part in (found.keypoints, found.scores, found.descriptors))
            features.append(Features(found.image_size, *parts, self.vlad.encode(found.descriptors)))
        return features


def flatten_map(descriptor_map: np.ndarray) -> np.ndarray:
    """A descriptor map (D, h, w) as rows (h * w, D)."""
    return descriptor_map.reshape(len(descriptor_map), -1).T


def pool_residuals(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sum each descriptor's difference from its nearest word, word by word.

    Args:
        descriptors: (N, D) float.
        words: (K, D) float32.

    Returns:
        (K * D,) float32 of unit length, word after word, each word's part normalized to the same
        length; zeros for words to which no descriptor is nearest.
    """
    descriptors = descriptors.astype(np.float32)
    nearest = (descriptors @ words.T - (words**2).sum(axis=1) / 2).argmax(axis=1)
    members = (nearest == np.arange(len(words))[:, None]).astype(np.float32)
    sums = members @ descriptors - members.sum(axis=1, keepdims=True) * words
    return _normalize(_normalize(sums).ravel())


def _normalize(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
