"""``foveate compare classify-images`` and ``segment`` as a user meets them: real files, real processes."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_cli import foveate_command, refused

FAST = ("--systems", "softmax_attention", "--seeds", "1", "--learning-rates", "0.003", "--workers", "1")


def square(generator, label):
    """Noise with a bright square: on the left or on the right."""
    mask = np.zeros((16, 16), np.uint8)
    y = generator.integers(2, 8)
    x = generator.integers(0, 3) + 9 * label
    mask[y : y + 5, x : x + 5] = 1 + label
    return (60 * generator.random((16, 16)) + 150 * (mask > 0)).astype(np.uint8), mask


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A finished comparison of a folder of photos of two classes, with a damaged file among them."""
    folder = tmp_path_factory.mktemp("classified")
    generator = np.random.default_rng(0)
    for part, count in (("photos", 30), ("new", 4)):
        for label, name in enumerate(("left", "to the right")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(square(generator, label)[0]).save(folder / part / name / f"{i}.png")
    (folder / "photos" / "left" / "cut.png").write_bytes(b"\x89PNG\r\n")
    arguments = ("photos", *FAST, "--steps", "40", "--augment", "none", "--out", "run")
    first = foveate_command("compare", "classify-images", *arguments, cwd=folder)
    result = foveate_command("compare", "classify-images", *arguments, "--skip-bad", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, first, result


def test_a_damaged_image_is_refused_unless_it_is_skipped(classified):
    folder, first, _ = classified
    refused(first, "photos/left/cut.png", "--skip-bad")
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert board["data"]["skipped"] == 1
    assert board["data"]["samples"] == 60


def test_a_comparison_ranks_by_accuracy(classified):
    folder, _, result = classified
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert board["primary"] == "accuracy"
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention", "frequent_class", "nearest_centroid", "pixel_ridge"}
    assert all(row["status"] == "done" for row in rows.values())
    assert set(rows["pixel_ridge"]["test"]) == {"accuracy", "balanced_accuracy", "macro_f1", "log_loss"}
    assert rows["frequent_class"]["test"]["accuracy"]["mean"] == 0.5
    assert rows["pixel_ridge"]["test"]["accuracy"]["mean"] > 0.8
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    assert "accuracy" in result.stdout


def test_the_winner_classifies_new_images(classified):
    folder, _, _ = classified
    config = json.loads((folder / "run" / "best" / "config.json").read_text())
    assert config["package"]["info"]["class_names"] == ["left", "to the right"]
    assert config["package"]["info"]["size"] == [16, 16]
    result = foveate_command("predict", "run/best", "new", "--out", "answers.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "answers.csv")
    assert list(table.columns) == ["image", "class", "p(left)", "p(to the right)"]
    assert table["image"].tolist() == sorted(table["image"])
    assert np.mean([a.split("/")[0] == c for a, c in zip(table["image"], table["class"], strict=True)]) > 0.8


def test_plans_and_bad_options_end_at_once(classified):
    folder, _, _ = classified
    options = ("--image-size", "16x12", *FAST, "--steps", "10", "--plan")
    result = foveate_command("compare", "classify-images", "new", *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("softmax_attention-seed0")
    assert not (folder / "foveate-runs").exists()
    refused(foveate_command("compare", "classify-images", "photos/left", cwd=folder), "holds no sub-folders")
    refused(foveate_command("compare", "classify-images", "gone", cwd=folder), "'gone' does not exist")
    refused(
        foveate_command("compare", "classify-images", "new", "--systems", "patchtst", cwd=folder),
        "system 'patchtst' cannot do the task 'classify-images'",
    )


def test_segment_writes_masks(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "p" / name).mkdir(parents=True)
    for i in range(16):
        image, mask = square(generator, i % 2)
        Image.fromarray(image).save(tmp_path / "p" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "p" / "masks" / f"{i}.png")
    result = foveate_command("compare", "segment", "p", *FAST, "--steps", "5", "--hd95", "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    board = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    assert board["primary"] == "dice"
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention", "background", "voxel_bayes"}
    assert set(rows["background"]["test"]) == {"dice", "iou", "dice(1)", "dice(2)", "hd95"}
    result = foveate_command("predict", "run/best", "p/images", "--out", "made", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "16 masks" in result.stdout
    made = np.asarray(Image.open(tmp_path / "made" / "3.png"))
    assert made.shape == (16, 16)
    assert made.max() <= 2
    refused(foveate_command("predict", "run/best", "p", "--out", "made", cwd=tmp_path), "made exists")


def test_segment_reads_volumes(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "v" / name).mkdir(parents=True)
    for i in range(6):
        label = np.zeros((10, 9, 8), np.uint8)
        label[2 + i % 3 : 7, 3:7, 2:6] = 1
        spacing = np.diag([1.0, 1.0, 2.0 if i == 5 else 1.0, 1.0])
        image = (generator.normal(size=label.shape) + 6 * label).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, spacing), tmp_path / "v" / "images" / f"{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, spacing), tmp_path / "v" / "labels" / f"{i}.nii.gz")
    command = ("compare", "segment", "v", *FAST, "--steps", "3", "--batch-size", "2", "--no-refit", "--out", "run")
    refused(foveate_command(*command, cwd=tmp_path), "different spacings", "--spacing")
    result = foveate_command(*command, "--spacing", "median", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["rows"]
    assert {row["system"]: row["status"] for row in rows}["softmax_attention"] == "done"
    result = foveate_command("predict", "run/best", "v", "--out", "made", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = nibabel.load(tmp_path / "made" / "images" / "5.nii.gz")
    assert made.shape == (10, 9, 8)
    assert made.header.get_zooms()[2] == 2
