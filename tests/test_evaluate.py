"""evaluate: every kind of model, the report, what is refused."""

import json
import re
import shutil

import cv2
import h5py
import numpy as np
import pytest
import torch

from hfnet_distill.data.geometry import resize_points
from hfnet_distill.data.images import to_tensor
from hfnet_distill.evaluation.cli import evaluate
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.datasets.rendered import render_sequences
from hfnet_distill.evaluation.views import load_view
from hfnet_distill.networks.registry import load

COLUMNS = PROTOCOLS["hfnet"].columns


@pytest.fixture(scope="session")
def sequences(tmp_path_factory):
    """Two rendered sequences of a textured photograph, in the HPatches layout."""
    folder = tmp_path_factory.mktemp("judge")
    rng = np.random.default_rng(0)
    image = sum(
        cv2.resize(rng.uniform(0, 80, (side, side, 3)), (400, 300), interpolation=cv2.INTER_NEAREST)
        for side in (6, 20, 50)
    )
    cv2.imwrite(str(folder / "photograph.png"), image.clip(0, 255).astype(np.uint8))
    render_sequences(
        [folder / "photograph.png"], folder / "sequences", seed=1, count=2, size=(240, 180)
    )
    return folder / "sequences"


def write_features(path, root, *, leave_out=None, transpose=False):
    """SIFT's features of every image in hloc's layout, in pixels of the files."""
    sift = cv2.SIFT_create(enable_precise_upscale=True)
    with h5py.File(path, "w") as file:
        for name, image_path in HPatches(root).images.items():
            if name == leave_out:
                continue
            image = load_view(image_path, longest=0).image
            found, descriptors = sift.detectAndCompute(image, None)
            group = file.create_group(name)
            group["keypoints"] = np.array([point.pt for point in found], np.float16)
            group["scores"] = np.array([point.response for point in found], np.float32)
            group["descriptors"] = descriptors if transpose else descriptors.T
    return path


def judge(run_command, root, output, *models, code=0, arguments=()):
    return run_command(
        evaluate,
        *("--dataset", "hpatches", "--root", root, "--output", output, "--quiet"),
        *(part for model in models for part in ("--model", model)),
        *("--device", "cpu", *arguments),
        code=code,
    )


def test_the_report(run_command, sequences, tmp_path):
    features = write_features(tmp_path / "sift.h5", sequences)
    models = ["sift", "orb", "superpoint", "default", f"features:{features}"]
    output = judge(run_command, sequences, tmp_path / "report", *models)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"] == "hfnet"
    assert report["dataset"] == {
        "name": "hpatches",
        "root": str(sequences),
        "sequences": 2,
        "pairs": 10,
    }
    rows = {(row["model"], row["split"]): row for row in report["results"]}
    assert list(rows) == [(m, s) for m in models for s in ("all", "illumination", "viewpoint")]
    for row in rows.values():
        assert row["num_keypoints"] == 300
        assert all(row[c.key] is None or 0 <= row[c.key] <= 3 for c in COLUMNS)
    assert rows["sift", "all"]["homography_accuracy"] >= 0.8
    # Weights that a seed made know nothing of matching.
    for key in ("matching_score", "descriptor_ap", "homography_accuracy"):
        assert rows["sift", "all"][key] > 2 * rows["superpoint", "all"][key]
    assert (
        rows["sift", "illumination"]["repeatability"] > rows["superpoint", "all"]["repeatability"]
    )
    assert "| all | MS | Homography | mAP (Desc) | MLE | Rep | mAP (Det) |" in output
    page = (tmp_path / "report" / "index.html").read_text()
    # The best and the worst pair of each sequence by each model, and one panel of keypoints.
    assert page.count("<img") == 4 * len(models) + 1
    assert page.count("<svg") == 2
    assert not re.search("https?:|@import", page)  # nothing is fetched from elsewhere
    assert re.findall(r"sha256:[0-9a-f]{64}", page)


