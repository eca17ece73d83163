"""Features on a robot: needs onnxruntime, numpy and an image reader (here Pillow), nothing else.

export-onnx --model run/ --output student.onnx
python robot.py student.onnx photograph.jpg
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave cores to others
session = onnxruntime.InferenceSession(sys.argv[1], options)

gray = np.asarray(Image.open(sys.argv[2]).convert("L"))  # (H, W) uint8, any size
names = [output.name for output in session.get_outputs()]
features = dict(zip(names, session.run(None, {"image": gray[None, None]}), strict=True))

for name, values in features.items():  # keypoints are x, y; the first pixel's centre is (0, 0)
    print(name, values.dtype, values.shape)
