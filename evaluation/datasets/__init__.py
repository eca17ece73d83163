"""Datasets, one file per layout: a class made of a root folder, which reads what lies in it.

A dataset of one's own is one class: a ``base.HomographyDataset``, ``base.RetrievalDataset`` or
``base.PoseDataset`` under ``@register_dataset("name")``.
"""

from ...registry import Registry

__all__ = ["DATASETS", "register_dataset"]

DATASETS = Registry(
    "dataset",
    __package__,
    {"hpatches": "hpatches", "retrieval": "retrieval", "kitti_tum": "kitti_tum"},
    aliases={"places": "retrieval", "poses": "kitti_tum"},
)
register_dataset = DATASETS.register
