"""Targets, losses, views and mistakes, one at a time.

The students of a table start from the same weights, are trained on the same photographs for as
many steps, and evaluated on the same sequences:

    python experiments/ablation.py --table silk --images photos/ --root sequences/ --output silk/

``--table`` names the rows: ``silk``, what made earlier distillations of SiLK fail, each mistake a
few lines of this script; ``ideas``, what was tried to make HF-Net better; ``targets``, ``losses``
and ``views``, settings beside those of recipes/small.toml. The first two are of HF-Net with new
heads on the packaged backbone, the others of ``light`` in its size ``nano``, from the first
channels of the packaged ``small``, which have to be trained anew. ``--seeds`` trains each row so
many times. ``--root`` holds sequences in the HPatches layout, rendered from other photographs:

    evaluate --render others/ --root sequences/

Rows that are finished are not trained again: stop and start as you like. SiLK's descriptors of
every pixel take 17 MB a photograph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from hfnet_distill.config import load_settings, override
from hfnet_distill.console import user_errors
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.errors import InputError
from hfnet_distill.evaluation.evaluate import evaluate
from hfnet_distill.networks.base import Network
from hfnet_distill.networks.hfnet import HFNet
from hfnet_distill.networks.registry import (
    STUDENTS,
    checkpoint_path,
    load,
    load_checkpoint,
    save_checkpoint,
)
from hfnet_distill.student.targets import (
    DESCRIPTOR_TARGETS,
    DETECTOR_TARGETS,
    CellTarget,
    CenterTarget,
    RandomTarget,
    find_strategy,
)
from hfnet_distill.student.training import train
from hfnet_distill.teacher_export.export import export

RECIPE = Path(__file__).parents[1] / "recipes" / "small.toml"
SIZE = (320, 240)
CROP = (240, 176)
STORES = {
    "aliked_sparse": ("aliked:n16", ["sparse"], "none"),
    "superpoint": ("superpoint", ["score_map", "descriptor_map"], "none"),
    "superpoint_sparse": ("superpoint", ["sparse"], "none"),
    "superpoint_int8": ("superpoint", ["score_map", "descriptor_map"], "int8"),
    "superpoint_scores": ("superpoint", ["score_map"], "none"),
    "superpoint_descriptors": ("superpoint", ["descriptor_map"], "none"),
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


class _NextRecord:
    """Records joined to photographs by their place in the folder, of which one has been deleted."""

    def read(self, name, *view):
        names = self.store.names
        return super().read(names[(names.index(name) + 1) % len(names)], *view)


class NextScores(_NextRecord, CellTarget):
    pass


class NextDescriptors(_NextRecord, CenterTarget):
    pass


MISTAKES = {
    "swapped": Swapped,
    "mixed_scaling": MixedScaling,
    "without_border": WithoutBorder,
    "without_offset": WithoutOffset,
    "next_record": NextDescriptors,
}


def in_255(student: Network) -> Network:
    """A student that learned from images in [0, 1] and is shown them in [0, 255]."""
    forward = student.forward
    student.forward = lambda image: forward(255 * image)
    return student


@dataclass(frozen=True)
class Row:
    """A student: what it learns from and how.

    Attributes:
        stores: names in ``STORES``.
        settings: of [train], where they are others.
        weights: of losses, where they are others.
        light: a light student and the recipe's settings, not HF-Net and those of pipeline.toml.
        run: the row whose student this one takes, which has the same settings.
        shown: what is done to the student before it is evaluated.
    """

    name: str
    stores: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    light: bool = False
    run: str = ""
    shown: Callable[[Network], Network] = lambda student: student


CROPS = {"views": 1, "warp": 0.0, "ema": 0.0, "norm_batches": 0, "full_resolution": False}
WARPS = {"views": 2, "warp": 0.5, "zoom": (0.7, 1.4), "rotation": 30.0, "perspective": 0.2}
WARPS |= {"inside": True, "overlap": 0.0, "tilt": 1.0}
WEIGHTS = {"detector": 1.0, "correspondence": 0.2, "localization": 0.0}


def _small(name: str, strategy: str, *stores: str, **changes) -> Row:
    """Upright crops and the weights themselves, without what made the shipped students better."""
    return Row(name, stores, find_strategy(strategy) | CROPS | changes, WEIGHTS)


SILK = (
    _small("silk, downsample", "downsample", "silk"),
    _small("silk, upsample", "upsample", "silk_full"),
    _small("silk, sparse", "sparse", "silk_sparse"),
    _small("silk, keypoints", "keypoints", "silk_sparse"),
    replace(
        _small("silk, downsample: evaluated on [0, 255]", "downsample", "silk"),
        run="silk, downsample",
        shown=in_255,
    ),
    _small("silk, downsample: mean over each cell", "downsample", "silk_averaged"),
    _small(
        "silk, downsample: joined by position",
        *("downsample", "silk"),
        detector_target="next_record",
        descriptor_target="next_record",
    ),
    *(
        _small(f"silk, upsample: {mistake}", "upsample", "silk_full", descriptor_target=target)
        for mistake, target in (
            ("half a cell off", "without_offset"),
            ("border ignored", "without_border"),
            ("(n - 1) and align_corners=False", "mixed_scaling"),
            ("(y, x) instead of (x, y)", "swapped"),
        )
    ),
    _small(
        "scores of superpoint, descriptors of silk",
        *("downsample", "superpoint_scores", "silk_descriptors"),
    ),
    _small("superpoint, downsample", "downsample", "superpoint"),
    _small("superpoint, downsample, another seed", "downsample", "superpoint", seed=1),
    _small("superpoint, downsample, int8", "downsample", "superpoint_int8"),
    _small("superpoint, upsample", "upsample", "superpoint"),
    _small("superpoint, sparse", "sparse", "superpoint_sparse"),
    _small("superpoint, keypoints", "keypoints", "superpoint_sparse"),
)
IDEAS = (
    _small("superpoint, downsample", "downsample", "superpoint"),
    _small("another seed", "downsample", "superpoint", seed=1),
    _small("weights averaged over the last steps", "downsample", "superpoint", ema=0.98),
    _small(
        "the teacher's keypoints instead of its scores",
        *("downsample", "superpoint_sparse", "superpoint_descriptors"),
        detector_target="labels",
    ),
    _small("two views with a loss between them", "downsample", "superpoint", **WARPS),
    _small("two views, also foreshortened", "downsample", "superpoint", **WARPS | {"tilt": 3.0}),
    _small("peaks of cells", "peaks", "superpoint"),
)


def _recipe(
    name: str,
    weights: Mapping[str, float] | None = None,
    stores: tuple[str, ...] = ("aliked_sparse",),
    **settings,
) -> Row:
    return Row(name, stores, settings, weights or {}, light=True)


TARGETS = tuple(
    _recipe(
        f"{teacher}: {detector}, {descriptor}",
        stores=(f"{teacher}{fields}",),
        detector_target=detector,
        descriptor_target=descriptor,
    )
    for teacher in ("superpoint", "silk")
    for detector, descriptor, fields in (
        ("keypoints", "keypoints", "_sparse"),
        ("keypoints", "peaks", ""),
        ("cells", "peaks", ""),
        ("cells", "centers", ""),
        ("labels", "keypoints", "_sparse"),
    )
)
# What the recipe had before.
CONTRAST = {"contrast": 1.0, "correspondence": 0.0}
LOSSES = (
    _recipe("the recipe"),
    _recipe("contrast for correspondence", CONTRAST),
    _recipe("contrast for correspondence, + reward", CONTRAST | {"reward": 10.0}),
    _recipe("without correspondence", {"correspondence": 0.0}),
    _recipe("correspondence doubled", {"correspondence": 1.0}),
    _recipe("+ reward", {"reward": 10.0}),
    _recipe("+ reward, without correspondence", {"reward": 10.0, "correspondence": 0.0}),
    _recipe("+ reward, correspondence doubled", {"reward": 10.0, "correspondence": 1.0}),
    _recipe("+ reward, imitation halved", {"reward": 10.0, "descriptor": 1.0}),
    _recipe("+ reward tripled", {"reward": 30.0}),
    _recipe("imitation halved", {"descriptor": 1.0}),
    _recipe("without similarity", {"similarity": 0.0}),
    _recipe("similarity doubled", {"similarity": 1.0}),
    _recipe("without localization", {"localization": 0.0}),
    _recipe("localization doubled", {"localization": 0.6}),
    _recipe("occupied and where", {"detector": 0.0, "occupied": 4.0, "where": 0.5}),
    _recipe("without two views", views=1),
    _recipe("learned weights", weighting="uncertainty"),
    _recipe("without averages", ema=0.0, norm_batches=0),
)
VIEWS = (
    _recipe("the recipe"),
    _recipe("drawn again until inside", inside=True, overlap=0.0),
    _recipe("second view anywhere", overlap=0.0),
    _recipe("at the teacher's resolution", full_resolution=False),
    _recipe("not foreshortened", tilt=1.0),
    _recipe("upright crops", warp=0.0),
)
TABLES = {"silk": SILK, "ideas": IDEAS, "targets": TARGETS, "losses": LOSSES, "views": VIEWS}


def make_backbone(output: Path) -> Path:
    """The packaged student with heads of random weights."""
    path = output / "backbone.safetensors"
    if not path.exists():
        packaged = (load_checkpoint(checkpoint_path(name))[0] for name in STUDENTS)
        trained = next(network for network in packaged if isinstance(network, HFNet))
        torch.manual_seed(0)
        student = HFNet(replace(trained.config, global_dim=0))
        student.stem, student.local_blocks = trained.stem, trained.local_blocks
        save_checkpoint(path, student, {})
    return path


def train_row(
    row: Row, images: Path, output: Path, photographs: int, epochs: int, seed: int
) -> Path:
    """The row's run folder, trained as far as it is not yet."""
    stores = []
    for name in row.stores:
        model, fields, quantisation = STORES[name]
        store = export(
            model,
            images,
            output / f"{name}.zarr",
            fields=fields,
            quantisation=quantisation,
            size=SIZE,
            limit=photographs,
            precision="auto",
        )
        stores.append(store)
    shipped = load_settings().train
    common = {"crop": CROP, "epochs": epochs, "validation": 0.0, "seed": seed}
    if row.light:
        base = load_settings(RECIPE).train
        common |= {"init": "small", "networks": {"light": {"size": "nano"}}}
        common |= {key: getattr(shipped, key) for key in ("batch_size", "learning_rate")}
        common |= {"num_workers": shipped.num_workers}
    else:
        base = shipped
        common |= {"network": "hfnet", "init": str(make_backbone(output))}
    weights = {"loss_weights": base.loss_weights | dict(row.weights)}
    settings = override(base, **common | weights | dict(row.settings))
    folder = "".join(c if c.isalnum() else "_" for c in row.run or row.name)
    if seed:
        folder += f"_{seed}"
    return train(stores, images, output / folder, settings, resume=True)


