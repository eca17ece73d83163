"""Targets, losses, views and mistakes, one at a time.

Every row is a student with new heads on the packaged student's backbone, trained on the same
photographs for as many steps, and evaluated on the same sequences:

    python experiments/ablation.py --table silk --images photos/ --root sequences/ --output silk/

``--table`` names the rows: ``silk``, what made earlier distillations of SiLK fail, each mistake a
few lines of this script; ``targets``, ``losses`` and ``views``, each setting beside the one that is
shipped. ``--root`` holds sequences in the HPatches layout, rendered from other photographs:

    evaluate --render others/ --root sequences/

Rows that are finished are not trained again: stop and start as you like. SiLK's descriptors of
every pixel take 17 MB a photograph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from hfnet_distill.config import load_settings, override
from hfnet_distill.console import user_errors
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.evaluation.evaluate import evaluate
from hfnet_distill.networks.base import Network
from hfnet_distill.networks.hfnet import HFNet
from hfnet_distill.networks.registry import (
    checkpoint_path,
    load,
    load_checkpoint,
    packaged_names,
    save_checkpoint,
)
from hfnet_distill.student.targets import DESCRIPTOR_TARGETS, STRATEGIES, CenterTarget, RandomTarget
from hfnet_distill.student.training import train
from hfnet_distill.teacher_export.export import export

SIZE = (320, 240)
CROP = (240, 176)
STORES = {
    "superpoint": ("superpoint", ["score_map", "descriptor_map"], "none"),
    "superpoint_sparse": ("superpoint", ["sparse"], "none"),
    "superpoint_int8": ("superpoint", ["score_map", "descriptor_map"], "int8"),
    "superpoint_scores": ("superpoint", ["score_map"], "none"),
    "silk": ("silk", ["score_map", "descriptor_map"], "none"),
    "silk_sparse": ("silk", ["sparse"], "none"),
    "silk_full": ("silk", ["score_map", "descriptor_map:full"], "none"),
    "silk_averaged": ("silk", ["score_map", "descriptor_map:averaged"], "none"),
    "silk_descriptors": ("silk", ["descriptor_map"], "none"),
}
"""Name -> model, fields, quantisation."""


class Misplaced(RandomTarget):
    """Compares the teacher's descriptor of one point with the student's of another."""

    def read(self, name, H_view_to_photo, size, rng):
        arrays = super().read(name, H_view_to_photo, size, rng)
        for points, H in zip(arrays["positions"], H_view_to_photo, strict=True):
            seen = warp_points(points, np.linalg.inv(H))
            points[:] = warp_points(self.misplace(seen, size), H)
        return arrays


class Swapped(Misplaced):
    """(y, x) given where (x, y) is due."""

    def misplace(self, points, size):
        return points[:, ::-1]


class MixedScaling(Misplaced):
    """Points scaled by n - 1, as for align_corners=True, and sampled without it."""

    def misplace(self, points, size):
        cells = np.array(size) / 8
        return ((points / 8) * cells / (cells - 1) - 0.5) * 8 + 3.5


class WithoutBorder(Misplaced):
    """SiLK's map taken for one of the whole photograph: its 9 pixels of border forgotten."""

    def misplace(self, points, size):
        return points - 9


class WithoutOffset(Misplaced):
    """A cell's descriptor taken for that of its corner, not of its center."""

    def misplace(self, points, size):
        return points + 3.5


class NextRecord(CenterTarget):
    """Records joined to photographs by their place in the folder, of which one has been deleted."""

    def read(self, name, H_view_to_photo, size, rng):
        names = self.store.names
        other = names[(names.index(name) + 1) % len(names)]
        return super().read(other, H_view_to_photo, size, rng)


MISTAKES = {
    "swapped": Swapped,
    "mixed_scaling": MixedScaling,
    "without_border": WithoutBorder,
    "without_offset": WithoutOffset,
    "next_record": NextRecord,
}


class In255(Network):
    """Shows a student images in [0, 255] that learned from [0, 1]."""

    def __init__(self, student: Network):
        super().__init__()
        self.student, self.weights = student, f"{student.weights} in [0, 255]"
        self.descriptor_dim, self.refine_radius = student.descriptor_dim, student.refine_radius

    def maps(self, images):
        return self.student.maps(255 * images)


@dataclass(frozen=True)
class Row:
    """A student: what it learns from and how.

    Attributes:
        stores: names in ``STORES``.
        settings: of [train], where they are not those of every row; ``strategy`` stands for two.
        weights: of losses, where they are not as shipped.
        trained_as: the row whose student this one takes.
        wrapper: what the student is evaluated in.
    """

    name: str
    stores: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    trained_as: str = ""
    wrapper: type | None = None


def _strategy(name: str) -> dict[str, str]:
    return dict(zip(("detector_target", "descriptor_target"), STRATEGIES[name], strict=True))