def test_the_matching_protocol(run_command, sequences, tmp_path):
    arguments = ("--protocol", "matching", "--num-features", 500)
    output = judge(run_command, sequences, tmp_path / "report", "sift", "orb", arguments=arguments)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"] == "matching"
    sift = report["results"][0]
    assert sift["num_keypoints"] == 500
    for estimator in ("ransac", "magsac", "poselib"):
        shares = [sift["homography"][estimator][f"accuracy@{t}px"] for t in (1, 3, 5)]
        assert shares == sorted(shares)
        assert shares[2] >= 0.8
        assert 0 < sift["homography"][estimator]["auc@5px"] < shares[2]
    assert sift["mean_matching_accuracy"]["@10px"] > 0.5
    assert "| all | RANSAC 1 px |" in output


def test_the_silk_protocol(run_command, sequences, tmp_path):
    output = judge(
        run_command, sequences, tmp_path / "report", "orb", arguments=("--protocol", "silk")
    )
    assert "| all | Rep 1 px | Rep 3 px | Homography 1 px |" in output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    settings = report["settings"]
    assert (settings["shorter_side"], settings["longest_side"]) == (480, None)
    assert (settings["num_keypoints"], settings["nms_radius"]) == (10000, 0)
    row = report["results"][0]
    assert row["mean_keypoints"] > 300  # what pipeline.toml would allow
    assert 0.1 < row["repeatability"]["@1px"] < row["repeatability"]["@3px"] <= 1
    assert row["intervals"]["homography.ransac.auc@3px"][0] >= 0
    arguments = ("--protocol", "silk", "--num-features", 50, "--nms-radius", 4)
    judge(run_command, sequences, tmp_path / "few", "orb", arguments=arguments)
    settings = json.loads((tmp_path / "few" / "report.json").read_text())["settings"]
    assert (settings["num_keypoints"], settings["nms_radius"]) == (50, 4)


def test_detectors_with_the_descriptors_of_others(run_command, sequences, tmp_path):
    models = ["harris", "harris+default", "fast+superpoint", "superpoint"]
    judge(run_command, sequences, tmp_path / "report", *models)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = {row["model"]: row for row in report["results"] if row["split"] == "all"}
    assert list(rows) == models
    assert rows["harris"]["matching_score"] is None
    assert rows["harris"]["repeatability"] == rows["harris+default"]["repeatability"]
    assert rows["harris+default"]["matching_score"] > 0.2
    assert rows["fast+superpoint"]["mean_keypoints"] > 100
    origins = {model["model"]: model["origin"] for model in report["models"]}
    assert origins["fast+superpoint"].endswith(origins["superpoint"])
    output = judge(run_command, sequences, tmp_path / "none", "harris+orb", code=1)
    assert "orb describes only keypoints of its own" in output


def test_descriptors_at_the_keypoints_of_others_are_those_of_ones_own(sequences):
    """What a model says of its own keypoints, it says of them as well when another finds them."""
    view = load_view(next(iter(HPatches(sequences).images.values())))
    image = to_tensor(view.image, 1)[None]
    for model in ("default", "silk"):
        network = load(model, device="cpu")
        found = network.extract(view.image, max_num_keypoints=20)
        with torch.inference_mode():
            maps = network.maps(image)
            described = network.describe(maps, 0, torch.from_numpy(found.keypoints))
            corner = network.describe(maps, 0, torch.zeros(1, 2))  # outside of SiLK's map
        np.testing.assert_allclose(described, found.descriptors, atol=1e-6)
        assert np.linalg.norm(corner) == pytest.approx(1, abs=1e-5)


