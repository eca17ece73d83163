"""NetVLAD: the network, which loads the official weights from MATLAB.

Arandjelovic, Gronat, Torii, Pajdla, Sivic: NetVLAD: CNN Architecture for Weakly Supervised Place
Recognition, CVPR 2016: VGG-16 up to conv5_3, soft-assigned residuals to 64 cluster centers,
whitening to 4096 numbers.
"""

from collections.abc import Callable

import numpy as np
import scipy.io
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import autocast
from ..errors import InputError
from ..files import file_digest
from .base import DenseMaps, Network
from .registry import register
from .weights import OfficialWeights, load_strictly

__all__ = ["NetVLAD"]

# Of the 3x3 convolutions of VGG-16, stage by stage; each stage but the last ends in a max pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Indices of the layers with weights in the official list, which also counts ReLUs and poolings.
VLAD_LAYER, WHITENING_LAYER = 30, 33


class NetVLADPooling(nn.Module):
    """A map of features -> the summed residuals to each cluster center (D, K)."""

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
    def read(cls, path):
        """The file is that of the NetVLAD project with objects converted to structures, as hloc
        distributes it. It determines the number of clusters and of outputs."""
        try:
            net = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)["net"]
            layers = net.layers
            mean = np.asarray(net.meta.normalization.averageImage)
            centers, outputs = (layers[n].weights[1] for n in (VLAD_LAYER, WHITENING_LAYER))
            with torch.device("meta"):  # the whitening alone takes half a gigabyte: do not copy it
                network = cls(np.shape(centers)[-1], np.size(outputs))
            arrays = {
                name: arrange(np.asarray(layers[number].weights[which], np.float32))
                for name, (number, which, arrange) in _arrange(network).items()
            }
        except Exception as error:  # scipy raises many kinds of exceptions
            raise InputError(
                f"{path}: not weights of NetVLAD ({type(error).__name__}: {error}); expected "
                "VGG16-NetVLAD-Pitts30K.mat, with net.layers and net.meta.normalization"
            ) from error
        arrays["mean"] = mean.reshape(-1, 3)[0].astype(np.float32)
        state = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        load_strictly(network, state, path, assign=True)
        network.weights = file_digest(path)
        return network.eval()

    def maps(self, images: Tensor) -> DenseMaps:
        size = (images.shape[3], images.shape[2])
        return DenseMaps(size, global_descriptor=self.run(images))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], RGB, at least 16x16 -> (B, dim) of unit length."""
        conv5_3 = self.backbone(image * 255 - self.mean[:, None, None])
        with autocast(image.device, "float32"):  # the residuals are small compared with their sums
            return F.normalize(self.whitening(self.pooling(conv5_3.float())), dim=1)


def _arrange(network: NetVLAD) -> dict[str, tuple[int, int, Callable]]:
    """Our names -> the layer in the official list, which of its weights, and what ours are of them.

    MATLAB stores (rows, columns, in, out), and the centers with the opposite sign.
    """
    arranged = {
        "pooling.score_proj.weight": (VLAD_LAYER, 0, np.transpose),
        "pooling.centers": (VLAD_LAYER, 1, np.negative),
        "whitening.weight": (WHITENING_LAYER, 0, np.transpose),
        "whitening.bias": (WHITENING_LAYER, 1, np.asarray),
    }
    for number, layer in enumerate(network.backbone):
        if isinstance(layer, nn.Conv2d):
            arranged[f"backbone.{number}.weight"] = number, 0, lambda w: w.transpose(3, 2, 0, 1)
            arranged[f"backbone.{number}.bias"] = number, 1, np.asarray
    return arranged