CROPS = {"views": 1, "warp": 0.0}
SILK = (
    Row("silk, downsample", ("silk",), _strategy("downsample") | CROPS),
    Row("silk, upsample", ("silk_full",), _strategy("upsample") | CROPS),
    Row("silk, sparse", ("silk_sparse",), _strategy("sparse") | CROPS),
    Row("silk, keypoints", ("silk_sparse",), CROPS),
    Row("silk, downsample: [0, 255]", ("silk",), {}, {}, "silk, downsample", In255),
    *(
        Row(f"silk, {way}: {mistake}", (store,), _strategy(way) | CROPS | changes)
        for way, mistake, store, changes in (
            ("downsample", "mean over each cell", "silk_averaged", {}),
            ("downsample", "joined by position", "silk", {"descriptor_target": "next_record"}),
            ("upsample", "half a cell off", "silk_full", {"descriptor_target": "without_offset"}),
            ("upsample", "border ignored", "silk_full", {"descriptor_target": "without_border"}),
            ("upsample", "(n - 1)", "silk_full", {"descriptor_target": "mixed_scaling"}),
            ("upsample", "(y, x)", "silk_full", {"descriptor_target": "swapped"}),
        )
    ),
    Row(
        "scores of superpoint, descriptors of silk",
        ("superpoint_scores", "silk_descriptors"),
        _strategy("downsample") | CROPS,
    ),
    Row("superpoint, downsample", ("superpoint",), _strategy("downsample") | CROPS),
    Row("superpoint, int8", ("superpoint_int8",), _strategy("downsample") | CROPS),
    Row("superpoint, sparse", ("superpoint_sparse",), _strategy("sparse") | CROPS),
    Row("superpoint, keypoints", ("superpoint_sparse",), CROPS),
)
TARGETS = tuple(
    Row(f"{teacher}: {detector}, {descriptor}", (f"{teacher}{kind}",), targets)
    for teacher in ("superpoint", "silk")
    for detector, descriptor, kind in (
        ("keypoints", "keypoints", "_sparse"),
        ("keypoints", "peaks", ""),
        ("cells", "peaks", ""),
        ("cells", "centers", ""),
        ("labels", "keypoints", "_sparse"),
    )
    for targets in ({"detector_target": detector, "descriptor_target": descriptor},)
)


def _row(name: str, weights: Mapping[str, float] | None = None, **settings) -> Row:
    return Row(name, ("superpoint_sparse",), settings, weights or {})


LOSSES = (
    _row("as shipped"),
    _row("another seed", seed=1),
    _row("occupied and where", {"detector": 0.0, "occupied": 4.0, "where": 0.5}),
    _row("+ similarity", {"similarity": 0.5}),
    _row("contrast for correspondence", {"correspondence": 0.0, "contrast": 1.0}),
    _row("without localization", {"localization": 0.0}),
    _row("without two views", views=1),
    _row("learned weights", weighting="uncertainty"),
    _row("without averages", ema=0.0, norm_batches=0),
)
VIEWS = (
    _row("as shipped"),
    _row("drawn again until inside", inside=True, overlap=0.0),
    _row("second view anywhere", overlap=0.0),
    _row("at the teacher's resolution", full_resolution=False),
    _row("not foreshortened", tilt=1.0),
    _row("upright crops", warp=0.0),
)
TABLES = {"silk": SILK, "targets": TARGETS, "losses": LOSSES, "views": VIEWS}


def make_backbone(output: Path) -> Path:
    """The packaged student with heads of random weights."""
    path = output / "backbone.safetensors"
    if not path.exists():
        packaged = (load_checkpoint(checkpoint_path(name))[0] for name in packaged_names())
        trained = next(network for network in packaged if isinstance(network, HFNet))
        torch.manual_seed(0)
        student = HFNet(replace(trained.config, global_dim=0))
        student.stem, student.local_blocks = trained.stem, trained.local_blocks
        save_checkpoint(path, student, {})
    return path


def train_row(row: Row, images: Path, output: Path, photographs: int, epochs: int) -> Path:
    """The row's run folder, trained as far as it is not yet."""
    stores = []
    for name in row.stores:
        model, fields, quantisation = STORES[name]
        stores.append(
            export(
                model,
                images,
                output / f"{name}.zarr",
                fields=fields,
                quantisation=quantisation,
                size="x".join(map(str, SIZE)),
                limit=photographs,
                precision="auto",
            )
        )
    shipped = load_settings().train
    settings = override(
        shipped,
        init=str(make_backbone(output)),
        crop=CROP,
        epochs=epochs,
        loss_weights=shipped.loss_weights | dict(row.weights),
        **row.settings,
    )
    folder = output / "".join(c if c.isalnum() else "_" for c in row.name)
    return train(stores, images, folder, settings, resume=True)


@click.command(context_settings={"show_default": True})
@click.option("--table", type=click.Choice([*TABLES]), required=True)
@click.option("--row", "wanted", multiple=True, help="Only rows of that name; repeatable.")
@click.option("--images", type=click.Path(path_type=Path), required=True)
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--photographs", default=160, help="The first so many.")
@click.option("--epochs", default=10)
@user_errors
def main(
    table: str,
    wanted: tuple[str, ...],
    images: Path,
    root: Path,
    output: Path,
    photographs: int,
    epochs: int,
) -> None:
    """Train and evaluate every row of a table; the report goes into --output."""
    output.mkdir(parents=True, exist_ok=True)
    DESCRIPTOR_TARGETS.update(MISTAKES)
    rows = [row for row in TABLES[table] if not wanted or row.name in wanted]
    runs: dict[str, Path] = {}
    students: dict[str, Network] = {}
    for row in rows:
        run = runs.get(row.trained_as)
        runs[row.name] = run or train_row(row, images, output, photographs, epochs)
        student = load(runs[row.name] / "last.safetensors", precision="auto")
        students[row.name] = row.wrapper(student) if row.wrapper else student
    first, *others = students
    evaluate(
        "hpatches",
        students,
        output,
        root=root,
        compare=[(other, first) for other in others],
        show=click.echo,
        quiet=False,
    )


if __name__ == "__main__":
    main()
