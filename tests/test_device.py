"""The device and the precision that names stand for, on GPUs that need not be there."""

import pytest
import torch

from hfnet_distill.device import autocast, choose_device, choose_precision
from hfnet_distill.errors import InputError


@pytest.fixture
def gpus(monkeypatch):
    """Capabilities of the GPUs there are; a test changes them."""
    capabilities = [(7, 5), (9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capabilities[device.index or 0]
    )
    return capabilities


def test_float32_is_float32_on_a_gpu(gpus, monkeypatch):
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "tf32"
    try:
        assert choose_device("auto") == torch.device("cuda")
        assert products.fp32_precision == convolutions.fp32_precision == "ieee"
    finally:
        products.fp32_precision, convolutions.fp32_precision = before


def test_a_gpu_that_is_not_there(gpus):
    with pytest.raises(InputError, match="cuda:2: this machine has 2 CUDA GPUs"):
        choose_device("cuda:2")
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("device", "capability", "frozen", "trained"),
    [
        ("cuda:0", (6, 1), "float32", "float32"),
        ("cuda:0", (7, 5), "float16", "float32"),
        ("cuda:1", (8, 0), "float16", "bfloat16"),
    ],
)
def test_precision_of_the_device_that_is_named(gpus, device, capability, frozen, trained):
    device = torch.device(device)
    gpus[device.index] = capability
    assert choose_precision("auto", device) == frozen
    assert choose_precision("auto", device, training=True) == trained
    assert choose_precision("float32", device) == "float32"


@pytest.mark.parametrize("has_amx", [True, False])
@pytest.mark.parametrize("has_avx512", [True, False])
def test_precision_of_a_processor(monkeypatch, has_amx, has_avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512)
    expected = "bfloat16" if has_amx or has_avx512 else "float32"
    for training in (False, True):
        assert choose_precision("auto", torch.device("cpu"), training=training) == expected


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_products_are_of_that_precision(precision):
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, precision)
