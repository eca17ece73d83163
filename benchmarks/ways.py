"""Ways to a better student, each alone: what the literature offers, at the ablation's small scale.

Every row is ``benchmarks/ablation.py``'s "superpoint, downsample" with one thing added or changed;
photographs, steps and sequences are the same, and so may be the folder of stores and runs.

    python benchmarks/ways.py --images photos/ --root sequences/ --output ablation/
"""

from pathlib import Path

import click
import cv2
import numpy as np
import torch
from ablation import SIZE, Row, export, make_table
from torch import Tensor
from torch.nn import functional as F

from hfnet_distill.checkpoints import read_tensors
from hfnet_distill.console import progress, user_errors
from hfnet_distill.data.features import Features
from hfnet_distill.data.geometry import (
    CELL_MAP,
    MapGeometry,
    random_homography,
    sample_descriptors,
    sample_map,
)
from hfnet_distill.data.images import fit_image, read_image
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.device import autocast, choose_device, choose_precision
from hfnet_distill.evaluation.datasets import View
from hfnet_distill.evaluation.extractors import StudentExtractor
from hfnet_distill.networks.hfnet import ConvBN, HFNet, HFNetConfig, HFNetOutput, score_map
from hfnet_distill.networks.superpoint import SuperPoint, score_map_from_cells
from hfnet_distill.networks.teachers import SuperPointTeacher
from hfnet_distill.student.losses import descriptor_loss, detector_loss
from hfnet_distill.student.targets import DownsampledTargets, PeakTargets, SparseTargets
from hfnet_distill.student.views import (
    cell_centres,
    cell_peaks,
    to_cells,
    view_descriptors,
    view_scores,
)

TEMPERATURE = 0.1
WARPED = {
    "views": 2,
    "warp": 0.5,
    "zoom": (0.7, 1.4),
    "rotation": 30.0,
    "perspective": 0.2,
    "tilt": 1.0,
    "correspondence_weight": 0.2,
    "localization_weight": 0.0,
}


class WithRelations(DownsampledTargets):
    """Also learns how alike the teacher finds any two cells of a view (Park et al., CVPR 2019)."""

    def losses(self, output, fields, H_view_to_photo):
        losses = super().losses(output, fields, H_view_to_photo)
        student, teacher = (maps.flatten(2) for maps in self._maps(output, fields, H_view_to_photo))
        logits = [cells.mT @ cells / TEMPERATURE for cells in (student, teacher)]
        apart = F.kl_div(
            *(each.log_softmax(2) for each in logits), log_target=True, reduction="none"
        )
        losses["descriptor"] = losses["descriptor"] + 0.1 * apart.sum(2).mean(1)
        return losses

    def _maps(self, output, fields, H_view_to_photo) -> tuple[Tensor, Tensor]:
        shape = output.descriptor_map.shape[2:]
        points = cell_centres(shape).to(H_view_to_photo)
        views = H_view_to_photo.flatten(0, 1)
        target = view_descriptors(fields["descriptor_map"], points, views)
        return output.descriptor_map, target.mT.unflatten(2, shape)


class AgainstTheBatch(WithRelations):
    """Also tells the teacher's descriptor of a cell from those of all others in the batch.

    Contrastive distillation (Tian et al., ICLR 2020) with the batch's cells as negatives.
    """

    CELLS = 2048

    def losses(self, output, fields, H_view_to_photo):
        losses = DownsampledTargets.losses(self, output, fields, H_view_to_photo)
        student, teacher = (
            maps.transpose(1, -1).flatten(0, 2)
            for maps in self._maps(output, fields, H_view_to_photo)
        )
        drawn = torch.randperm(len(student), device=student.device)[: self.CELLS]
        logits = student[drawn] @ teacher[drawn].T / TEMPERATURE
        surprise = F.cross_entropy(logits, torch.arange(len(drawn), device=logits.device))
        losses["descriptor"] = losses["descriptor"] + 0.1 * surprise
        return losses


