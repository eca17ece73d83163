"""export-onnx, extract-features, live-features: a student leaves the house."""

from pathlib import Path

import click

from ..console import SettingsCommand, shared_options, user_errors

PROFILES = ("sparse", "maps", "opencv", "colmap", "hfnet-slam")
"""Those of ``deployment.onnx``, which takes seconds to import."""
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=SettingsCommand, tables=("predict",), context_settings={"show_default": True})
@click.option("--model", default="default", help="What to export.")
@click.option("--profile", type=click.Choice(PROFILES), default="sparse")
@click.option("--output", type=FILE, required=True, help="The file.")
@click.option("--max-num-keypoints", type=click.IntRange(1), default=1000)
@click.option("--threshold", type=float, help="Lowest score of a keypoint.")
@click.option("--nms-radius", type=int, help="Pixels around a keypoint that stay free of others.")
@click.option("--size", help="opencv: width x height that it resizes to; 640x640 if not given.")
@click.option(
    "--images",
    "folder",
    type=PATH,
    help="Photographs to compare with PyTorch on; those of scikit-image if not given.",
)
@click.option(
    "--int8",
    "calibration",
    type=PATH,
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

    --model lightglue --profile opencv writes what cv2.LightGlueMatcher.create(FILE) of OpenCV 5
    takes, for descriptors of aliked:n16 and its students.
    """
    from ..config import load_settings, parse_size
    from ..console import say
    from ..data.keypoints import KeypointChoice
    from ..networks.registry import checkpoint_path, load, load_checkpoint
    from . import onnx
    from .photographs import photographs_of_sizes

    if model == "lightglue":
        if profile != "opencv":
            raise click.UsageError("--model lightglue: add --profile opencv, the only one it has")
        from ..networks.lightglue import LightGlueMatcher
        from .lightglue import export_lightglue, pairs_of

        pairs = pairs_of(photographs_of_sizes(folder, 1), max_num_keypoints)
        parity = export_lightglue(LightGlueMatcher(device="cpu"), output, pairs)
    else:
        choice = KeypointChoice.of(load_settings(config).predict, max_num_keypoints, **choice_flags)
        network = load(model, device="cpu")
        path = checkpoint_path(model)
        description = load_checkpoint(path)[1] if path.is_file() else {}
        parity = onnx.export_onnx(
            network,
            profile,
            output,
            choice=choice,
            photographs=photographs_of_sizes(folder, network.channels),
            size=None if size is None else parse_size(size),
            licences=description.get("licences"),
            calibration=calibration,
        )
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB; {parity}", quiet=quiet)


@click.command(cls=SettingsCommand, tables=("predict",), context_settings={"show_default": True})
@click.option("--model", default="default", help="What extracts.")
@click.option(
    "--images",
    "source",
    type=PATH,
    required=True,
    help="A folder of photographs, a text file that lists some, or a video.",
)
@click.option("--output", type=PATH, required=True, help="The features file (HDF5).")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["hloc", "dxslam"]),
    default="hloc",
    help="dxslam: --output is a folder, which also gets des/, glb/ and point-txt/.",
)
@click.option("--max-num-keypoints", type=click.IntRange(1), default=2048)
@click.option("--threshold", type=float, help="Lowest score of a keypoint.")
@click.option("--nms-radius", type=int, help="Pixels around a keypoint that stay free of others.")
@click.option(
    "--longest-side",
    type=click.IntRange(0),
    default=1024,
    help="Pixels that larger photographs are resized to for the network; 0 takes all as they are.",
)
@click.option("--upright", is_flag=True, help="Turn photographs as their EXIF orientation says.")
@click.option("--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]))
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes, on a CPU.")
@click.option("--colmap", type=PATH, help="Also write a COLMAP database.")
@click.option("--single-camera", is_flag=True, help="For --colmap: one camera, one lens setting.")
@click.option("--matches", type=PATH, help="Also write matches (HDF5).")
@click.option("--pairs", type=PATH, help="Also write which pairs are matched.")
@click.option(
    "--match-with",
    default="all",
    help="all other images, a number of those most alike by global descriptor, or a list of pairs.",
)
@click.option("--matcher", type=click.Choice(["nearest", "lightglue"]), default="nearest")
@click.option("--ratio", type=click.FloatRange(0, 1), default=0.95)
@click.option("--min-similarity", type=click.FloatRange(-1, 1), default=0.7)
@click.option("--overwrite", is_flag=True, help="Replace an output made with other settings.")
@shared_options
def extract_features(
    model: str,
    source: Path,
    output: Path,
    layout: str,
    max_num_keypoints: int,
    threshold: float | None,
    nms_radius: int | None,
    precision: str | None,
    colmap: Path | None,
    single_camera: bool,
    matches: Path | None,
    pairs: Path | None,
    match_with: str,
    matcher: str,
    ratio: float,
    min_similarity: float,
    device: str | None,
    config: str | None,
    quiet: bool,
    **how,
) -> None:
    """Extract features of photographs or a video, as hloc keeps them.

    A group per image, by its name: keypoints [N, 2] in pixels of the file, centre of the first
    pixel (0, 0), scores [N], descriptors [D, N] float16, image_size, and global_descriptor where
    the model has one. Run again after an interruption, the same command goes on with the next
    image.

    Pairs are matched by mutual nearest neighbours whose cosine is at least --min-similarity and
    whose distance is at most --ratio of that to the second nearest; or by LightGlue, for aliked:n16
    and its students.
    """
    from ..config import load_settings
    from ..data.keypoints import KeypointChoice
    from .extract import extract

    predict = load_settings(config).predict
    choice = KeypointChoice.of(
        predict, max_num_keypoints, threshold=threshold, nms_radius=nms_radius
    )
    features = output if layout == "hloc" else output / "features.h5"
    extract(
        model,
        source,
        features,
        choice=choice,
        device=device or "auto",
        precision=precision or predict.precision,
        quiet=quiet,
        **how,
    )
    if layout == "dxslam":
        from .dxslam import write_dxslam

        write_dxslam(features, output)
    if not (colmap or matches or pairs):
        return
    from . import colmap as matching

    if match_with == "all":
        chosen = matching.all_pairs(features)
    elif match_with.isdecimal():
        chosen = matching.pairs_from_retrieval(features, int(match_with))
    else:
        chosen = matching.read_pairs(Path(match_with), features)
    if pairs:
        matching.write_pairs(pairs, chosen)
    if not (colmap or matches):
        return
    matcher = matching.make_matcher(
        matcher, ratio=ratio, min_similarity=min_similarity, device=device or "auto"
    )
    if matches:
        matching.write_matches(features, chosen, matches, matcher, quiet=quiet)
    if colmap:
        folder = source if source.is_dir() else source.parent
        matching.write_database(
            features, folder, colmap, chosen, matcher, single_camera=single_camera, quiet=quiet
        )


@click.command(context_settings={"show_default": True})
@click.option("--model", default="default", help="What sees.")
@click.option("--source", default="0", help="A camera, a video or a folder.")
@click.option("--output", type=FILE, help="Also write a video, .mp4.")
@click.option("--max-num-keypoints", type=click.IntRange(1), default=500)
@click.option("--longest-side", type=click.IntRange(32), default=640)
@click.option("--limit", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@user_errors
def live_features(
    model: str,
    source: str,
    output: Path | None,
    device: str,
    **how,
) -> None:
    """Watch a network: keypoints, tracks, frames per second, the earlier place that it resembles.

    Keys: space pauses, + and - double and halve the keypoints, q ends. Without a display, --output
    takes the picture's place.
    """
    from ..networks.registry import load
    from .live import show

    show(load(model, device=device), source, output, **how)
