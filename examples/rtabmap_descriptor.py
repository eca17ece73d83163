"""RTAB-Map closes loops with an ONNX file of export-onnx: name this file as PyDescriptor/Path.

Parameters: Mem/GlobalDescriptorStrategy 1 (Python), PyDescriptor/Path this file. The ONNX file is
HFNET_DISTILL_ONNX or student.onnx beside this file. Needs onnxruntime and numpy.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime

_session = None
_dim = 0


def init(dim):
    """Called once by RTAB-Map with the most values that it wants; 0 for all."""
    global _session, _dim
    path = os.environ.get("HFNET_DISTILL_ONNX", Path(__file__).with_name("student.onnx"))
    _session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if "global_descriptor" not in [output.name for output in _session.get_outputs()]:
        raise ValueError(f"{path}: this model has no global descriptor; export one that has")
    _dim = dim


def extract(image):
    """Image (H, W, C), gray or blue, green, red -> the global descriptor (1, dim) float32.

    RTAB-Map hands the image over as signed bytes: they are seen as uint8 here.
    """
    pixels = image.view(np.uint8)
    if pixels.shape[2] == 3:
        gray = (pixels @ np.array([0.114, 0.587, 0.299]) + 0.5).astype(np.uint8)
    else:
        gray = pixels[..., 0]
    values = _session.run(["global_descriptor"], {"image": gray[None, None]})[0]
    if 0 < _dim < len(values):
        values = values[:_dim] / np.linalg.norm(values[:_dim])
    return np.ascontiguousarray(values[None], np.float32)
