"""What a network sees in a camera, a video or a folder: keypoints, tracks, earlier places."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..console import say
from ..data.features import Features
from ..data.images import natural_order, read_image, resize_longest
from ..errors import InputError, NotFoundError
from ..files import beside
from ..networks.base import Network
from .colmap import make_matcher
from .extract import VIDEOS, read_names

__all__ = ["show"]

TRAIL = 12  # frames that a track is drawn back for
PLACE_EVERY, PLACE_GAP = 10, 100
"""A frame of every ten is remembered as a place; places of the last hundred are no news."""
THUMBNAIL = 4  # the frame's side for one of the place's picture
KEYS = "space: pause, + and -: keypoints, q: end"
OUTPUT_RATE = 10.0  # frames a second


def frames(source: str, longest_side: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 blue, green, red of a camera's number, a video or a folder.

    Raises:
        InputError, NotFoundError: none of these, or a camera that does not open.
    """
    path = Path(source)
    if path.is_dir():
        for name in sorted(read_names(path), key=natural_order):
            image = read_image(path / name, channels=3)
            yield resize_longest(image, longest_side)[..., ::-1].copy()
        return
    if not source.isdecimal() and not path.is_file():
        raise NotFoundError(f"--source {source}: no such camera, video or folder")
    if path.suffix.lower() not in VIDEOS and not source.isdecimal():
        raise InputError(f"--source {source}: expected a camera's number, a video or a folder")
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        raise InputError(f"--source {source}: OpenCV cannot open it")
    whole, frame = capture.read()
    while whole:
        yield resize_longest(frame, longest_side)
        whole, frame = capture.read()


class Tracker:
    """Keypoints matched from frame to frame by their descriptors."""

    match = staticmethod(make_matcher("nearest", ratio=0.95, min_similarity=0.7))

    def __init__(self):
        self.before: Features | None = None
        self.trails: list[list[np.ndarray]] = []

    def follow(self, features: Features) -> list[list[np.ndarray]]:
        """The trail of each keypoint, its present position last."""
        trails = [[point] for point in features.keypoints]
        if self.before is not None:
            for old, new in self.match(self.before, features)[0]:
                trails[new] = [*self.trails[old][-TRAIL:], features.keypoints[new]]
        self.before, self.trails = features, trails
        return trails


