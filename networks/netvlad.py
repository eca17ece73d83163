"""NetVLAD: the network, which loads the official weights from MATLAB.

Arandjelovic, Gronat, Torii, Pajdla, Sivic: NetVLAD: CNN Architecture for Weakly Supervised Place
Recognition, CVPR 2016: VGG-16 up to conv5_3, soft-assigned residuals to 64 cluster centers,
whitening to 4096 numbers.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.io
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import autocast
from ..errors import InputError
from .base import DenseMaps, Network
from .registry import file_digest, register
from .weights import OfficialWeights, find_weights

__all__ = ["NetVLAD", "NetVLADPooling", "load_netvlad"]

# Of the 3x3 convolutions of VGG-16, stage by stage; each stage but the last ends in a max pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Indices of the layers with weights in the official list, which also counts ReLUs and poolings.
VLAD_LAYER, WHITENING_LAYER = 30, 33


class NetVLADPooling(nn.Module):
    """A map of features -> the summed residuals to each cluster center.

    Attributes:
        score_proj: (K, D) features of unit length -> the logits of the clusters.
        centers: (D, K).
    """

    def __init__(self, channels: int, clusters: int):
        super().__init__()
        self.score_proj = nn.Linear(channels, clusters, bias=False)
        self.centers = nn.Parameter(torch.zeros(channels, clusters))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D * K) of unit length; cluster k of channel d at ``d * K + k``."""
        features = F.normalize(features.flatten(2), dim=1)
        shares = self.score_proj(features.transpose(1, 2)).softmax(dim=2)
        # sum(a (x - c)) = sum(a x) - c sum(a): no (B, K, D, N) in memory.
        residuals = features @ shares - self.centers * shares.sum(dim=1, keepdim=True)
        residuals = F.normalize(residuals, dim=1)
        return F.normalize(residuals.flatten(1), dim=1)


@register("netvlad")
class NetVLAD(Network):
    """Color image -> global descriptor.

    Attributes:
        backbone: VGG-16 up to conv5_3, without its ReLU.
        mean: (3,), red, green and blue in [0, 255], subtracted from the image.
    """

    channels = 3
    usual_fields = ("global_descriptor",)
    official = OfficialWeights(
        model="NetVLAD",
        file="VGG16-NetVLAD-Pitts30K.mat",
        url="https://cvg-data.inf.ethz.ch/hloc/netvlad/Pitts30K_struct.mat",
        # As published by two projects that use this file; its authors publish none.
        digest="sha256:a67d9d897d3b7942f206478e3a22a4c4c9653172ae2447041d35f6cb278fdc67",
        license="not stated by its authors; 0.5 GB",
    )

    def __init__(self, clusters: int = 64, dim: int = 4096):
        super().__init__()
        self.global_dim = dim
        layers, before = [], 3
        for stage in STAGES:
            for after in stage:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.backbone = nn.Sequential(*layers[:-2])
        self.pooling = NetVLADPooling(before, clusters)
        self.whitening = nn.Linear(before * clusters, dim)
        self.register_buffer("mean", torch.zeros(3))

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "NetVLAD":
        return load_netvlad(find_weights(cls.official, source or weights))

    def maps(self, images: Tensor) -> DenseMaps:
        size = (images.shape[3], images.shape[2])
        return DenseMaps(size, global_descriptor=self.run(images))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], RGB, at least 16x16 -> (B, dim) of unit length."""
        conv5_3 = self.backbone(image * 255 - self.mean[:, None, None])
        with autocast(image.device, "float32"):  # the residuals are small compared with their sums
            return F.normalize(self.whitening(self.pooling(conv5_3.float())), dim=1)


def load_netvlad(path: str | Path) -> NetVLAD:
    """The network with the weights of ``VGG16-NetVLAD-Pitts30K.mat``.

    The file is that of the NetVLAD project with objects converted to structures, as hloc
    distributes it. It determines the number of clusters and of outputs.

    Raises:
        InputError: not such a file; says what is missing or of another shape.
    """
    path = Path(path)
    try:
        net = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)["net"]
        layers = net.layers
        mean = np.asarray(net.meta.normalization.averageImage)
        centers = np.asarray(layers[VLAD_LAYER].weights[1])
        outputs = np.asarray(layers[WHITENING_LAYER].weights[1])
    except Exception as error:  # scipy raises many kinds of exceptions
        raise InputError(
            f"{path}: not weights of NetVLAD ({type(error).__name__}: {error}); expected "
            "VGG16-NetVLAD-Pitts30K.mat, with net.layers and net.meta.normalization"
        ) from error
    with torch.device("meta"):  # the whitening alone takes half a gigabyte: do not copy it
        network = NetVLAD(centers.shape[-1], outputs.size)
    state = _read_state(network, layers, path)
    state["mean"] = torch.from_numpy(mean.reshape(-1, 3)[0].astype(np.float32))
    network.load_state_dict(state, assign=True)
    network.weights = file_digest(path)
    return network.eval()


def _read_state(network: NetVLAD, layers: list[SimpleNamespace], path: Path) -> dict[str, Tensor]:
    """The official tensors under our names, in torch's order of axes."""
    # MATLAB stores (rows, columns, in, out), and the centers with the opposite sign.
    found = {}
    for number, layer in enumerate(network.backbone):
        if isinstance(layer, nn.Conv2d):
            name = f"backbone.{number}"
            found[f"{name}.weight"] = number, 0, lambda w: w.transpose(3, 2, 0, 1)
            found[f"{name}.bias"] = number, 1, lambda w: w
    found["pooling.score_proj.weight"] = VLAD_LAYER, 0, np.transpose
    found["pooling.centers"] = VLAD_LAYER, 1, np.negative
    found["whitening.weight"] = WHITENING_LAYER, 0, np.transpose
    found["whitening.bias"] = WHITENING_LAYER, 1, lambda w: w

    state, wanted = {}, network.state_dict()
    for name, (number, which, arrange) in found.items():
        where = f"{path}: not weights of NetVLAD: net.layers{{{number + 1}}}.weights{{{which + 1}}}"
        try:
            array = np.asarray(layers[number].weights[which], np.float32)
            array = np.ascontiguousarray(arrange(array))
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{where} is missing or no array ({error})") from error
        if array.shape != tuple(wanted[name].shape):
            raise InputError(
                f"{where} gives {name} the shape {array.shape}, "
                f"expected {tuple(wanted[name].shape)}"
            )
        state[name] = torch.from_numpy(array)
    return state
