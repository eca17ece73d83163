"""All three commands, one after the other, on real photographs."""

import json

import pytest

from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.cli import evaluate
from hfnet_distill.networks.registry import load_checkpoint
from hfnet_distill.student.cli import train_student
from hfnet_distill.student.pack import pack_student
from hfnet_distill.teacher_export.cli import export_teacher


@pytest.mark.parametrize(
    ("teacher", "format", "start", "descriptor_dim"),
    [("superpoint", "zarr", (), 256), ("silk", "hdf5", ("--init", "default"), 128)],
)
def test_photographs_to_table(run_command, tmp_path, teacher, format, start, descriptor_dim):
    copy_samples(tmp_path)
    store, run, report = (tmp_path / name for name in ("store", "run", "report"))
    run_command(
        export_teacher,
        *("--model", teacher, "--images", tmp_path / "train", "--store", store),
        *("--format", format, "--size", "160x120", "--device", "cpu", "--quiet"),
    )
    run_command(
        train_student,
        *("--store", store, "--images", tmp_path / "train", "--output", run),
        *("--epochs", 2, "--crop", "128x96", "--num-workers", 1, "--device", "cpu", "--quiet"),
        *start,
    )
    run_command(
        evaluate,
        *("--render", tmp_path / "test", "--root", tmp_path / "sequences", "--sequences", 2),
        *("--model", run, "--model", "orb", "--output", report, "--device", "cpu", "--quiet"),
    )
    results = json.loads((report / "report.json").read_text())["results"]
    assert {row["model"] for row in results} == {str(run), "orb"}
    assert (report / "index.html").stat().st_size > 10_000
    pack_student([run], tmp_path / "packed.safetensors")
    student, _ = load_checkpoint(tmp_path / "packed.safetensors")
    float16_bytes = 2 * sum(tensor.numel() for tensor in student.state_dict().values())
    assert (tmp_path / "packed.safetensors").stat().st_size < 1.05 * float16_bytes
    assert student.config.descriptor_dim == descriptor_dim
