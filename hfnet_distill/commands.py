"""Where the commands begin: Ctrl-C is quiet from here on, while the rest is yet to be imported."""

import ctypes
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
MALLOC = {  # name in the environment -> number for mallopt, value
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_MMAP_MAX_": (-4, 0),
}
"""Has glibc keep up to 2 GB of freed memory, in blocks of any size. See mallopt(3)."""


def __getattr__(name: str) -> Callable[[], None]:
    if name not in STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_run, STAGES[name], name)


def _run(stage: str, command: str) -> None:
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    # Decoders' own messages name no file; what is wrong with a photograph is said with its name.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    keep_memory()
    getattr(import_module(f".{stage}.cli", __package__), command)()


def keep_memory() -> None:
    """Have this process, and those that it starts, keep freed memory for the next tensors.

    Left to itself glibc gives each block above 32 MB back to the system, which clears every page of
    the next one: two fifths of the time of SuperPoint on a processor. What a user has set in the
    environment stays, and so does another C library's way.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for name, (number, value) in MALLOC.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            mallopt(number, value)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End at once where modules are being imported: some of them garble an exception."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            sys.stderr.write("Error: interrupted\n")
            sys.stderr.flush()
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt
