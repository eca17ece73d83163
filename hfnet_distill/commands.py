"""Where the commands begin: Ctrl-C is quiet from here on, while the rest is yet to be imported."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import FrameType

STAGES = {
    "export_teacher": "teacher_export",
    "train_teacher": "teacher_export",
    "train_student": "student",
    "evaluate": "evaluation",
    "extract_features": "deployment",
    "export_onnx": "deployment",
    "live_features": "deployment",
}
"""Command -> the folder whose ``cli`` has it; each is a function of this module."""


def __getattr__(name: str) -> Callable[[], None]:
    if name not in STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_run, STAGES[name], name)


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
