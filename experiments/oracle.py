"""What a target can teach at most, without training.

A student sees of its teacher only what a target keeps. Here the teacher's scores go to the
student's cells and back, as detector targets take them there; the best keypoints that are left are
described by the teacher itself, and all is compared with the teacher as published:

    python experiments/oracle.py --root sequences/ --teacher silk --teacher aliked --output oracle/

``--root`` holds sequences in the HPatches layout, such as ``evaluate --render`` makes. Each teacher
gets a report in a folder of its own, with ``table.md`` and ``report.json``. Its rows:

    silk                             as published
    silk: cells, by pixel            keypoints that a detector target leaves, ranked by the score
    silk: cells, by 3x3 sum          of their pixel, or by the sum of those around it
    silk: descriptors between cells  its own keypoints, with descriptors interpolated as a student's
"""

import hashlib
import shlex
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from hfnet_distill.config import load_settings, override
from hfnet_distill.console import shared_options
from hfnet_distill.data.cells import cell_centers, grid_shape
from hfnet_distill.data.features import Features
from hfnet_distill.data.geometry import CELL_MAP, MapGeometry
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.quantize import dequantize, quantize
from hfnet_distill.data.stores.schema import Schema
from hfnet_distill.errors import InputError
from hfnet_distill.evaluation.evaluate import evaluate
from hfnet_distill.evaluation.features import file_name
from hfnet_distill.networks.base import DenseMaps, Network, Student
from hfnet_distill.networks.registry import load
from hfnet_distill.student.targets import DETECTOR_TARGETS, Targets
from hfnet_distill.teacher_export.shards import make_schema

RANKINGS = {"by pixel": 0, "by 3x3 sum": 1}
"""How keypoints are ranked, and the ``rank_radius`` that does so."""
REFINE_RADIUS = 3
"""Pixels within which the scores place a keypoint: ``light``'s, and all that a target spreads."""


@dataclass(frozen=True)
class Record:
    """What a store would hold of one image, for a detector target to read."""

    schema: Schema
    fields: dict[str, np.ndarray]
    path: str = "oracle"

    def read(self, name: str, field: str) -> np.ndarray:
        return self.fields[field]


@dataclass(frozen=True)
class OracleMaps(DenseMaps):
    """What a student could be at best, and the teacher's own maps."""

    teacher: DenseMaps | None = None


class Oracle(Network):
    """A teacher, seen through what a student is shown of it.

    Args:
        target: the detector target that keypoints have been through; None for the teacher's own.
        rank_radius: see ``KeypointChoice``.
        on_cells: descriptors are interpolated between those of the cells.

    Attributes:
        family: all rows of the teacher.
        known: what each of them says of the images seen so far, by their digests.
    """

    def __init__(
        self,
        teacher: Network,
        target: str | None = None,
        rank_radius: int = 0,
        *,
        on_cells: bool = False,
    ):
        super().__init__()
        self.teacher, self.target, self.on_cells = teacher, target, on_cells
        self.channels, self.descriptor_dim = teacher.channels, teacher.descriptor_dim
        self.weights, self.precision = teacher.weights, teacher.precision
        self.refine_radius, self.rank_radius = teacher.refine_radius, teacher.rank_radius
        if target:
            self.refine_radius, self.rank_radius = REFINE_RADIUS, rank_radius
        self.family: list[Oracle] = [self]
        self.known: dict[bytes, dict[Oracle, list[Features]]] = {}

    @torch.inference_mode()
    def features(self, images, choice):
        # The evaluation goes row by row; a slow teacher sees each image once for all of them.
        image = hashlib.sha256(images.numpy().tobytes()).digest()
        if image not in self.known:
            images = Student.whole_cells(images)
            own = replace(choice, refine_radius=None, rank_radius=None)
            self.known[image] = {
                oracle: super(Oracle, oracle).features(images, own) for oracle in self.family
            }
        return self.known[image][self]

    def maps(self, images: Tensor) -> OracleMaps:
        own = self.teacher.maps(images)
        maps = OracleMaps(own.image_size, teacher=own)
        if self.target:
            maps = replace(maps, score_map=target_cells(self.teacher, self.target, images))
        if self.on_cells:
            values, geometry = cell_descriptors(self.teacher, own)
            maps = replace(maps, descriptor_map=values, descriptor_geometry=geometry)
        return maps

    def detect(self, maps, choice):
        if self.target:
            return choice(maps.pixel_scores())
        return self.teacher.detect(maps.teacher, choice)

    def describe(self, maps, row, keypoints):
        if self.on_cells:
            return super().describe(maps, row, keypoints)
        return self.teacher.describe(maps.teacher, row, keypoints)