@click.command(context_settings={"show_default": True})
@click.option("--table", type=click.Choice([*TABLES]), required=True)
@click.option("--row", "wanted", multiple=True, help="Only rows of that name; repeatable.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="To train on.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Sequences.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--photographs", default=160, help="The first so many.")
@click.option("--epochs", default=10)
@click.option("--seeds", default=1, help="Trainings of each row.")
@user_errors
def main(
    table: str,
    wanted: tuple[str, ...],
    images: Path,
    root: Path,
    output: Path,
    photographs: int,
    epochs: int,
    seeds: int,
) -> None:
    """Train and evaluate the rows of a table; the report goes into --output."""
    rows = {row.name: row for row in TABLES[table]}
    if unknown := set(wanted) - rows.keys():
        raise InputError(f"--row {unknown.pop()}: expected one of {', '.join(rows)}")
    output.mkdir(parents=True, exist_ok=True)
    DETECTOR_TARGETS["next_record"] = NextScores
    DESCRIPTOR_TARGETS.update(MISTAKES)
    students = {}
    for name, seed in product(wanted or rows, range(seeds)):
        run = train_row(rows[name], images, output, photographs, epochs, seed)
        student = rows[name].shown(load(run, precision="auto"))
        students[f"{name}, seed {seed}" if seeds > 1 else name] = student
    first, *others = students
    evaluate(
        "hpatches",
        students,
        output,
        root=root,
        protocol="hfnet",
        compare=[(other, first) for other in others],
        show=click.echo,
        quiet=False,
    )


if __name__ == "__main__":
    main()
