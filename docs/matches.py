"""Draws the README's picture: matches of a model on a slanted and differently lit view.

    python docs/matches.py docs/matches.jpg

The photograph is scikit-image's astronaut, NASA's portrait of Eileen Collins, in the public domain.
The second view is rendered from it, so its homography is known and every match can be checked.
"""

import tempfile
from pathlib import Path

import click
import cv2
import numpy as np

import hfnet_distill
from hfnet_distill.console import user_errors
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.data.images import read_image
from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.datasets.rendered import render_sequences
from hfnet_distill.evaluation.matching import match_mutual
from hfnet_distill.evaluation.report.pictures import draw_matches

SEED, VIEW = 4, 2  # a view that is turned, foreshortened and closer
THRESHOLD = 3  # pixels within which a match is correct
QUALITY = 85  # of the JPEG


@click.command(context_settings={"show_default": True})
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", default="default")
@click.option("--keypoints", default=150, help="Of each view, the best by score.")
@user_errors
def main(output: Path, model: str, keypoints: int) -> None:
    """Draw mutual nearest neighbors between two views: correct ones green, wrong ones red."""
    network = hfnet_distill.load(model)
    with tempfile.TemporaryDirectory() as folder:
        copy_samples(folder)
        (photograph,) = Path(folder).rglob("astronaut.png")
        root = Path(folder) / "sequences"
        (sequence,) = render_sequences([photograph], root, seed=SEED, count=1)
        images = [read_image(root / sequence / f"{k}.ppm", channels=1) for k in (1, VIEW)]
        H_0to1 = np.loadtxt(root / sequence / f"H_1_{VIEW}")
    view0, view1 = (network.extract(image, max_num_keypoints=keypoints) for image in images)
    matches = match_mutual(view0.descriptors, view1.descriptors)
    expected = warp_points(view0.keypoints[matches[:, 0]], H_0to1)
    errors = np.linalg.norm(expected - view1.keypoints[matches[:, 1]], axis=1)
    correct = errors < THRESHOLD
    drawn = draw_matches(*images, view0.keypoints, view1.keypoints, matches, correct)
    cv2.imwrite(str(output), drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    click.echo(f"{output}: {correct.sum()} of {len(matches)} matches within {THRESHOLD} px")


if __name__ == "__main__":
    main()