def test_two_checkpoints_of_a_teacher(run_command, sequences, tmp_path, synthetic_weights):
    weights = tmp_path / "other.npz"
    shutil.copy(synthetic_weights / "superpoint_v1.npz", weights)
    models = ["superpoint", f"superpoint:{weights}", f"fast+superpoint:{weights}"]
    judge(run_command, sequences, tmp_path / "report", *models)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [model["model"] for model in report["models"]] == models
    output = judge(run_command, sequences, tmp_path / "none", "silk:none.safetensors", code=1)
    assert "none.safetensors" in output


def test_akaze_has_binary_descriptors_where_opencv_has_it(sequences):
    if not hasattr(cv2, "AKAZE_create"):
        with pytest.raises(ValueError, match=r"--model akaze: this OpenCV .* pip install"):
            load("akaze")
        return
    view = load_view(next(iter(HPatches(sequences).images.values())))
    found = load("akaze").extract(view.image, max_num_keypoints=50)
    assert found.descriptors.dtype == np.bool_
    assert 0 < len(found.keypoints) <= 50


def test_comparing_two_models(run_command, sequences, tmp_path):
    arguments = ("--compare", "sift", "orb")
    output = judge(run_command, sequences, tmp_path / "report", "sift", "orb", arguments=arguments)
    assert "| all: sift minus orb | difference | 95 % interval | p | better |" in output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (comparison,) = report["comparisons"]
    rows = {(row["split"], row["key"]): row for row in comparison["rows"]}
    table = {row["model"]: row for row in report["results"] if row["split"] == "all"}
    for column in COLUMNS:
        row = rows["all", column.key]
        expected = table["sift"][column.key] - table["orb"][column.key]
        assert row["difference"] == pytest.approx(expected, abs=1e-9)
        assert row["sequences"] == 2
        assert row["better"] is None  # two sequences say nothing for certain
        assert comparison["values"][column.key].keys() == {p.name for p in sequences.iterdir()}
    assert "| all: sift minus orb |" in (tmp_path / "report" / "table.md").read_text()
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == 2 + len(COLUMNS)
    output = judge(run_command, sequences, tmp_path / "none", "orb", code=2, arguments=arguments)
    assert "--compare sift: not among the models" in output


def test_places(run_command, tmp_path):
    """Four places, one seen again by each query; the third query's descriptor is of another."""
    rng = np.random.default_rng(0)
    places = np.eye(4, dtype=np.float32)
    with h5py.File(tmp_path / "global.h5", "w") as file:
        for number in range(4):
            for folder in ("database", "queries"):
                (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
                name = f"{folder}/{number}.png"
                cv2.imwrite(str(tmp_path / "root" / name), rng.integers(0, 255, (30, 40), np.uint8))
                shown = 0 if name == "queries/2.png" else number
                file.create_group(name)["global_descriptor"] = places[shown]
    rows = "".join(f"{number},{number}\n" for number in range(4))
    (tmp_path / "root" / "ground_truth.csv").write_text("query,positives\n" + rows)
    output = run_command(
        evaluate,
        *("--dataset", "places", "--root", tmp_path / "root", "--output", tmp_path / "report"),
        *("--model", f"features:{tmp_path / 'global.h5'}", "--quiet"),
    )
    assert "| all | R@1 | R@5 | R@10 | R@20 | s a query | index kB |" in output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["dataset"]["queries"] == 4
    (row,) = report["results"]
    assert (row["recall@1"], row["recall@5"], row["index_bytes"]) == (0.75, 1, 64)
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<img") == 4
    assert "4 database, 4 queries" in page


def test_features_from_a_file_are_scaled_to_the_view(sequences, tmp_path):
    path = write_features(tmp_path / "sift.h5", sequences)
    name, image = next(iter(HPatches(sequences).images.items()))
    view = load_view(image, longest=120)
    found = FeatureFile(path, 50).extract(view, name)
    with h5py.File(path) as file:
        scores, points = file[name]["scores"][:], file[name]["keypoints"][:]
    best = np.argsort(-scores, kind="stable")[:50]
    expected = resize_points(points[best], (240, 180), (120, 90))
    np.testing.assert_allclose(found.keypoints, expected)
    assert found.image_size == (120, 90)
    assert found.descriptors.shape == (50, 128)


def test_one_split(run_command, sequences, tmp_path):
    arguments = ("--split", "viewpoint")
    judge(run_command, sequences, tmp_path / "report", "orb", arguments=arguments)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["split"] for row in report["results"]] == ["viewpoint"]
    assert report["dataset"]["pairs"] == 5


