"""Structure from motion with COLMAP on scenes whose cameras are known: which features carry it?

    python benchmarks/reconstruct.py --scenes strecha/ --model default --model sift

A scene is a folder with ``images/`` and ``cameras/NAME.camera``, as Strecha et al. publish theirs
(CVPR 2008). Photographs are not resized beyond 1024 pixels; all pairs are matched.
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np

from hfnet_distill.config import shipped_settings
from hfnet_distill.console import say, user_errors
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.deployment.colmap import all_pairs, make_matcher, write_database
from hfnet_distill.deployment.extract import extract
from hfnet_distill.extras import require

RATIO = {"sift": 0.8}
"""Of the distances to the nearest and the second nearest neighbour; others: as shipped."""
SMALLEST_MODEL = 3  # photographs


def camera_centres(folder: Path) -> dict[str, np.ndarray]:
    """Photograph -> its camera's centre (3,), from the eighth line of its ``.camera`` file."""
    return {
        path.name.removesuffix(".camera"): np.loadtxt(path.read_text().splitlines()[7:8])
        for path in sorted(folder.glob("*.camera"))
    }


def reconstruct(scene: Path, model: str, scratch: Path, max_num_keypoints: int) -> dict:
    """Numbers of one reconstruction."""
    pycolmap = require("pycolmap", "colmap")
    choice = KeypointChoice.of(shipped_settings().predict, max_num_keypoints)
    features = extract(
        model, scene / "images", scratch / "features.h5", choice=choice, device="cpu", quiet=True
    )
    write_database(
        features,
        scene / "images",
        scratch / "database.db",
        all_pairs(features),
        make_matcher(
            "nearest",
            ratio=RATIO.get(model, 0.95),
            min_similarity=-1 if model in RATIO else 0.7,
        ),
        single_camera=True,
        quiet=True,
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = SMALLEST_MODEL
    options.random_seed = 0
    found = pycolmap.incremental_mapping(
        scratch / "database.db", scene / "images", scratch, options
    )
    centres = camera_centres(scene / "cameras")
    numbers = {"scene": scene.name, "model": model, "photographs": len(centres), "registered": 0}
    if not found:
        return numbers
    best = max(found.values(), key=lambda one: one.num_reg_images())
    names = [best.images[number].name for number in best.reg_image_ids()]
    wanted = np.array([centres[name] for name in names])
    extent = np.linalg.norm(np.ptp(np.array(list(centres.values())), axis=0))
    ransac = pycolmap.RANSACOptions()
    ransac.max_error = 0.05 * extent
    to_world = pycolmap.align_reconstruction_to_locations(best, names, wanted, 3, ransac)
    if to_world is not None:
        best.transform(to_world)
        there = np.array([best.find_image_with_name(name).projection_center() for name in names])
        errors = np.linalg.norm(there - wanted, axis=1) / extent
        numbers |= {"centre_error": float(np.median(errors)), "centre_worst": float(errors.max())}
    return numbers | {
        "registered": best.num_reg_images(),
        "points": best.num_points3D(),
        "track_length": best.compute_mean_track_length(),
        "reprojection_error": best.compute_mean_reprojection_error(),
    }


@click.command(context_settings={"show_default": True})
@click.option("--scenes", type=click.Path(path_type=Path), required=True, help="Their folder.")
@click.option(
    "--model", "models", multiple=True, default=("small", "hfnet-superpoint", "superpoint", "sift")
)
@click.option("--max-num-keypoints", default=2048)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
@user_errors
def main(
    scenes: Path, models: tuple[str, ...], max_num_keypoints: int, output: Path | None
) -> None:
    """Reconstruct each scene from each model's features; some minutes a scene."""
    rows = []
    say("| scene | model | registered | points | track | reprojection px | centres, worst % |")
    say("|---|---|---|---|---|---|---|")
    for scene in sorted(path.parent for path in scenes.glob("*/cameras")):
        for model in models:
            with tempfile.TemporaryDirectory() as scratch:
                row = reconstruct(scene, model, Path(scratch), max_num_keypoints)
            rows.append(row)
            say(
                f"| {row['scene']} | {model} | {row['registered']} of {row['photographs']} "
                f"| {row.get('points', 0)} | {row.get('track_length', 0):.2f} "
                f"| {row.get('reprojection_error', float('nan')):.2f} "
                f"| {100 * row.get('centre_worst', float('nan')):.2f} |"
            )
    if output is not None:
        output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
