"""glue-factory extracts with a network of hfnet_distill: put this file on the Python path.

    model:
      extractor:
        name: glue_factory_extractor
        model: default          # or a run folder, a checkpoint, onnx:student.onnx
        max_num_keypoints: 1024

glue-factory takes ``name`` as an import path and the one child of BaseModel in it.
"""

import torch
from gluefactory.models.base_model import BaseModel

import hfnet_distill


class HFNetDistill(BaseModel):
    """Keypoints counted from the corner of the first pixel, as glue-factory counts them."""

    default_conf = {"model": "default", "max_num_keypoints": 1024, "trainable": False}
    required_data_keys = ["image"]

    def _init(self, conf):
        self.extractor = hfnet_distill.load(conf.model)

    def _forward(self, data):
        images = data["image"]  # (B, C, H, W) float32 in [0, 1]
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        found = [
            self.extractor.extract(
                image[..., 0] if image.shape[2] == 1 else image,
                max_num_keypoints=self.conf.max_num_keypoints,
            )
            for image in pixels
        ]
        most = max(len(features.keypoints) for features in found)
        padded = {
            "keypoints": [features.keypoints + 0.5 for features in found],
            "keypoint_scores": [features.scores for features in found],
            "descriptors": [features.descriptors for features in found],
        }
        return {key: self._stack(arrays, most).to(images) for key, arrays in padded.items()}

    @staticmethod
    def _stack(arrays, most):
        """Of equal length: what is missing is 0."""
        stacked = torch.zeros(len(arrays), most, *arrays[0].shape[1:])
        for row, array in enumerate(arrays):
            stacked[row, : len(array)] = torch.from_numpy(array)
        return stacked

    def loss(self, pred, data):
        raise NotImplementedError
