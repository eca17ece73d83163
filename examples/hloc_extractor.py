"""hloc extracts with an ONNX file of export-onnx: save this as hloc/extractors/hfnet_distill.py.

    from hloc import extract_features
    import hloc.extractors.hfnet_distill
    extract_features.main(hloc.extractors.hfnet_distill.CONF, images, outputs)

Needs onnxruntime and what hloc needs. hloc finds the one child of BaseModel in this module.
"""

import numpy as np
import onnxruntime
import torch
from hloc.utils.base_model import BaseModel

CONF = {
    "output": "feats-hfnet-distill",
    "model": {"name": "hfnet_distill", "file": "student.onnx"},
    "preprocessing": {"grayscale": True, "resize_max": 1024},
}


class HFNetDistill(BaseModel):
    """A student: keypoints, local descriptors and a global descriptor in one pass."""

    default_conf = {"file": "student.onnx", "threads": 0}
    required_inputs = ["image"]
    detection_noise = 1.0

    def _init(self, conf):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = conf["threads"]
        self.session = onnxruntime.InferenceSession(
            conf["file"], options, providers=["CPUExecutionProvider"]
        )
        self.names = [output.name for output in self.session.get_outputs()]

    def _forward(self, data):
        image = data["image"]  # (1, C, H, W) float32 in [0, 1]
        pixels = (image * 255).round().to(torch.uint8).cpu().numpy()
        values = self.session.run(None, {"image": np.ascontiguousarray(pixels)})
        found = {
            name: torch.from_numpy(value).to(image.device)
            for name, value in zip(self.names, values, strict=True)
        }
        prediction = {
            "keypoints": [found["keypoints"]],  # (N, 2), centre of the first pixel (0, 0), as hloc
            "scores": [found["scores"]],
            "descriptors": [found["descriptors"].T],
        }
        if "global_descriptor" in found:
            prediction["global_descriptor"] = found["global_descriptor"][None]
        return prediction
