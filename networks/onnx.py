"""``onnx:FILE``: a file that ``export-onnx`` made, run by ONNX Runtime as any other network."""

import hashlib
import json
from pathlib import Path

import google_crc32c
import torch
from torch import Tensor

from ..data.features import Features
from ..data.geometry import PIXEL_MAP
from ..data.keypoints import KeypointChoice
from ..errors import InputError, NotFoundError
from ..extras import require
from .base import DenseMaps, Network
from .registry import register

__all__ = ["PREFIX", "ONNXNetwork", "make_session", "seal"]

PREFIX = "hfnet_distill."
"""How the keys of our metadata in an ONNX file begin."""
PROFILES = ("sparse", "maps")

SEAL = b"\x72\x22\x0a\x16hfnet_distill.checksum\x12\x08"
"""How a file ends, before eight digits: one more entry of ``metadata_props`` (protobuf's field 14,
34 bytes: a key of 22 and a value of 8)."""


def seal(content: bytes) -> bytes:
    """An ONNX file with the CRC-32C of its bytes as its last piece of metadata."""
    return content + SEAL + f"{google_crc32c.value(content):08x}".encode()


def _is_as_sealed(content: bytes) -> bool:
    """Whether the bytes are as ``seal`` saw them, or never went through it."""
    body, end = content[: -len(SEAL) - 8], content[-len(SEAL) - 8 :]
    return not end.startswith(SEAL) or content == seal(body)


def make_session(model: str | Path | bytes, *, threads: int = 0):
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        model: a file or its content.
        threads: that one operation may use; 0 for all cores.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot read the file.
    """
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait take the cores from whatever else the robot does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised, too
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes differ from version to version
        reason = str(error).splitlines()[0]
        name = "the graph" if isinstance(model, bytes) else source
        raise InputError(f"{name}: ONNX Runtime cannot read it ({reason})") from error


@register("onnx")
class ONNXNetwork(Network):
    """A network as it is deployed.

    A file of profile ``maps`` is read as PyTorch's maps are; in one of profile ``sparse`` the graph
    chooses the keypoints, with the settings that it was exported with.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        if not Path(path).is_file():
            raise NotFoundError(f"{path}: no such ONNX file")
        content = Path(path).read_bytes()
        if not _is_as_sealed(content):
            raise InputError(
                f"onnx:{path}: damaged: it does not match its checksum; export it anew"
            )
        self.weights = hashlib.sha256(content).hexdigest()
        self.session = make_session(path)
        metadata = self.session.get_modelmeta().custom_metadata_map
        told = {key.removeprefix(PREFIX): value for key, value in metadata.items()}
        self.profile = told.get("profile")
        if self.profile not in PROFILES:
            found = f"profile {self.profile}" if self.profile else "a file of another program"
            raise InputError(
                f"onnx:{path}: {found}; expected a file that export-onnx made with --profile "
                f"{' or '.join(PROFILES)}"
            )
        try:
            for name in ("channels", "descriptor_dim", "global_dim"):
                setattr(self, name, int(told[name]))
            choice = KeypointChoice(**json.loads(told["keypoints"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"onnx:{path}: damaged metadata ({error}); export it anew") from error
        self.exported_choice = choice
        self.refine_radius, self.rank_radius = choice.refine_radius, choice.rank_radius
        self.outputs = [output.name for output in self.session.get_outputs()]

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "ONNXNetwork":
        if source is None:
            raise InputError("onnx: name the file behind a colon, as onnx:student.onnx")
        return cls(source)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            values = self.session.run(None, {"image": images.cpu().contiguous().numpy()})
        except Exception as error:
            size = "x".join(map(str, images.shape[:-3:-1]))
            reason = str(error).splitlines()[0]
            raise InputError(
                f"an image of {size} pixels: the ONNX file fails ({reason})"
            ) from error
        return dict(zip(self.outputs, map(torch.from_numpy, values), strict=True))

    def maps(self, images: Tensor) -> DenseMaps:
        if self.profile != "maps":
            raise InputError("an ONNX file of profile sparse has no maps; export --profile maps")
        found = self._run(images)
        return DenseMaps(
            (images.shape[3], images.shape[2]),
            found["score_map"][:, None],
            PIXEL_MAP,
            descriptor_map=found["descriptor_map"],
            global_descriptor=found.get("global_descriptor"),
        )

    @torch.inference_mode()
    def features(self, images: Tensor, choice: KeypointChoice) -> list[Features]:
        if self.profile == "maps":
            return super().features(images, choice)
        own, wanted = self.exported_choice, self.choice_for(choice)
        if choice.max_num_keypoints > own.max_num_keypoints:
            raise InputError(
                f"{choice.max_num_keypoints} keypoints: the ONNX file gives "
                f"{own.max_num_keypoints} at most; export it with --max-num-keypoints "
                f"{choice.max_num_keypoints}"
            )
        for name, value in vars(wanted).items():
            if name != "max_num_keypoints" and value != getattr(own, name):
                raise InputError(
                    f"{name} {value}: the ONNX file was exported with {getattr(own, name)}; "
                    f"export it anew, or its profile maps"
                )
        features, size = [], (images.shape[3], images.shape[2])
        for pixels in (images * 255).round().byte():
            found = {name: values.numpy() for name, values in self._run(pixels[None]).items()}
            best = [
                found[name][: choice.max_num_keypoints]
                for name in ("keypoints", "scores", "descriptors")
            ]
            features.append(Features(size, *best, found.get("global_descriptor")))
        return features