class Rotated(PeakTargets):
    """Descriptors half as long as the teacher's, which are turned into their space to compare.

    The orthogonal Procrustes problem (Schoenemann, 1966; EdgePoint2, arXiv 2504.17280): of all
    matrices with orthonormal columns, that which brings the teacher's descriptors nearest to the
    student's; from the cross-covariance of the last hundred steps or so.
    """

    KEPT = 0.99

    def __init__(self, scores, descriptors):
        super().__init__(scores, descriptors)
        self.covariance = None
        self.teacher_dim, self.descriptor_dim = self.descriptor_dim, self.descriptor_dim // 2

    def losses(self, output, fields, H_view_to_photo):
        cells = self._scores_of_views(output, fields, H_view_to_photo)
        peaks = cell_peaks(cells)
        target, known = self._descriptors_at(peaks, fields, H_view_to_photo)
        found = F.normalize(sample_map(output.descriptor_map, peaks.float(), CELL_MAP), dim=2)
        weights = known * (1 - cells[:, 64].flatten(1))
        turned = F.normalize(target @ self._rotation(target, found.detach(), weights), dim=2)
        return {
            "detector": detector_loss(output.score_logits, cells),
            "descriptor": descriptor_loss(found.mT, turned.mT, weights),
        }

    @torch.no_grad()
    def _rotation(self, target: Tensor, found: Tensor, weights: Tensor) -> Tensor:
        covariance = torch.einsum("bnt,bns,bn->ts", target, found, weights.float())
        if self.covariance is None:  # a projection that keeps most of the teacher's, to begin with
            flat = target.flatten(0, 1)
            self.covariance = 1e3 * torch.pca_lowrank(flat, self.descriptor_dim, center=False)[2]
        self.covariance = self.KEPT * self.covariance + (1 - self.KEPT) * covariance
        left, _, right = torch.linalg.svd(self.covariance, full_matrices=False)
        return left @ right


class FinerGrid(HFNet):
    """Descriptors on cells of 4x4 pixels: those of the 8x8 cells, enlarged, and what the backbone's
    map at stride 4 adds to them. 0.12 G multiply-adds more at 640x480."""

    GEOMETRY = MapGeometry(4, 1.5)

    def __init__(self, config: HFNetConfig):
        super().__init__(config)
        channels = self.local_blocks[2].project.conv.out_channels
        self.finer = ConvBN(channels, config.descriptor_dim, 1, activate=False)
        torch.nn.init.zeros_(self.finer.norm.weight)

    def forward(self, image: Tensor) -> HFNetOutput:
        at_stride_4 = []
        seen = self.local_blocks[2].register_forward_hook(lambda *call: at_stride_4.append(call[2]))
        features, _ = self._features(image)
        seen.remove()
        coarse = self.descriptor_head(features).float()
        enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        descriptors = F.normalize(enlarged + self.finer(at_stride_4[0]).float(), dim=1)
        return HFNetOutput(self.detector_head(features).float(), descriptors, None)


class FinerPeaks(PeakTargets):
    """``peaks`` for a ``FinerGrid``."""

    geometry = FinerGrid.GEOMETRY


class FinerExtractor(StudentExtractor):
    """The features of a ``FinerGrid``."""

    def __init__(self, path: Path, choice: KeypointChoice, device: torch.device, precision: str):
        tensors, description = read_tensors(path)
        student = FinerGrid(HFNetConfig(**description["config"]))
        student.load_state_dict(tensors)
        self.student = student.eval().to(device)
        self.choice, self.device, self.origin = choice, device, "an experiment"

    def extract(self, view: View, name: str) -> Features:
        image = torch.from_numpy(view.image[None, None]).to(self.device).float() / 255
        output = self.student(image)
        keypoints, scores = self.choice(score_map(output.score_logits)[0].cpu().numpy())
        descriptors = sample_descriptors(output.descriptor_map[0], keypoints, FinerGrid.GEOMETRY)
        size = (image.shape[3], image.shape[2])
        return Features(size, keypoints, scores, descriptors)


class Sharpened(DownsampledTargets):
    """The teacher's distributions over the pixels of a cell, squared."""

    def _detector_loss(self, output, fields, H_view_to_photo):
        cells = to_cells(fields["score_map"], self.cells).square()
        whole = (cells / cells.sum(1, keepdim=True)).repeat_interleave(H_view_to_photo.shape[1], 0)
        shape = output.score_logits.shape[2:]
        target = view_scores(whole, H_view_to_photo.flatten(0, 1), shape)
        return detector_loss(output.score_logits, target)


