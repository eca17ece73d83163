import cv2
import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.deployment import live
from hfnet_distill.deployment.cli import live_features


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    monkeypatch.setattr(live, "has_display", lambda: False)


def test_a_folder_becomes_a_video(photographs, tmp_path, run_command):
    path = tmp_path / "out.mp4"
    output = run_command(live_features, "--source", photographs, "--output", path)
    assert "6 frames" in output
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(6)]
    assert frames[0].shape == (480, 640, 3)
    assert [entry.name for entry in tmp_path.iterdir() if "out" in entry.name] == ["out.mp4"]


def test_what_cannot_be_shown(photographs, tmp_path, run_command):
    missing = ("--source", tmp_path / "none.mp4", "--output", tmp_path / "out.mp4")
    assert "no such camera, video or folder" in run_command(live_features, *missing, code=1)
    (tmp_path / "text.mp4").write_text("no video")
    broken = ("--source", tmp_path / "text.mp4", "--output", tmp_path / "out.mp4")
    assert "OpenCV cannot open it" in run_command(live_features, *broken, code=1)
    assert "no display here" in run_command(live_features, "--source", photographs, code=1)
    harris = ("--model", "harris", "--source", photographs, "--output", tmp_path / "out.mp4")
    assert "no descriptors to track" in run_command(live_features, *harris, code=1)


def test_tracks_and_places():
    descriptors = np.eye(3, dtype=np.float32)
    tracker = live.Tracker()
    for step in range(3):
        points = np.array([[10 + step, 5], [20, 5], [30, 5 + step]], np.float32)
        scores = np.ones(3, np.float32)
        trails = tracker.follow(Features((64, 32), points, scores, descriptors))
    assert [len(trail) for trail in trails] == [3, 3, 3]
    assert np.array(trails[0])[:, 0].tolist() == [10, 11, 12]

    places = live.Places()
    frame = np.zeros((32, 64, 3), np.uint8)
    for number in range(0, 150, 10):
        places.remember(number, descriptors[number % 3], frame)
    assert places.look_up(90, descriptors[0]) is None
    number, similarity, picture = places.look_up(150, descriptors[0])
    assert number % 3 == 0
    assert number < 50
    assert similarity == 1
    assert picture.shape == (8, 16, 3)
