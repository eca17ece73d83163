"""Students as one small file, and the mean of several."""

import pytest
import torch

from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.registry import load, load_checkpoint, save_checkpoint
from hfnet_distill.student.pack import main


@pytest.fixture
def students(tmp_path):
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        save_checkpoint(path, HFNet(HFNetConfig(descriptor_dim=8)), {"number": number})
    return paths


def test_the_mean_of_several(students, run_command, tmp_path):
    run_command(main, *students, tmp_path / "new" / "packed.safetensors")
    packed, description = load_checkpoint(tmp_path / "new" / "packed.safetensors")
    assert description["packed"] == "float16"
    assert description["number"] == 1
    first, second = (load_checkpoint(path)[0].state_dict() for path in students)
    for name, tensor in packed.state_dict().items():
        mean = (first[name].double() + second[name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-3, atol=1e-5)


def test_students_of_different_kinds_have_no_mean(students, run_command, tmp_path):
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, HFNet(HFNetConfig(descriptor_dim=16)), {})
    message = run_command(main, students[0], other, tmp_path / "packed.safetensors", code=1)
    assert "descriptor_dim=16" in message
    assert not (tmp_path / "packed.safetensors").exists()
    message = run_command(main, tmp_path / "none", tmp_path / "packed.safetensors", code=1)
    assert "none" in message


def test_a_checkpoint_keeps_how_its_keypoints_are_read(tmp_path):
    network = HFNet(HFNetConfig(descriptor_dim=8))
    assert (network.refine_radius, network.rank_radius) == (4, 0)
    network.rank_radius = 1
    save_checkpoint(tmp_path / "student.safetensors", network, {})
    again = load(tmp_path / "student.safetensors")
    assert (again.refine_radius, again.rank_radius) == (4, 1)
    assert again.choice_for(KeypointChoice(0, 4, 4, 10, None, None)).rank_radius == 1
