"""What a detector target can at most teach, told without training.

A teacher's keypoints go to the student's cells and back; what is read from there is described by
the teacher itself and compared with the teacher. No student taught by the target can be expected to
be better.

    python experiments/oracle.py --teacher silk --root sequences/ --output oracle/

``--root`` holds sequences in the HPatches layout, such as ``evaluate --render`` makes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import Tensor

from hfnet_distill.console import user_errors
from hfnet_distill.data.cells import grid_shape, image_shape, to_pixels, with_nothing
from hfnet_distill.data.geometry import CELL_MAP, resample_map
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.evaluation.evaluate import evaluate
from hfnet_distill.networks.base import DenseMaps, Network
from hfnet_distill.networks.registry import load
from hfnet_distill.student.views import scatter_keypoints, to_cells

TARGETS = ("cells", "keypoints", "labels")
LISTED = KeypointChoice(0.001, 4, 4, 1000, None, None)
"""How a teacher's keypoints are listed in a store; radii as suit the teacher."""
READINGS = {"by pixel": (0, 0), "by 3x3 sum": (1, 3)}
"""How a student's scores are read: (rank_radius, refine_radius)."""


class Oracle(Network):
    """A teacher whose keypoints have been through a target.

    Args:
        target: cells, keypoints or labels, see ``student.targets``.
        rank_radius, refine_radius: see ``KeypointChoice``.
        on_cells: descriptors are sampled from a map of one in each cell, as a student's are.
    """

    def __init__(
        self,
        teacher: Network,
        target: str,
        rank_radius: int,
        refine_radius: int,
        *,
        on_cells: bool = False,
    ):
        super().__init__()
        self.teacher, self.target, self.on_cells = teacher, target, on_cells
        self.channels, self.descriptor_dim = teacher.channels, teacher.descriptor_dim
        self.rank_radius, self.refine_radius = rank_radius, refine_radius
        described = "on cells" if on_cells else "at keypoints"
        self.weights = f"{teacher.weights} {target} {described}"

    def maps(self, images: Tensor) -> DenseMaps:
        return self.teacher.maps(images)

    def detect(self, maps, choice):
        width, height = maps.image_size
        shape = grid_shape((height, width))
        return choice(to_pixels(self._cells(maps, shape)))

    def _cells(self, maps: DenseMaps, shape: tuple[int, int]) -> Tensor:
        height, width = image_shape(shape)
        if self.target == "cells":
            if maps.score_geometry == CELL_MAP:
                return maps.score_map
            return to_cells(maps.pixel_scores()[:, None, :height, :width], shape)
        cells = []
        for points, scores in self.teacher.detect(maps, self.teacher.choice_for(LISTED)):
            if self.target == "labels":
                points, scores = points.round(), torch.ones_like(scores)
            cells.append(scatter_keypoints(points[None], scores[None], shape))
        cells = torch.cat(cells)
        if self.target == "labels":
            marked = (cells[:, :-1] > 0).float()
            cells = with_nothing(marked * (marked.cumsum(1) == 1))
        return cells

    def describe(self, maps, row, keypoints):
        if not self.on_cells:
            return self.teacher.describe(maps, row, keypoints)
        width, height = maps.image_size
        if maps.descriptor_geometry != CELL_MAP:
            shape = grid_shape((height, width))
            values = resample_map(maps.descriptor_map, maps.descriptor_geometry, CELL_MAP, shape)
            values = torch.nn.functional.normalize(values, dim=1)
            maps = replace(maps, descriptor_map=values, descriptor_geometry=CELL_MAP)
        return super().describe(maps, row, keypoints)


def oracles(teacher: Network, name: str, targets: Sequence[str]) -> dict[str, Network]:
    """The teacher itself and what its targets leave of it, by the rows' names."""
    rows = {name: teacher}
    for target in targets:
        for reading, radii in READINGS.items():
            rows[f"{name}: {target}, {reading}"] = Oracle(teacher, target, *radii)
    if "descriptor_map" in teacher.dense_fields((640, 480)):
        radii = READINGS["by 3x3 sum"]
        rows[f"{name}: keypoints, described on cells"] = Oracle(
            teacher, "keypoints", *radii, on_cells=True
        )
    return rows


@click.command(context_settings={"show_default": True})
@click.option("--teacher", "name", default="superpoint", help="As evaluate's --model.")
@click.option("--weights", help="Of the teacher, if kept elsewhere.")
@click.option(
    "--target",
    "targets",
    type=click.Choice(TARGETS),
    multiple=True,
    default=TARGETS,
    help="Repeatable.",
)
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--num-keypoints", default=300)
@user_errors
def main(
    name: str,
    weights: str | None,
    targets: tuple[str, ...],
    root: Path,
    output: Path,
    num_keypoints: int,
) -> None:
    """Evaluate what targets leave of a teacher; the report goes into --output."""
    rows = oracles(load(name, precision="auto", weights=weights), name, targets)
    compare = [(row, name) for row in rows if row != name]
    evaluate(
        "hpatches",
        rows,
        output,
        root=root,
        num_keypoints=num_keypoints,
        compare=compare,
        show=click.echo,
        quiet=False,
    )


if __name__ == "__main__":
    main()
