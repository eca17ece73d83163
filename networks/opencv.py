"""OpenCV's keypoints and descriptors: baselines that need no weights.

They detect keypoints in their own way; these are suppressed and ranked like those of every other
network. ``DETECTOR+DESCRIBER`` combines a detector with the descriptors of another network.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.features import Features
from ..data.keypoints import KeypointChoice, thin_keypoints
from ..errors import InputError
from .base import Network
from .registry import register

__all__ = ["AKAZE", "FAST", "ORB", "DetectorWithDescriber", "Harris", "RootSIFT"]


class OpenCVNetwork(Network):
    """Base of OpenCV's methods, which run image by image on the CPU and give no maps."""

    usual_fields = ("sparse",)
    weights = f"opencv {cv2.__version__}"

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "OpenCVNetwork":
        if source is not None:
            raise InputError(f"{cls.name}:{source}: {cls.name} has no weights; name it alone")
        return cls()

    def features(self, images: Tensor, choice: KeypointChoice) -> list[Features]:
        pixels = (images[:, 0] * 255).round().byte().cpu().numpy()
        return [self.of_image(image, choice) for image in pixels]

    def of_image(self, image: np.ndarray, choice: KeypointChoice) -> Features:
        """The features of a gray image (H, W) uint8."""
        detector = self.create(choice)
        if detector.descriptorSize():
            found, descriptors = detector.detectAndCompute(image, None)
        else:
            found, descriptors = detector.detect(image), None
        size = (image.shape[1], image.shape[0])
        keypoints = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
        scores = np.array([point.response for point in found], np.float32)
        kept = thin_keypoints(keypoints, scores, size, choice)
        if detector.descriptorSize():
            none = np.zeros((0, detector.descriptorSize()), np.uint8)
            descriptors = self.convert(none if descriptors is None else descriptors[kept])
        return Features(size, keypoints[kept], scores[kept], descriptors)

    def create(self, choice: KeypointChoice) -> cv2.Feature2D:
        """OpenCV's detector."""
        raise NotImplementedError

    @staticmethod
    def convert(descriptors: np.ndarray) -> np.ndarray:
        """OpenCV's descriptors (N, W) as ours (N, D); of those that are bits, (N, 8 * W) bool."""
        return np.unpackbits(descriptors, axis=1).astype(bool)


@register("sift")
class RootSIFT(OpenCVNetwork):
    """Lowe: Distinctive Image Features from Scale-Invariant Keypoints, IJCV 2004; Arandjelovic and
    Zisserman: Three Things Everyone Should Know to Improve Object Retrieval, CVPR 2012."""

    descriptor_dim = 128

    def create(self, choice: KeypointChoice) -> cv2.Feature2D:
        # Without it OpenCV's keypoints are off by a quarter of a pixel.
        return cv2.SIFT_create(enable_precise_upscale=True)

    @staticmethod
    def convert(descriptors: np.ndarray) -> np.ndarray:
        """The square root of each as a distribution, of unit length."""
        total = descriptors.sum(axis=1, keepdims=True)
        return np.sqrt(descriptors / np.maximum(total, 1e-12)).astype(np.float32)


@register("orb")
class ORB(OpenCVNetwork):
    """Rublee et al.: ORB: An Efficient Alternative to SIFT or SURF, ICCV 2011."""

    def create(self, choice: KeypointChoice) -> cv2.Feature2D:
        # Suppression removes most of its clustered keypoints, so it starts from many more.
        return cv2.ORB_create(nfeatures=10 * choice.max_num_keypoints)


@register("akaze")
class AKAZE(OpenCVNetwork):
    """Alcantarilla, Nuevo, Bartoli: Fast Explicit Diffusion for Accelerated Features, BMVC 2013."""

    THRESHOLD = 1e-4
    """A tenth of OpenCV's default, so that there are enough keypoints to choose from."""

    def __init__(self):
        super().__init__()
        homes = (cv2, getattr(cv2, "xfeatures2d", None))
        self.home = next((home for home in homes if hasattr(home, "AKAZE_create")), None)
        if self.home is None:
            raise InputError(
                f"--model akaze: this OpenCV {cv2.__version__} comes without it; pip install "
                '"opencv-python<5", or opencv-contrib-python in its place'
            )

    def create(self, choice: KeypointChoice) -> cv2.Feature2D:
        return self.home.AKAZE_create(threshold=self.THRESHOLD)


@register("harris")
class Harris(OpenCVNetwork):
    """Where Harris' response is high: Harris and Stephens, Alvey Vision Conference, 1988.

    Windows of 4x4 pixels and k = 0.04, as in the comparisons of SuperPoint's and HF-Net's papers.
    """

    def of_image(self, image: np.ndarray, choice: KeypointChoice) -> Features:
        response = torch.from_numpy(cv2.cornerHarris(image, blockSize=4, ksize=3, k=0.04))
        ((keypoints, scores),) = self.choice_for(choice)(response[None])
        return Features((image.shape[1], image.shape[0]), keypoints.numpy(), scores.numpy())


@register("fast")
class FAST(OpenCVNetwork):
    """Rosten and Drummond: Machine Learning for High-Speed Corner Detection, ECCV 2006."""

    THRESHOLD = 10
    """Gray levels by which the pixels of the circle differ from its center."""

    def create(self, choice: KeypointChoice) -> cv2.Feature2D:
        return cv2.FastFeatureDetector_create(self.THRESHOLD)


class DetectorWithDescriber(Network):
    """The keypoints of one network with the descriptors of another.

    Raises:
        InputError: a describer without a descriptor for every position of an image.
    """

    usual_fields = ("sparse",)

    def __init__(self, detector: Network, describer: Network):
        super().__init__()
        if not describer.describes_given_keypoints:
            raise InputError(
                f"--model {detector.name}+{describer.name}: {describer.name} describes only "
                "keypoints of its own; expected superpoint, silk, aliked or a student behind the +"
            )
        self.detector, self.describer = detector.for_inference(), describer.for_inference()
        self.channels = max(detector.channels, describer.channels)
        self.descriptor_dim = describer.descriptor_dim
        self.name = f"{detector.name}+{describer.name}"
        self.weights = f"{detector.weights}+{describer.weights}"

    @property
    def origin(self) -> str:
        return f"{self.detector.origin}, {self.describer.origin}"

    @torch.inference_mode()
    def features(self, images: Tensor, choice: KeypointChoice) -> list[Features]:
        self.detector.precision = self.describer.precision = self.precision
        maps = self.describer.maps(_in_channels(images, self.describer.channels))
        features = []
        for row, (keypoints, scores) in enumerate(self._detect(images, choice)):
            descriptors = self.describer.describe(maps, row, keypoints)
            arrays = (part.cpu().numpy() for part in (keypoints, scores, descriptors))
            features.append(Features(maps.image_size, *arrays))
        return features

    def _detect(self, images: Tensor, choice: KeypointChoice) -> list[tuple[Tensor, Tensor]]:
        detector = self.detector
        images = _in_channels(images, detector.channels)
        if detector.has_maps:
            return detector.detect(detector.maps(images), detector.choice_for(choice))
        found = detector.features(images, choice)
        return [(torch.from_numpy(f.keypoints), torch.from_numpy(f.scores)) for f in found]


def _in_channels(images: Tensor, channels: int) -> Tensor:
    """A batch (B, 1 or 3, H, W), gray where one channel is wanted of three."""
    if images.shape[1] == channels:
        return images
    shares = images.new_tensor([0.299, 0.587, 0.114])  # as OpenCV reads a photograph as gray
    return (images * shares[:, None, None]).sum(1, keepdim=True)
