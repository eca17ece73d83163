"""Students as one small file, and the mean of several."""

import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.networks.hfnet import HFNet, HFNetConfig
from hfnet_distill.networks.light import Light, LightConfig
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


def test_shorter_descriptors_are_as_similar(run_command, tmp_path):
    torch.manual_seed(0)
    network = Light(LightConfig(descriptor_dim=128, global_dim=32, clusters=4)).eval()
    head = network.descriptor_head[1]
    with torch.no_grad():  # what the turn may leave out: a bias and words beyond the subspace
        head.bias.zero_()
        inside = torch.linalg.qr(head.weight[:, :, 0, 0])[0]
        network.vlad.words.copy_(network.vlad.words @ inside @ inside.T)
    save_checkpoint(tmp_path / "long.safetensors", network, {})
    paths = tmp_path / "long.safetensors", tmp_path / "short.safetensors"
    run_command(main, *paths, "--descriptor-dim", 64)
    image = torch.rand(1, 1, 64, 96)
    long, short = (load_checkpoint(path)[0](image) for path in paths)
    assert short.descriptor_map.shape[1] == 64
    similarities = [each.descriptor_map[0].flatten(1) for each in (long, short)]
    similarities = [descriptors.mT @ descriptors for descriptors in similarities]
    torch.testing.assert_close(*similarities, atol=2e-3, rtol=0)
    torch.testing.assert_close(short.score_logits, long.score_logits, atol=1e-2, rtol=1e-2)
    assert F.cosine_similarity(short.global_descriptor, long.global_descriptor).item() > 0.99
    message = run_command(main, *paths, "--descriptor-dim", 65, code=1)
    assert "expected 1 to 64" in message


def test_descriptors_that_cannot_be_shortened(students, run_command, tmp_path):
    arguments = students[0], tmp_path / "short.safetensors", "--descriptor-dim", 4
    assert "hfnet: its descriptors cannot be shortened" in run_command(main, *arguments, code=1)
