"""evaluate: every kind of model, features that are kept, the report, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from hfnet_distill.config import load_settings, override
from hfnet_distill.data.features import read_features
from hfnet_distill.data.geometry import resize_points
from hfnet_distill.data.images import to_tensor
from hfnet_distill.errors import InputError
from hfnet_distill.evaluation.cli import evaluate
from hfnet_distill.evaluation.datasets import register_dataset
from hfnet_distill.evaluation.datasets.base import HomographyDataset, HomographyPair
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.datasets.rendered import render_sequences
from hfnet_distill.evaluation.evaluate import evaluate as evaluate_function
from hfnet_distill.evaluation.features import (
    FeaturesOfOthers,
    NetworkFeatures,
    file_name,
    load_view,
)
from hfnet_distill.evaluation.intervals import mean_statistic
from hfnet_distill.evaluation.report.tables import Column, results_table
from hfnet_distill.evaluation.tasks import register_task
from hfnet_distill.evaluation.tasks.base import PairTask
from hfnet_distill.evaluation.tasks.hfnet import HFNet
from hfnet_distill.networks.registry import load

COLUMNS = HFNet.columns


@pytest.fixture(scope="session")
def sequences(tmp_path_factory):
    """Two rendered sequences of a textured photograph, in the HPatches layout."""
    folder = tmp_path_factory.mktemp("evaluate")
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


def write_features(path, root, *, leave_out=None):
    """SIFT's features of every image in hloc's layout, in pixels of the files."""
    sift = cv2.SIFT_create(enable_precise_upscale=True)
    with h5py.File(path, "w") as file:
        for name, image_path in HPatches(root).images.items():
            if name == leave_out:
                continue
            image = load_view(image_path, longest_side=0).image
            found, descriptors = sift.detectAndCompute(image, None)
            group = file.create_group(name)
            group["keypoints"] = np.array([point.pt for point in found], np.float16)
            group["scores"] = np.array([point.response for point in found], np.float32)
            group["descriptors"] = descriptors.T
    return path


def run(run_command, root, output, *models, code=0, arguments=()):
    """The command, with settings that do not enlarge the photographs."""
    config = root.parent / "small.toml"
    shipped = (Path(__file__).parents[1] / "pipeline.toml").read_text()
    config.write_text(shipped.replace("longest_side = 640", "longest_side = 240"))
    return run_command(
        evaluate,
        *("--dataset", "hpatches", "--root", root, "--output", output, "--quiet"),
        *(part for model in models for part in ("--model", model)),
        *("--device", "cpu", "--config", config, *arguments),
        code=code,
    )


def test_the_report(run_command, sequences, tmp_path):
    features = write_features(tmp_path / "sift.h5", sequences)
    models = ["sift", "orb", "superpoint", "default", f"features:{features}"]
    output = run(run_command, sequences, tmp_path / "report", *models)
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
        assert rows["sift", "all"][key] > 1.3 * rows["superpoint", "all"][key]
    assert "| all | MS | Homography | mAP (Desc) | MLE | Rep | mAP (Det) |" in output
    page = (tmp_path / "report" / "index.html").read_text()
    # The best and the worst pair of each sequence by each model, and one panel of keypoints.
    assert page.count("<img") == 4 * len(models) + 1
    assert page.count("<svg") == 2
    assert not re.search("https?:|@import", page)  # nothing is fetched from elsewhere
    assert re.findall(r"sha256:[0-9a-f]{64}", page)


def test_the_matching_protocol(run_command, sequences, tmp_path):
    arguments = ("--protocol", "matching", "--num-features", 500)
    output = run(run_command, sequences, tmp_path / "report", "sift", "orb", arguments=arguments)
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
    output = run(
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
    run(run_command, sequences, tmp_path / "few", "orb", arguments=arguments)
    settings = json.loads((tmp_path / "few" / "report.json").read_text())["settings"]
    assert (settings["num_keypoints"], settings["nms_radius"]) == (50, 4)


def test_detectors_with_the_descriptors_of_others(run_command, sequences, tmp_path):
    models = ["harris", "harris+default", "fast+superpoint", "superpoint"]
    run(run_command, sequences, tmp_path / "report", *models)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = {row["model"]: row for row in report["results"] if row["split"] == "all"}
    assert list(rows) == models
    assert rows["harris"]["matching_score"] is None
    assert rows["harris"]["repeatability"] == rows["harris+default"]["repeatability"]
    assert rows["harris+default"]["matching_score"] > 0.2
    assert rows["fast+superpoint"]["mean_keypoints"] > 100
    origins = {model["model"]: model["origin"] for model in report["models"]}
    assert origins["fast+superpoint"].endswith(origins["superpoint"])
    output = run(run_command, sequences, tmp_path / "none", "harris+orb", code=1)
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
    run(run_command, sequences, tmp_path / "report", *models)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [model["model"] for model in report["models"]] == models
    output = run(run_command, sequences, tmp_path / "none", "silk:none.safetensors", code=1)
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
    output = run(run_command, sequences, tmp_path / "report", "sift", "orb", arguments=arguments)
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
    output = run(run_command, sequences, tmp_path / "none", "orb", code=1, arguments=arguments)
    assert "--compare sift: not among the models" in output


def test_retrieval(run_command, tmp_path):
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
    view = load_view(image, longest_side=120)
    found = FeaturesOfOthers(path, 50).extract(view, name)
    with h5py.File(path) as file:
        scores, points = file[name]["scores"][:], file[name]["keypoints"][:]
    best = np.argsort(-scores, kind="stable")[:50]
    expected = resize_points(points[best], (240, 180), (120, 90))
    np.testing.assert_allclose(found.keypoints, expected)
    assert found.image_size == (120, 90)
    assert found.descriptors.shape == (50, 128)


def test_one_split(run_command, sequences, tmp_path):
    arguments = ("--split", "viewpoint")
    run(run_command, sequences, tmp_path / "report", "orb", arguments=arguments)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["split"] for row in report["results"]] == ["viewpoint"]
    assert report["dataset"]["pairs"] == 5


def test_the_same_command_gives_the_same_numbers(run_command, sequences, tmp_path):
    reports = []
    for output in ("first", "second"):
        run(run_command, sequences, tmp_path / output, "orb")
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
    lines = results_table(rows, COLUMNS, "all").splitlines()
    assert lines[2] == "| a | 0.500 | **0.500** | **0.500** | 0.500 | **0.500** | **0.500** |"
    assert lines[3] == "| b | **0.750** | **0.500** | **0.500** | **0.250** | **0.500** | – |"


def test_an_unknown_model(run_command, sequences, tmp_path):
    output = run(run_command, sequences, tmp_path / "report", "surf", code=1)
    assert "model surf: neither a run folder, a checkpoint nor one of" in output


def test_a_folder_that_is_no_run(run_command, sequences, tmp_path):
    output = run(run_command, sequences, tmp_path / "report", tmp_path, code=1)
    assert "neither a run folder, a checkpoint nor one of" in output


def test_a_features_file_that_lacks_an_image(run_command, sequences, tmp_path):
    name = next(iter(HPatches(sequences).images))
    path = write_features(tmp_path / "sift.h5", sequences, leave_out=name)
    output = run(run_command, sequences, tmp_path / "report", f"features:{path}", code=1)
    assert f"image {name} has no features; there is" in output


def test_a_features_file_that_is_none(run_command, sequences, tmp_path):
    (path := tmp_path / "sift.h5").write_text("no HDF5")
    output = run(run_command, sequences, tmp_path / "report", f"features:{path}", code=1)
    assert "sift.h5: not an HDF5 file" in output


def test_a_homography_that_is_not_3x3(run_command, sequences, tmp_path):
    shutil.copytree(sequences, tmp_path / "sequences")
    folder = next((tmp_path / "sequences").iterdir())
    (folder / "H_1_3").write_text("1 0 0\n0 1 0\n")
    output = run(run_command, tmp_path / "sequences", tmp_path / "report", "orb", code=1)
    assert "H_1_3: 2 lines; expected three rows" in output


def test_missing_flags(run_command, sequences, tmp_path):
    output = run_command(evaluate, "--root", sequences, code=2)
    assert "name at least one --model" in output
    output = run_command(evaluate, "--root", sequences, "--model", "orb", code=2)
    assert "name a folder for the report with --output" in output
    output = run(run_command, tmp_path / "none", tmp_path / "report", "orb", code=1)
    assert "expected the root of HPatches" in output


def results_of(folder):
    return json.loads((folder / "report.json").read_text())["results"]


@pytest.fixture
def extracted(monkeypatch):
    """The names of the images that networks were shown, in order."""
    names = []

    def extract(self, view, name):
        names.append(name)
        return original(self, view, name)

    original = NetworkFeatures.extract
    monkeypatch.setattr(NetworkFeatures, "extract", extract)
    return names


def test_features_are_extracted_once(run_command, sequences, tmp_path, extracted):
    names = list(HPatches(sequences).images)
    run(run_command, sequences, tmp_path / "report", "orb")
    assert extracted == names
    first = results_of(tmp_path / "report")
    run(run_command, sequences, tmp_path / "report", "orb")
    assert extracted == names
    assert results_of(tmp_path / "report") == first
    protocol = ("--protocol", "matching")
    run(run_command, sequences, tmp_path / "report", "orb", "sift", arguments=protocol)
    assert extracted == names * 2  # sift's
    assert {row["model"] for row in results_of(tmp_path / "report")} == {"orb", "sift"}


def test_an_extraction_is_resumed_by_image(run_command, sequences, tmp_path, extracted):
    shutil.copytree(sequences, root := tmp_path / "sequences")
    run(run_command, root, tmp_path / "report", "orb")
    first = results_of(tmp_path / "report")
    missing, broken_off, touched = list(HPatches(root).images)[:3]
    with h5py.File(tmp_path / "report" / "features" / "orb.h5", "a") as file:
        del file[missing]
        del file[broken_off].attrs["stamp"]
    os.utime(root / touched)
    extracted.clear()
    run(run_command, root, tmp_path / "report", "orb")
    assert extracted == [missing, broken_off, touched]
    assert results_of(tmp_path / "report") == first


def test_features_made_with_other_settings(run_command, sequences, tmp_path):
    run(run_command, sequences, tmp_path, "orb")
    other = ("--nms-radius", 8)
    output = run(run_command, sequences, tmp_path, "orb", code=1, arguments=other)
    assert "orb.h5: holds features extracted with nms_radius 4, asked for is 8" in output
    assert "--overwrite" in output
    run(run_command, sequences, tmp_path, "orb", arguments=(*other, "--overwrite"))
    assert results_of(tmp_path)[0]["mean_keypoints"] > 0
    (tmp_path / "features" / "orb.h5").write_bytes(b"cut off")
    output = run(run_command, sequences, tmp_path, "orb", code=1, arguments=other)
    assert "orb.h5: not an HDF5 file, or damaged" in output
    run(run_command, sequences, tmp_path, "orb", arguments=(*other, "--overwrite"))


def test_features_in_the_file_are_those_of_the_network(sequences, tmp_path):
    """Bit for bit, and in hloc's layout."""
    for model in ("sift", "orb"):
        evaluate_function("hpatches", [model], tmp_path, root=sequences)
        name, path = next(iter(HPatches(sequences).images.items()))
        view = load_view(path)
        settings = load_settings()
        network = NetworkFeatures(load(model), settings.predict, settings.evaluate.num_keypoints)
        expected = network.extract(view, name)
        with h5py.File(tmp_path / "features" / f"{model}.h5") as file:
            assert file.attrs["nms_radius"] == settings.predict.nms_radius
            assert file.attrs["model"].startswith("opencv")
            found = read_features(file, name)
            assert file[name]["descriptors"].shape == expected.descriptors.T.shape
        assert found.image_size == expected.image_size == (640, 480)
        for key in ("keypoints", "scores", "descriptors"):
            assert getattr(found, key).dtype == getattr(expected, key).dtype
            np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


