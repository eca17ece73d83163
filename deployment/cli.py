"""export-onnx, extract-features, live-features: a student leaves the house."""

from pathlib import Path

import click

from ..console import user_errors

PROFILES = ("sparse", "maps", "opencv", "colmap", "hfnet-slam")
"""Those of ``deployment.onnx``, which takes seconds to import."""


@click.command()
@click.option("--model", default="default", show_default=True, help="What to export.")
@click.option("--profile", type=click.Choice(PROFILES), default="sparse", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file."
)
@click.option("--max-num-keypoints", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--threshold", type=float, help="Lowest score of a keypoint.")
@click.option("--nms-radius", type=int, help="Pixels around a keypoint that stay free of others.")
@click.option("--size", help="opencv: width x height that it resizes to; 640x640 if not given.")
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    help="Photographs to compare with PyTorch on; those of scikit-image if not given.",
)
@click.option(
    "--int8",
    "calibration",
    type=click.Path(path_type=Path),
    help="Quantize convolutions to int8, by the range of values that these photographs give.",
)
@click.option("--config", type=click.Path(), help="Settings; pipeline.toml if not given.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@user_errors
def export_onnx(
    model: str,
    profile: str,
    output: Path,
    max_num_keypoints: int,
    size: str | None,
    folder: Path | None,
    calibration: Path | None,
    config: str | None,
    quiet: bool,
    **choice_flags,
) -> None:
    """Write a network as one ONNX file (opset 20), the same as in PyTorch.

    Photographs of five sizes go through both; the file is written only if keypoints, descriptors
    and maps agree. Axes in capitals may vary; C is 1 for a network that sees gray, else 3.

    \b
    profile      input                            outputs
      sparse     image uint8 [1, C, H, W]         keypoints [N, 2], scores [N],
                                                  descriptors [N, D], global_descriptor [G]
      maps       image float32 [B, C, H, W]       score_map [B, H, W],
                 in [0, 1]                        descriptor_map [B, D, H / 8, W / 8],
                                                  global_descriptor [B, G]
      opencv     image float32 [1, 3, 640, 640]   keypoints [1000, 2], descriptors, scores:
                                                  cv2.ALIKED.create(FILE) of OpenCV 5
      colmap     image float32 [1, 3, H, W],      keypoints [1, N, 2], descriptors, scores:
                 max_keypoints, min_score         COLMAP 4's slot for ALIKED
      hfnet-slam image:0 float32 [1, H, W, 1]     scores_dense_nms:0, local_descriptor_map:0,
                 in [0, 255]                      global_descriptor:0
    """
    from ..config import load_settings, parse_size
    from ..console import say
    from ..data.keypoints import KeypointChoice
    from ..networks.registry import load
    from . import onnx
    from .photographs import photographs_of_sizes

    choice = KeypointChoice.of(load_settings(config).predict, max_num_keypoints, **choice_flags)
    network = load(model, device="cpu")
    parity = onnx.export_onnx(
        network,
        profile,
        output,
        choice=choice,
        photographs=photographs_of_sizes(folder, network.channels),
        size=None if size is None else parse_size(size),
        calibration=calibration,
    )
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB; {parity}", quiet=quiet)
