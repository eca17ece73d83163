"""Why distilling SiLK failed before: one mistake put back at a time.

Every row is a student with new heads on the packaged student's backbone, trained on the same
photographs, views and steps, and judged on the same sequences. The strategies are those of
``[train] strategy``, aligned as they should be; each mistake is a few lines of this script and
nothing that the product knows.

    python benchmarks/ablation.py --images photos/ --root sequences/ --output ablation/

``--root`` holds sequences in the HPatches layout, rendered from other photographs:

    evaluate --render others/ --root sequences/

Rows that are finished are not made again: stop and start as you like. SiLK's descriptors of every
pixel take 17 MB a photograph.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hfnet_distill.config import load_settings, override
from hfnet_distill.console import progress, user_errors
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.device import choose_device
from hfnet_distill.evaluation.datasets import HPatches
from hfnet_distill.evaluation.extractors import StudentExtractor
from hfnet_distill.evaluation.judge import judge, summarize_splits
from hfnet_distill.evaluation.protocols import PROTOCOLS
from hfnet_distill.evaluation.report import markdown_table
from hfnet_distill.files import write_atomically
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.student_checkpoint import load_student, save_student, student_path
from hfnet_distill.student.loader import DistillationDataset, Warps
from hfnet_distill.student.targets import STRATEGIES, DownsampledTargets, UpsampledTargets
from hfnet_distill.student.training import RunFolder, train
from hfnet_distill.teacher_export.cli import export_teacher

SIZE = (320, 240)
CROP = (240, 176)
STORES = {
    "superpoint": ("superpoint", "score_map,descriptor_map,sparse", "none"),
    "superpoint_int8": ("superpoint", "score_map,descriptor_map", "int8"),
    "silk": ("silk", "score_map,descriptor_map,sparse", "none"),
    "silk_full": ("silk", "score_map,descriptor_map:full", "none"),
    "silk_averaged": ("silk", "score_map,descriptor_map:averaged", "none"),
}


class Misplaced(UpsampledTargets):
    """Compares the teacher's descriptor of one point with the student's of another."""

    def read(self, name, H_view_to_photo, size, rng):
        arrays = super().read(name, H_view_to_photo, size, rng)
        for points, H in zip(arrays["keypoints"], H_view_to_photo, strict=True):
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
    """A cell's descriptor taken for that of its corner, not of its centre."""

    def misplace(self, points, size):
        return points + 3.5


class NextRecord(DownsampledTargets):
    """Records joined to photographs by their place in the folder, of which one has been deleted."""

    def read(self, name, H_view_to_photo, size, rng):
        names = self.descriptors.names
        other = names[(names.index(name) + 1) % len(names)]
        return super().read(other, H_view_to_photo, size, rng)