def test_models_of_like_names_have_files_of_their_own():
    names = ["default", "runs/a", "runs_a", "silk:a/b.ckpt", "silk:a_b.ckpt", "fast+superpoint"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert files[0] == "default.h5"
    assert files[-1] == "fast+superpoint.h5"
    assert not any("/" in file for file in files)


def test_an_output_that_cannot_be_written_is_noticed_first(
    run_command, sequences, tmp_path, extracted
):
    (tmp_path / "file").touch()
    output = run(run_command, sequences, tmp_path / "file" / "report", "orb", code=1)
    assert "file/report: cannot be written" in output
    assert not extracted


def test_the_table_is_printed_whatever_happens_to_the_page(
    run_command, sequences, tmp_path, monkeypatch
):
    run(run_command, sequences, tmp_path, "orb")

    def fail(*arguments):
        raise InputError("no page today")

    monkeypatch.setattr("hfnet_distill.evaluation.evaluate.render_page", fail)
    output = run(run_command, sequences, tmp_path, "orb", code=1)
    assert "| all | MS | Homography |" in output
    assert "no page today" in output
    assert results_of(tmp_path)
    assert not (tmp_path / "index.html").exists()  # nor the one of before, of other numbers


def test_more_processes_give_the_same_numbers(sequences, tmp_path):
    reports = []
    for workers in (1, 3):
        settings = load_settings()
        evaluate = override(settings.evaluate, workers=workers)
        settings = settings.model_copy(update={"evaluate": evaluate})
        evaluate_function("hpatches", ["orb"], tmp_path, root=sequences, settings=settings)
        reports.append(results_of(tmp_path))
    assert reports[0] == reports[1]


def test_one_models_map_localized_by_another(run_command, sequences, tmp_path):
    against = ("--protocol", "matching", "--against", "superpoint")
    models = ["fast+superpoint", "superpoint"]
    arguments = (*against, "--compare", "fast+superpoint against superpoint", "superpoint")
    run(run_command, sequences, tmp_path, *models, arguments=arguments)
    rows = {row["model"]: row for row in results_of(tmp_path) if row["split"] == "all"}
    assert list(rows) == [*models, *(f"{model} against superpoint" for model in models)]
    for key in ("mean_matches", "mean_matching_accuracy", "homography"):
        assert rows["superpoint against superpoint"][key] == rows["superpoint"][key]
    across = rows["fast+superpoint against superpoint"]["mean_matches"]
    assert 0 < across != rows["superpoint"]["mean_matches"]
    assert list((tmp_path / "features").glob("*")) == [
        tmp_path / "features" / f"{model}.h5" for model in models
    ]
    output = run(run_command, sequences, tmp_path, "sift", code=1, arguments=against)
    assert "sift against superpoint: cannot match float32 descriptors of width 128" in output


@register_dataset("toy")
class ToyDataset(HomographyDataset):
    """One photograph seen twice, the second time moved by (4, 2) pixels."""

    def __init__(self, root, split="all"):
        self.sequences = ["only"]
        self.images = {name: root / name for name in ("a.png", "b.png")}
        H_0to1 = np.array([[1, 0, -4], [0, 1, -2], [0, 0, 1.0]])
        self.pairs = [HomographyPair("only", "a.png", "b.png", H_0to1)]


@register_task("toy")
class ToyTask(PairTask):
    """How many keypoints two views have in common by their number alone."""

    dataset_type = HomographyDataset
    about = "keypoints in both"
    columns = (Column("both", "fewest.keypoints", digits=0),)

    def truth(self, pair, view0, view1):
        return ()

    @staticmethod
    def score_pair(features0, features1):
        return min(len(features0.keypoints), len(features1.keypoints))

    @staticmethod
    def pair_statistics(groups, scores):
        return {"fewest.keypoints": mean_statistic(groups, scores)}


def test_a_dataset_and_a_task_of_ones_own(run_command, sequences, tmp_path):
    image = cv2.imread(str(next(iter(HPatches(sequences).images.values()))))
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "b.png"), image[2:, 4:])
    command = (evaluate, "--dataset", "toy", "--root", tmp_path, "--quiet")
    command += ("--model", "sift", "--output", tmp_path / "report")
    run_command(*command)
    (row,) = results_of(tmp_path / "report")
    assert row["homography_accuracy"] == 1
    output = run_command(*command, "--protocol", "toy")
    assert "| all | both |" in output
    (row,) = results_of(tmp_path / "report")
    assert 0 < row["fewest"]["keypoints"] <= 300
    settings = load_settings()
    two = settings.evaluate.model_copy(update={"workers": 2})
    settings = settings.model_copy(update={"evaluate": two})
    dataset = ToyDataset(tmp_path)
    evaluate_function(dataset, ["sift"], tmp_path / "two", protocol="toy", settings=settings)
    assert results_of(tmp_path / "two") == [row]
    output = run_command(*command, "--protocol", "retrieval", code=1)
    assert "protocol retrieval: not for the dataset toy; expected hfnet or matching or" in output
    output = run_command(*command, "--split", "viewpoint", code=1)
    assert "split viewpoint: the dataset toy has no such split; expected all" in output


def test_a_network_that_is_in_memory(sequences, tmp_path):
    output = evaluate_function("hpatches", {"mine": load("orb")}, tmp_path / "new", root=sequences)
    assert output == tmp_path / "new"
    assert [row["model"] for row in results_of(output)] == ["mine"] * 3


def test_help_needs_neither_torch_nor_opencv():
    code = (
        "import sys; from hfnet_distill.evaluation.cli import evaluate\n"
        "try: evaluate(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'cv2', 'numpy', 'scipy', 'h5py'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Evaluate features" in done.stdout