def test_the_same_command_gives_the_same_numbers(run_command, sequences, tmp_path):
    reports = []
    for output in ("first", "second"):
        judge(run_command, sequences, tmp_path / output, "orb")
        reports.append(json.loads((tmp_path / output / "report.json").read_text())["results"])
    assert reports[0] == reports[1]


def test_rendering_a_set_of_ones_own(run_command, photographs, tmp_path):
    run_command(
        evaluate,
        *("--root", tmp_path / "own", "--render", photographs, "--sequences", 2, "--quiet"),
    )
    assert len(HPatches(tmp_path / "own").pairs) == 10


def test_the_best_of_each_column_is_bold():
    row = {"split": "all", **{column.key: 0.5 for column in COLUMNS}}
    better = {**row, "matching_score": 0.75, "localization_error": 0.25, "detector_ap": np.nan}
    rows = [{"model": "a", **row}, {"model": "b", **better}]
    lines = markdown_table(rows, COLUMNS, "all").splitlines()
    assert lines[2] == "| a | 0.500 | **0.500** | **0.500** | 0.500 | **0.500** | **0.500** |"
    assert lines[3] == "| b | **0.750** | **0.500** | **0.500** | **0.250** | **0.500** | – |"


def test_an_unknown_model(run_command, sequences, tmp_path):
    output = judge(run_command, sequences, tmp_path / "report", "surf", code=1)
    assert "--model surf: neither a run folder nor one of default, netvlad, sift, silk" in output


def test_a_folder_that_is_no_run(run_command, sequences, tmp_path):
    output = judge(run_command, sequences, tmp_path / "report", tmp_path, code=1)
    assert "best.safetensors: no such checkpoint" in output


def test_a_features_file_that_lacks_an_image(run_command, sequences, tmp_path):
    name = next(iter(HPatches(sequences).images))
    path = write_features(tmp_path / "sift.h5", sequences, leave_out=name)
    output = judge(run_command, sequences, tmp_path / "report", f"features:{path}", code=1)
    assert f"has no features of image {name}" in output


def test_a_features_file_of_another_layout(run_command, sequences, tmp_path):
    path = write_features(tmp_path / "sift.h5", sequences, transpose=True)
    output = judge(run_command, sequences, tmp_path / "report", f"features:{path}", code=1)
    assert "expected (N, 2), (N,) and (D, N)" in output
    path.write_text("no HDF5")
    output = judge(run_command, sequences, tmp_path / "report", f"features:{path}", code=1)
    assert "not an HDF5 file" in output


def test_a_homography_that_is_not_3x3(run_command, sequences, tmp_path):
    shutil.copytree(sequences, tmp_path / "sequences")
    folder = next((tmp_path / "sequences").iterdir())
    (folder / "H_1_3").write_text("1 0 0\n0 1 0\n")
    output = judge(run_command, tmp_path / "sequences", tmp_path / "report", "orb", code=1)
    assert "H_1_3: found numbers of shape (2, 3)" in output


def test_missing_flags(run_command, sequences, tmp_path):
    output = run_command(evaluate, "--root", sequences, code=2)
    assert "name at least one --model" in output
    output = run_command(evaluate, "--root", sequences, "--model", "orb", code=2)
    assert "name a folder for the report with --output" in output
    output = judge(run_command, tmp_path / "none", tmp_path / "report", "orb", code=1)
    assert "expected the root of HPatches" in output
