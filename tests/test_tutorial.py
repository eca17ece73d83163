"""docs/tutorial.md, command by command, on the sample photographs."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parent.parent
STAGES = {
    "export-teacher": "teacher_export",
    "train-student": "student",
    "evaluate": "evaluation",
    "export-onnx": "deployment",
    "extract-features": "deployment",
}
SMALLER = {
    "export-teacher": ["--size", "160x120", "--device", "cpu", "--quiet"],
    "train-student": [
        *("--epochs", "1", "--crop", "128x96", "--num-workers", "1", "--device", "cpu", "--quiet"),
    ],
    "evaluate": ["--sequences", "1", "--device", "cpu", "--quiet"],
    "export-onnx": ["--max-num-keypoints", "100", "--quiet"],
    "extract-features": ["--longest-side", "320", "--device", "cpu", "--quiet"],
}
"""Later flags win: the tutorial's own are for real photographs."""


@pytest.mark.timeout(900)
def test_every_command(tmp_path, monkeypatch, run_command):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycolmap")
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    commands = re.findall(r"^    (\S.*)$", page, re.MULTILINE)
    assert {shlex.split(command)[0] for command in commands} == {"python", *STAGES}
    shutil.copy(ROOT / "examples" / "robot.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        name, *arguments = shlex.split(command)
        if name == "python" and arguments[0] == "-m":
            monkeypatch.setattr(sys, "argv", ["samples", *arguments[2:]])
            sys.modules.pop(arguments[1], None)  # another test may have imported it
            runpy.run_module(arguments[1], run_name="__main__")
        elif name == "python":
            output = subprocess.run(
                [sys.executable, *arguments], check=True, capture_output=True, text=True
            ).stdout
            assert "descriptors float32 (100, 128)" in output
        else:
            stage = import_module(f"hfnet_distill.{STAGES[name]}.cli")
            run_command(getattr(stage, name.replace("-", "_")), *arguments, *SMALLER[name])
    made = {"aliked.zarr", "run", "sequences", "report", "student.onnx", "aliked.onnx"}
    assert made | {"features.h5", "database.db"} <= {path.name for path in tmp_path.iterdir()}
    if hasattr(cv2, "ALIKED"):
        (snippet,) = re.findall(r"```python\n(import cv2.*?)```", page, re.DOTALL)
        names: dict = {}
        exec(snippet, names)
        assert len(names["keypoints"]) == 100