@lru_cache(maxsize=1)  # of the rows of a target, which follow each other
def target_cells(teacher: Network, target: str, images: Tensor) -> Tensor:
    """Distributions (B, 65, h, w) that a detector target makes of images as they are stored."""
    kind = DETECTOR_TARGETS[target]
    groups, shape = [_group(kind)], grid_shape(images.shape[2:])
    size = images.shape[3], images.shape[2]
    schema = make_schema(
        teacher, override(load_settings().export, fields=groups, size=size, shard_size=16)
    )
    choice = KeypointChoice.of_store(schema.settings)
    stored = quantize(schema.fields, teacher.export(images, groups, choice))
    upright = torch.eye(3, dtype=torch.float64).expand(1, 1, 3, 3)
    cells = []
    for row in range(len(images)):
        fields = {name: values[row].cpu().numpy() for name, values in stored.items()}
        targets = Targets(kind(Record(schema, fields)), None)
        arrays = targets.read("", upright[0].numpy(), size, None)
        read = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
        cells.append(targets.lesson(dequantize(read), upright, shape).cells)
    return torch.cat(cells)


def _group(target: type) -> str:
    """The group of fields that a detector target likes best."""
    first = target.needs[0]
    return "sparse" if "keypoints" in first else first[0]


def cell_descriptors(teacher: Network, maps: DenseMaps) -> tuple[Tensor, MapGeometry]:
    """A teacher's descriptors of the student's cells: as it exports them, or at their centers."""
    field = teacher.dense_fields(maps.image_size).get("descriptor_map")
    if field is not None:
        return teacher.dense_values(maps, "descriptor_map"), field.geometry
    shape = grid_shape(maps.image_size[::-1])
    centers = cell_centers(shape).float()
    described = [teacher.describe(maps, row, centers) for row in range(len(maps.score_map))]
    return torch.stack(described).mT.unflatten(2, shape), CELL_MAP


def make_oracles(teacher: Network, name: str) -> dict[str, Network]:
    """The rows of a teacher's table.

    Raises:
        InputError: a method that cannot describe the keypoints that it is given.
    """
    if not teacher.describes_given_keypoints:
        raise InputError(
            f"--teacher {name}: describes no keypoints but its own; name a network such as silk"
        )
    teacher.maps = lru_cache(maxsize=1)(teacher.maps)
    offered = {"sparse", *teacher.dense_fields((640, 480))}
    rows = {name: Oracle(teacher)}
    for target, kind in DETECTOR_TARGETS.items():
        if _group(kind) in offered:
            for ranking, radius in RANKINGS.items():
                rows[f"{name}: {target}, {ranking}"] = Oracle(teacher, target, radius)
    rows[f"{name}: descriptors between cells"] = Oracle(teacher, on_cells=True)
    for oracle in rows.values():
        oracle.family, oracle.known = [*rows.values()], rows[name].known
    return rows


@click.command()
@click.option("--teacher", "teachers", multiple=True, required=True, help="As evaluate's --model.")
@click.option("--weights", type=click.Path(), help="The teacher's weights, if kept elsewhere.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Sequences.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder for the reports."
)
@click.option("--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]))
@shared_options
def main(
    teachers: tuple[str, ...],
    weights: str | None,
    root: Path,
    output: Path,
    precision: str | None,
    device: str | None,
    config: str | None,
    quiet: bool,
) -> None:
    """Evaluate what targets keep of teachers; each gets a report in a folder of its own."""
    settings = load_settings(config)
    precision = precision or settings.predict.precision
    for name in teachers:
        teacher = load(name, device=device or "auto", precision=precision, weights=weights)
        rows = make_oracles(teacher, name)
        evaluate(
            "hpatches",
            rows,
            output / Path(file_name(name)).stem,
            root=root,
            protocol="hfnet",
            precision=precision,
            compare=[(row, name) for row in rows if row != name],
            settings=settings,
            command=shlex.join(["python", *sys.argv]),
            show=click.echo,
            quiet=quiet,
        )


if __name__ == "__main__":
    main()