class Places:
    """Frames seen earlier, one of every ``PLACE_EVERY``, by global descriptor."""

    def __init__(self):
        self.pictures: list[np.ndarray] = []
        self.descriptors: list[np.ndarray] = []

    def look_up(self, number: int, descriptor: np.ndarray) -> tuple[int, float, np.ndarray] | None:
        """The most alike of those that are long past: its frame, the cosine, its picture."""
        past = range(0, number - PLACE_GAP, PLACE_EVERY)
        if not past:
            return None
        similarity = np.stack(self.descriptors[: len(past)]) @ descriptor
        row = int(similarity.argmax())
        return past[row], float(similarity[row]), self.pictures[row]

    def remember(self, number: int, descriptor: np.ndarray, frame: np.ndarray) -> None:
        """Take a frame into account, to be called with each; its picture is kept small."""
        if number % PLACE_EVERY == 0:
            size = (frame.shape[1] // THUMBNAIL, frame.shape[0] // THUMBNAIL)
            self.pictures.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
            self.descriptors.append(descriptor)


def draw(frame: np.ndarray, trails: list[list[np.ndarray]], place, text: str) -> np.ndarray:
    """Trails and keypoints over a frame, the place that it resembles in the corner."""
    picture = frame.copy()
    for trail in trails:
        points = np.rint(np.array(trail)).astype(np.int32)
        if len(points) > 1:
            cv2.polylines(picture, [points], False, (0, 200, 255), 1, cv2.LINE_AA)
        colour = (80, 220, 80) if len(points) > 1 else (200, 120, 60)
        cv2.circle(picture, points[-1].tolist(), 2, colour, -1, cv2.LINE_AA)
    if place is not None:
        number, similarity, thumbnail = place
        height, width = thumbnail.shape[:2]
        picture[:height, -width:] = thumbnail
        below = picture.shape[1] - width, height + 14
        _write(picture, f"frame {number}, {similarity:.2f}", below)
    _write(picture, text, (6, 16))
    return picture


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """White on black, the baseline's left end at ``place``."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (width, height), below = cv2.getTextSize(text, font, scale, 1)
    x, y = place
    cv2.rectangle(picture, (x - 2, y - height - 2), (x + width + 2, y + below), (0, 0, 0), -1)
    cv2.putText(picture, text, place, font, scale, (255, 255, 255), 1, cv2.LINE_AA)


def has_display() -> bool:
    """Whether a window can be opened here."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return False  # asked to open a window, Qt would end the program
    try:
        cv2.namedWindow("probe")
        cv2.destroyWindow("probe")
    except cv2.error:  # OpenCV without windows
        return False
    return True


def show(
    network: Network,
    source: str,
    output: Path | None,
    *,
    max_num_keypoints: int,
    longest_side: int,
    limit: int | None = None,
    quiet: bool = False,
) -> int:
    """Show a source in a window, or write it as a video where there is no display.

    Args:
        source: see ``frames``.
        output: a video to write as well; needed without a display.
        limit: stop after so many frames.

    Returns:
        The number of frames shown.

    Raises:
        InputError: neither a display nor an output, or a network without descriptors.
    """
    if not network.descriptor_dim:
        raise InputError(f"--model {network.name}: has no descriptors to track keypoints by")
    window = has_display()
    if not window and output is None:
        raise InputError("no display here; name a video to write with --output")
    tracker, places = Tracker(), Places()
    writer, partial, count = None, None, 0
    rate = 0.0
    try:
        for frame in frames(source, longest_side):
            start = time.perf_counter()
            features = network.extract(frame[..., ::-1], max_num_keypoints=max_num_keypoints)
            trails = tracker.follow(features)
            place = None
            if features.global_descriptor is not None:
                place = places.look_up(count, features.global_descriptor)
                places.remember(count, features.global_descriptor, frame)
            seconds = time.perf_counter() - start
            rate = 1 / seconds if not rate else 0.9 * rate + 0.1 / seconds
            tracked = sum(len(trail) > 1 for trail in trails)
            text = f"{rate:.1f} frames/s  {len(trails)} keypoints, {tracked} tracked"
            picture = draw(frame, trails, place, text)
            count += 1
            if output is not None:
                if writer is None:
                    partial = beside(output).with_suffix(output.suffix)
                    writer = _open_writer(partial, output, picture)
                writer.write(picture)
            if window:
                cv2.imshow(f"hfnet-distill - {KEYS}", picture)
                max_num_keypoints, goes_on = _obey(max_num_keypoints)
                if not goes_on:
                    break
            if count == limit:
                break
        if writer is not None:
            writer.release()
            partial.replace(output)
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
        if window:
            cv2.destroyAllWindows()
    say(f"{count} frames, {rate:.1f} a second at the end", quiet=quiet)
    return count


def _open_writer(path: Path, output: Path, picture: np.ndarray) -> cv2.VideoWriter:
    size = (picture.shape[1], picture.shape[0])
    code = cv2.VideoWriter_fourcc(*("MJPG" if output.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, OUTPUT_RATE, size)
    if not writer.isOpened():
        raise InputError(f"--output {output}: OpenCV cannot write such a video; try .mp4 or .avi")
    return writer


def _obey(max_num_keypoints: int) -> tuple[int, bool]:
    """What the keys pressed ask for: how many keypoints, and whether to go on."""
    key = cv2.waitKey(1) & 0xFF
    if key == ord(" "):
        while cv2.waitKey(50) & 0xFF != ord(" "):
            pass
    if key in (ord("+"), ord("=")):
        max_num_keypoints *= 2
    if key == ord("-"):
        max_num_keypoints = max(1, max_num_keypoints // 2)
    return max_num_keypoints, key not in (ord("q"), 27)
