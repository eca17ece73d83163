"""Where the commands begin: Ctrl-C is quiet from here on, while the rest is yet to be imported."""

import os
import signal
import sys
from importlib import import_module
from types import FrameType

__all__ = [
    "evaluate",
    "export_onnx",
    "export_teacher",
    "extract_features",
    "live_features",
    "train_student",
    "train_teacher",
]


def export_teacher() -> None:
    """Stage 1: photographs -> a store of what a teacher says of them."""
    _run("teacher_export", "export_teacher")


def train_teacher() -> None:
    """Photographs -> a teacher."""
    _run("teacher_export", "train_teacher")


def train_student() -> None:
    """Stage 2: stores and photographs -> a run folder."""
    _run("student", "train_student")


def evaluate() -> None:
    """Stage 3: models and a dataset -> numbers and pictures."""
    _run("evaluation", "evaluate")


def extract_features() -> None:
    """Stage 4: photographs -> a features file, a COLMAP database, matches."""
    _run("deployment", "extract_features")


def export_onnx() -> None:
    """Stage 4: a student -> an ONNX file."""
    _run("deployment", "export_onnx")


def live_features() -> None:
    """Stage 4: a camera or a video -> keypoints and tracks on the screen."""
    _run("deployment", "live_features")


def _run(stage: str, command: str) -> None:
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    # Decoders' own messages name no file; what is wrong with a photograph is said with its name.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    getattr(import_module(f".{stage}.cli", __package__), command)()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End at once where modules are being imported: some of them garble an exception."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            sys.stderr.write("Error: interrupted\n")
            sys.stderr.flush()
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt
