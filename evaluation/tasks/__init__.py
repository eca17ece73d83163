"""Tasks, one file per question that is asked of a model's features on a dataset.

A task of one's own is one class: a ``base.Task`` under ``@register_task("name")``.
"""

from ...registry import Registry

__all__ = ["TASKS", "register_task"]

TASKS = Registry(
    "protocol",
    __package__,
    {
        "hfnet": "hfnet",
        "matching": "homography",
        "tracks": "tracks",
        "silk": "homography",
        "retrieval": "retrieval",
        "relative_pose": "relative_pose",
    },
)
register_task = TASKS.register
