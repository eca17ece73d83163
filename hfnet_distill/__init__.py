"""Distill large local-feature networks into one that runs on a robot.

    network = hfnet_distill.load("default")     # or a run folder, a checkpoint, "silk" ...
    features = network.extract(image)           # keypoints, scores, descriptors, global_descriptor

Importing the package is cheap: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.features import Features
    from .data.stores.store import RecordStore
    from .networks.registry import load

__all__ = ["Features", "RecordStore", "__version__", "load"]

_HOMES = {
    "Features": ".data.features",
    "RecordStore": ".data.stores.store",
    "load": ".networks.registry",
}


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version  # takes longer than all the rest

        return version("hfnet-distill")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
