"""Draws docs/live.jpg: what live-features shows while a camera moves over a sample photograph.

    python docs/live.py docs/live.jpg

The photograph is scikit-image's cup of coffee, by Rachel Michetti, in the public domain (CC0).
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from hfnet_distill.deployment.live import show
from hfnet_distill.networks.registry import load

SIZE = (560, 380)
FRAMES = 14
ZOOM, TURN = 1.012, 0.4  # of each frame: the scale's factor, degrees


def main(output: str) -> None:
    """Render the frames, track keypoints through them, keep the last picture."""
    package = Path(find_spec("skimage").submodule_search_locations[0])
    photograph = cv2.imread(str(package / "data" / "coffee.png"))
    center = (photograph.shape[1] / 2, photograph.shape[0] / 2)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FRAMES):
            view = cv2.getRotationMatrix2D(center, TURN * number, 1.05 * ZOOM**number)
            view[:, 2] += np.array(SIZE) / 2 - center
            frame = cv2.warpAffine(photograph, view, SIZE, borderMode=cv2.BORDER_REFLECT)
            cv2.imwrite(f"{folder}/{number:02d}.png", frame)
        video = Path(folder, "live.mp4")
        show(load("default"), folder, video, max_num_keypoints=400, longest_side=640)
        capture = cv2.VideoCapture(str(video))
        frames = [capture.read()[1] for _ in range(FRAMES)]
    cv2.imwrite(output, frames[-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main(sys.argv[1])
