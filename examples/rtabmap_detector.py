"""RTAB-Map detects with an ONNX file of export-onnx: name this file as PyDetector/Path.

Parameters: Kp/DetectorStrategy 15 and Vis/FeatureType 15 (Python), PyDetector/Path this file. The
ONNX file is HFNET_DISTILL_ONNX or student.onnx beside this file. Needs onnxruntime and numpy.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime

_session = None


def init(cuda):
    """Called once by RTAB-Map; ``cuda`` says whether the GPU may be used."""
    global _session
    path = os.environ.get("HFNET_DISTILL_ONNX", Path(__file__).with_name("student.onnx"))
    wanted = ["CUDAExecutionProvider"] * bool(cuda) + ["CPUExecutionProvider"]
    there = onnxruntime.get_available_providers()
    _session = onnxruntime.InferenceSession(
        str(path), providers=[provider for provider in wanted if provider in there]
    )


def detect(image):
    """Gray (H, W) uint8 -> x, y, score (N, 3) and descriptors (N, D), float32 and contiguous."""
    wanted = ["keypoints", "scores", "descriptors"]
    keypoints, scores, descriptors = _session.run(wanted, {"image": image[None, None]})
    rows = np.column_stack([keypoints, scores]).astype(np.float32)
    return np.ascontiguousarray(rows), np.ascontiguousarray(descriptors, np.float32)
