"""The variables of a TensorFlow checkpoint of HF-Net, for comparing with its recorded outputs."""

from collections.abc import Mapping

import numpy as np
import torch

from hfnet_distill.networks.hfnet import LOCAL_BLOCKS, HFNet


def load_variables(network: HFNet, variables: Mapping[str, np.ndarray]) -> None:
    """Load them by name, as ``MobilenetV2/Conv/weights``; those of other branches are left out."""
    state = network.state_dict()
    for name, tensor in state.items():
        source = None if name.endswith("num_batches_tracked") else tensorflow_name(name)
        if source is not None:
            state[name] = torch.from_numpy(from_tensorflow(source, variables[source]))
        elif tensor.is_floating_point():  # HF-Net's cluster memberships have no scale
            state[name] = torch.ones_like(tensor)
    network.load_state_dict(state)


HEADS = {"descriptor_head": "local_head/descriptor", "detector_head": "local_head/detector"}
NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def tensorflow_name(name: str) -> str | None:
    """The name in the checkpoint of one of the network's tensors."""
    first, *rest = name.split(".")
    if first == "stem":
        return "MobilenetV2/Conv/" + leaf_of(rest)
    if first in ("local_blocks", "global_blocks"):
        number = int(rest[0]) + (len(LOCAL_BLOCKS) if first == "global_blocks" else 0)
        scope = f"expanded_conv_{number}" if number else "expanded_conv"
        leaf = leaf_of(rest[2:])
        leaf = "depthwise_weights" if rest[1:3] == ["depthwise", "conv"] else leaf
        return f"MobilenetV2/{scope}/{rest[1]}/{leaf}"
    if first in HEADS:
        if rest[0] == "0":
            return f"{HEADS[first]}/Conv/{leaf_of(rest[1:])}"
        return f"{HEADS[first]}/Conv_1/{'weights' if rest[1] == 'weight' else 'biases'}"
    if first == "projection":
        leaf = "weights" if rest[0] == "weight" else "biases"
        return f"global_head/dimensionality_reduction/{leaf}"
    if rest == ["clusters"]:
        return "global_head/vlad/clusters"
    if rest == ["norm", "weight"]:
        return None
    leaf = "weights" if rest[0] == "memberships" else f"BatchNorm/{NORM[rest[1]]}"
    return f"global_head/vlad/memberships/{leaf}"


def leaf_of(path: list[str]) -> str:
    return "weights" if path[0] == "conv" else f"BatchNorm/{NORM[path[1]]}"


def from_tensorflow(name: str, array: np.ndarray) -> np.ndarray:
    """TensorFlow's layout of a variable -> torch's."""
    if array.ndim == 4:
        order = (2, 3, 0, 1) if name.endswith("depthwise_weights") else (3, 2, 0, 1)
        return np.ascontiguousarray(array.transpose(order))
    if array.ndim == 5:  # the clusters: (1, 1, 1, K, C)
        return array[0, 0, 0]
    return np.ascontiguousarray(array.T) if array.ndim == 2 else array