class KeypointsAndMaps(DownsampledTargets):
    """The detector learns the teacher's keypoints, as ``sparse``; descriptors as ``downsample``."""

    def __init__(self, scores, descriptors):
        super().__init__(scores, descriptors)
        self.sparse = SparseTargets(scores, scores)

    def read(self, name, H_view_to_photo, size, rng):
        fields = super().read(name, H_view_to_photo, size, rng)
        return fields | self.sparse.read(name, H_view_to_photo, size, rng)

    def losses(self, output, fields, H_view_to_photo):
        detector = self.sparse.losses(output, fields, H_view_to_photo)["detector"]
        return super().losses(output, fields, H_view_to_photo) | {"detector": detector}


class Adapted(DownsampledTargets):
    """Scores averaged over what SuperPoint says of many views of the photograph.

    Homographic adaptation (DeTone et al., CVPR Workshops 2018).
    """

    VIEWS = 16
    images: Path

    def __init__(self, scores: RecordStore, descriptors: RecordStore):
        super().__init__(scores, descriptors)
        device = choose_device("auto")
        teacher = SuperPointTeacher(None, device, choose_precision("auto", device))
        self.score_maps = {}
        with progress("adapt", len(scores.names), quiet=False) as advance:
            for name in scores.names:
                image = fit_image(read_image(self.images / name, channels=1), SIZE)
                self.score_maps[name] = self._adapt(teacher, image)
                advance(1)

    def _adapt(self, teacher: SuperPointTeacher, image: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        to_photo = [random_homography(rng, SIZE, perspective=0.2) for _ in range(self.VIEWS - 1)]
        to_photo = [np.eye(3), *to_photo]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        views = np.stack([cv2.warpPerspective(image, H, SIZE, flags=flags) for H in to_photo])
        images = torch.from_numpy(views)[:, None].float() / 255
        with torch.inference_mode(), autocast(teacher.device, teacher.precision):
            logits, _ = teacher.network(images.to(teacher.device))
        scores = score_map_from_cells(SuperPoint.cell_distribution(logits)).cpu().numpy()
        sums, counts = np.zeros(SIZE[::-1], np.float32), np.zeros(SIZE[::-1], np.float32)
        for seen, H in zip(scores.squeeze(), to_photo, strict=True):
            sums += cv2.warpPerspective(seen, H, SIZE)
            counts += cv2.warpPerspective(np.ones_like(seen), H, SIZE)
        return (sums / counts).clip(1e-6, 1 - 1e-6)[None]

    def read(self, name, H_view_to_photo, size, rng):
        fields = super().read(name, H_view_to_photo, size, rng)
        return fields | {"score_map": self.score_maps[name]}


def _row(way: str, targets: type = DownsampledTargets, **changes) -> Row:
    return Row(f"superpoint, downsample{way}", targets, ("superpoint",), **changes)


ROWS = (
    _row(""),
    _row(", other seed", seed=1),
    _row(": weights averaged over the last steps", average=0.98),
    _row(": the teacher's relations, too", WithRelations),
    _row(": told from the batch's other cells", AgainstTheBatch),
    _row(": detector's targets squared", Sharpened),
    _row(": the teacher's keypoints for its scores", KeypointsAndMaps),
    _row(": homographic adaptation of its scores", Adapted),
    _row(": two views that learn to agree", settings=WARPED),
    _row(": two views, foreshortened, too", settings=WARPED | {"tilt": 3.0}),
    _row(": two views, keypoints placed alike", settings=WARPED | {"localization_weight": 0.5}),
    _row(": at the peaks of cells", PeakTargets),
    _row(": at the peaks of cells, two views", PeakTargets, settings=WARPED),
    _row(": at the peaks, descriptors half as long", Rotated),
    _row(
        ": at the peaks, on cells of 4x4 pixels",
        FinerPeaks,
        extractor=FinerExtractor,
        network=FinerGrid,
    ),
)


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True)
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--photographs", default=160, show_default=True, help="The first so many.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--row", "wanted", multiple=True, help="Only rows that end so; repeatable.")
@user_errors
def main(images: Path, root: Path, output: Path, photographs: int, epochs: int, wanted) -> None:
    """Train and judge every row; ``ways.md`` and ``ways.json`` go into --output."""
    output.mkdir(parents=True, exist_ok=True)
    Adapted.images = images
    stores = export(("superpoint",), images, output, photographs)
    rows = [row for row in ROWS if not wanted or row.name.endswith(wanted)]
    make_table(rows, stores, images, root, output, "ways", epochs)


if __name__ == "__main__":
    main()
