"""pipeline.toml -> frozen, validated settings, one class per table."""

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import InputError, NotFoundError
from .files import read_text
from .registry import import_plugins

__all__ = [
    "EvaluateSettings",
    "ExportSettings",
    "PredictSettings",
    "Settings",
    "TeacherSettings",
    "TrainSettings",
    "first_difference",
    "load_settings",
    "override",
    "parse_size",
    "shipped_settings",
]


def parse_size(value: Any) -> tuple[int, int]:
    """``"640x480"`` -> (640, 480), width first."""
    if isinstance(value, tuple):
        return value
    match = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    if not match or "0" in match.groups():
        raise ValueError('expected width x height, such as "640x480"')
    return int(match[1]), int(match[2])


CELL = 8
"""Pixels of a cell's side: ``data.cells.CELL``, which the root may not import."""


def _whole_cells(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size and (size[0] % CELL or size[1] % CELL):
        raise ValueError(f"both sides must be multiples of {CELL}, the side of a descriptor cell")
    return size


def _to_range(value: Any) -> tuple[float, float]:
    if not (isinstance(value, list | tuple) and len(value) == 2 and 0 < value[0] <= value[1]):
        raise ValueError("expected [lowest, highest], both above 0")
    return tuple(float(end) for end in value)


Size = Annotated[tuple[int, int], AfterValidator(_whole_cells), BeforeValidator(parse_size)]
Crop = Annotated[Size | None, BeforeValidator(lambda v: None if v == "whole" else v)]
Range = Annotated[tuple[float, float], BeforeValidator(_to_range)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Auto = BeforeValidator(lambda v: None if v == "auto" else v)
Radius = Annotated[NotNegative | None, Auto]
ShardSize = Annotated[Count | None, Auto]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]
Tilt = Annotated[float, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ExportSettings(_Section):
    """[export]: see pipeline.toml for the meaning of each key."""

    model: str
    format: Literal["zarr", "hdf5"]
    size: Size
    fields: list[str]
    quantisation: Literal["none", "int8"]
    compression: Literal["none", "zstd"]
    shard_size: ShardSize
    batch_size: Count
    workers: Count
    decoders: Count = 4  # files from before these two were keys are still read
    writers: Count = 2
    device: str
    precision: Precision
    threshold: Share
    nms_radius: NotNegative
    border: NotNegative
    max_num_keypoints: Count
    vlad_words: Count
    vlad_dim: Count


class _Training(_Section):
    """What both trainings have."""

    learning_rate: Annotated[float, Field(gt=0)]
    zoom: Range
    rotation: Weight
    perspective: Share
    tilt: Tilt
    photometric: Share
    validation: Share
    precision: TrainingPrecision
    device: str
    seed: NotNegative
    checkpoint_minutes: Weight


class TeacherSettings(_Training):
    """[teacher]: see pipeline.toml for the meaning of each key."""

    network: Literal["vgg4", "micro"]
    grid: Annotated[int, Field(ge=8)]
    steps: Count
    warmup: Count
    view_scale: Range
    temperature: Annotated[float, Field(gt=0)]
    validate_every: Count


class TrainSettings(_Training):
    """[train]: see pipeline.toml for the meaning of each key."""

    network: str
    init: str
    detector_target: str
    descriptor_target: str
    epochs: Count
    batch_size: Count
    crop: Crop
    views: Literal[1, 2]
    warp: Share
    inside: bool
    overlap: Share
    full_resolution: bool
    views_on: Literal["loader", "device"] = "loader"  # files from before it have no such key
    weight_decay: Weight
    warmup: Share
    weighting: Literal["fixed", "uncertainty"]
    ema: Annotated[float, Field(ge=0, lt=1)]
    norm_batches: NotNegative
    compile: bool
    num_workers: NotNegative
    loss_weights: dict[str, Weight]
    networks: dict[str, dict[str, Any]]


class PredictSettings(_Section):
    """[predict]: see pipeline.toml for the meaning of each key."""

    threshold: Share
    nms_radius: NotNegative
    border: NotNegative
    refine_radius: Radius
    rank_radius: Radius
    precision: Precision


class EvaluateSettings(_Section):
    """[evaluate]: see pipeline.toml for the meaning of each key."""

    protocol: str
    num_keypoints: Count
    longest_side: NotNegative
    split: str
    pictures: NotNegative
    matcher: Literal["nearest", "lightglue"]
    workers: Count


class Settings(_Section):
    """All of pipeline.toml.

    Attributes:
        plugins: Python files that are imported first.
    """

    plugins: list[str] = []

    export: ExportSettings
    teacher: TeacherSettings
    train: TrainSettings
    predict: PredictSettings
    evaluate: EvaluateSettings


@lru_cache
def shipped_settings() -> Settings:
    """The settings that are shipped, whatever pipeline.toml lies in the current folder."""
    return load_settings(_shipped())


def _shipped() -> Path:
    here = Path(__file__).parent
    # Beside this module in a wheel, above it in a checkout.
    choices = [here / "pipeline.toml", here.parent / "pipeline.toml"]
    return next(choice for choice in choices if choice.is_file())


def load_settings(path: str | Path | None = None) -> Settings:
    """Read settings from ``path``, else ``pipeline.toml`` here, else the one that is shipped.

    Tables that the file leaves out are those that are shipped.

    Raises:
        NotFoundError: no such file.
        InputError: not TOML, or a key that is unknown, missing or of the wrong type; names it.
    """
    here = Path("pipeline.toml")
    path = Path(path if path is not None else here if here.is_file() else _shipped())
    if not path.is_file():
        raise NotFoundError(f"{path}: no such settings file")
    try:
        shipped, tables = (tomllib.loads(read_text(file)) for file in (_shipped(), path))
        settings = Settings.model_validate({**shipped, **tables})  # a recipe says what it changes
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {_in_words(error)}") from error
    import_plugins(settings.plugins)
    return settings


Section = TypeVar("Section", bound=_Section)


def override(section: Section, **values: Any) -> Section:
    """The settings with the values that are not None replaced, validated again.

    Raises:
        InputError: names the key whose value is invalid.
    """
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return type(section).model_validate({**section.model_dump(), **given})
    except ValidationError as error:
        raise InputError(_in_words(error)) from error


def first_difference(ours: Mapping, theirs: Mapping, prefix: str = "") -> str | None:
    """The first key in which two nested mappings differ, as a phrase, or None."""
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        mine, its = ours.get(key, "nothing"), theirs.get(key, "nothing")
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            if found := first_difference(mine, its, f"{prefix}{key}."):
                return found
        elif mine != its:
            return f"{prefix}{key} is {its} there and {mine} here"
    return None


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; remove it or correct its name"
    if first["type"] == "missing":
        return f"key {key} is missing; copy its line from the pipeline.toml that is shipped"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, found {first['input']!r}"