class In255(StudentExtractor):
    """Shows the student images in [0, 255] that learned from [0, 1]."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        forward = self.student.forward
        self.student.forward = lambda image: forward(255 * image)


@dataclass(frozen=True)
class Row:
    """A student: what it learns from and how.

    Attributes:
        stores: of scores and descriptors, the same where one is named.
        trained_as: the row whose student this one takes.
        settings: of [train], where they are not those of every row.
        average: of the weights over the steps, the share that stays at each; 0 takes the last.
        network: the student's class.
    """

    name: str
    targets: type
    stores: tuple[str, ...]
    trained_as: str = ""
    extractor: type = StudentExtractor
    seed: int = 0
    settings: dict = field(default_factory=dict)
    average: float = 0.0
    network: type = HFNet


ROWS = (
    Row("silk, downsample", STRATEGIES["downsample"], ("silk",)),
    Row("silk, upsample", STRATEGIES["upsample"], ("silk_full",)),
    Row("silk, sparse", STRATEGIES["sparse"], ("silk",)),
    Row(
        "silk, downsample: judged in [0, 255]",
        DownsampledTargets,
        ("silk",),
        "silk, downsample",
        In255,
    ),
    Row("silk, downsample: mean over each cell", DownsampledTargets, ("silk_averaged",)),
    Row("silk, downsample: joined by position", NextRecord, ("silk",)),
    Row("silk, upsample: half a cell off", WithoutOffset, ("silk_full",)),
    Row("silk, upsample: border forgotten", WithoutBorder, ("silk_full",)),
    Row("silk, upsample: (n - 1) and align_corners=False", MixedScaling, ("silk_full",)),
    Row("silk, upsample: (y, x) for (x, y)", Swapped, ("silk_full",)),
    Row("scores of superpoint, descriptors of silk", DownsampledTargets, ("superpoint", "silk")),
    Row("superpoint, downsample", STRATEGIES["downsample"], ("superpoint",)),
    Row("superpoint, downsample, other seed", DownsampledTargets, ("superpoint",), seed=1),
    Row("superpoint, downsample, int8", DownsampledTargets, ("superpoint_int8",)),
    Row("superpoint, upsample", STRATEGIES["upsample"], ("superpoint",)),
    Row("superpoint, sparse", STRATEGIES["sparse"], ("superpoint",)),
)


def export(names, images: Path, output: Path, photographs: int) -> dict[str, RecordStore]:
    """Some of the stores that rows learn from."""
    for name in names:
        model, fields, quantisation = STORES[name]
        export_teacher.main(
            [
                *("--model", model, "--fields", fields, "--images", str(images)),
                *("--store", str(output / f"{name}.zarr"), "--size", "x".join(map(str, SIZE))),
                *("--limit", str(photographs), "--quantisation", quantisation),
                *("--precision", "auto"),
            ],
            standalone_mode=False,
        )
    return {name: RecordStore.open(output / f"{name}.zarr") for name in names}


def train_row(row: Row, stores: dict[str, RecordStore], images: Path, output: Path, epochs: int):
    """The row's run folder, trained if it is not yet."""
    scores, descriptors = stores[row.stores[0]], stores[row.stores[-1]]
    plain = {"views": 1, "warp": 0.0, "crop": CROP, "detector_weight": 1.0}
    of_row = {"epochs": epochs, "seed": row.seed} | row.settings
    settings = override(load_settings().train, **plain | of_row)
    path = output / "".join(c if c.isalnum() else "_" for c in row.name)
    run = RunFolder(path, {"row": row.name, "epochs": epochs}, resume=True)
    steps = len(scores.names) // settings.batch_size * epochs
    if run.steps_done == steps:
        return path
    target = row.targets(scores, descriptors)
    common = {"size": SIZE, "seed": settings.seed}
    training = DistillationDataset(
        images,
        scores.names,
        [target],
        crop=CROP,
        views=settings.views,
        warps=Warps.of(settings),
        photometric=settings.photometric,
        **common,
    )
    validation = DistillationDataset(images, scores.names[:4], [target], **common)
    torch.manual_seed(settings.seed)
    student = row.network(HFNetConfig(descriptor_dim=target.descriptor_dim))
    trained = load_student(student_path("default"))[0]
    student.stem, student.local_blocks = trained.stem, trained.local_blocks
    average = get_ema_multi_avg_fn(row.average)
    averaged = AveragedModel(student, multi_avg_fn=average, use_buffers=True)
    with progress(row.name, steps, done=run.steps_done, quiet=False) as advance:

        def step(count: int, note: str) -> None:
            averaged.update_parameters(student)
            advance(count, note)

        train(student, training, validation, run, settings, choose_device("auto"), advance=step)
    if row.average:
        save_student(path / "last.safetensors", averaged.module, run.info)
    return path


def judge_row(row: Row, run: Path, root: Path) -> dict:
    """The six numbers of protocol hfnet over all sequences."""
    settings = load_settings()
    choice = KeypointChoice(
        top_k=settings.evaluate.num_keypoints, **settings.predict.model_dump(exclude={"precision"})
    )
    extractor = row.extractor(run / "last.safetensors", choice, choose_device("auto"), "float32")
    protocol, dataset = PROTOCOLS["hfnet"], HPatches(root, "all")
    with torch.inference_mode(), progress("judge", len(dataset.images), quiet=False) as advance:
        longest = settings.evaluate.longest_side
        judged = judge(
            dataset,
            extractor,
            protocol,
            longest=longest,
            workers=1,
            advance=advance,
        )
    return summarize_splits(row.name, judged, choice.top_k, "all")[0]


def make_table(rows, stores, images: Path, root: Path, output: Path, name: str, epochs: int):
    """Train and judge rows, and write down what came of each as soon as it is known."""
    runs, results = {}, []
    for row in rows:
        trained = runs.get(row.trained_as)
        runs[row.name] = trained or train_row(row, stores, images, output, epochs)
        results.append(judge_row(row, runs[row.name], root))
        write_atomically(output / f"{name}.json", json.dumps(results, indent=2).encode())
    table = markdown_table(results, PROTOCOLS["hfnet"].columns, "all")
    write_atomically(output / f"{name}.md", table.encode())
    click.echo(table)


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True)
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--photographs", default=160, show_default=True, help="The first so many.")
@click.option("--epochs", default=10, show_default=True)
@user_errors
def main(images: Path, root: Path, output: Path, photographs: int, epochs: int) -> None:
    """Train and judge every row; ``table.md`` and ``table.json`` go into --output."""
    output.mkdir(parents=True, exist_ok=True)
    stores = export(STORES, images, output, photographs)
    make_table(ROWS, stores, images, root, output, "table", epochs)


if __name__ == "__main__":
    main()
