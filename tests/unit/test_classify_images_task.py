"""The task classify-images: batches, augmentation, scores, what is stored and what is shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.models.build import resolve
from foveate.models.vision.pixel_ridge import FrequentClass, NearestCentroid, PixelRidge, averages
from foveate.tasks.classify_images.augment import augmented, read_kinds
from foveate.tasks.classify_images.protocol import statistics
from foveate.tasks.classify_images.scores import class_scores
from foveate.tasks.classify_images.task import IMAGES, ClassifyImagesTask
from foveate.tasks.fit import FitOnce


@pytest.fixture(scope="module")
def task():
    return ClassifyImagesTask.prepare(image_size=16)


def test_batches_are_standardised_by_the_training_images(task):
    train = task.batch("train", torch.arange(task.size("train")))
    assert train["x"].dtype == torch.float32
    assert train["x"].shape == (task.size("train"), 1, 16, 16)
    assert abs(float(train["x"].mean())) < 1e-4
    assert abs(float(train["x"].std(unbiased=False)) - 1) < 1e-4
    again = task.batch("train", torch.tensor([5, 3]))
    assert torch.equal(again["x"], train["x"][[5, 3]])
    assert torch.equal(again["y"], train["y"][[5, 3]])


def test_parts_do_not_meet_and_hold_every_class(task):
    parts = [set(task._part(s).tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    for split in ("train", "val", "test"):
        assert task.batch(split, torch.arange(task.size(split)))["y"].unique().tolist() == list(range(10))
    other = ClassifyImagesTask.prepare(image_size=16, split_seed=1)
    assert set(other._part("test").tolist()) != parts[2]


def test_statistics_are_numpys():
    images = torch.randint(0, 256, (2100, 3, 5, 4), dtype=torch.uint8)
    index = torch.randperm(2100)[:1500]
    mean, scale = statistics(images, index)
    plain = images[index].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean.numpy(), plain.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(scale.numpy(), plain.std((0, 2, 3)), rtol=1e-9)


def test_what_is_stored_comes_back(task, tmp_path):
    task.save(tmp_path)
    again = ClassifyImagesTask.load(tmp_path)
    assert again.info == task.info
    assert again.describe() == task.describe()
    for split in ("train", "val", "test"):
        index = torch.arange(task.size(split))
        one, other = task.batch(split, index), again.batch(split, index)
        assert all(torch.equal(one[k], other[k]) for k in one)
    size = (tmp_path / IMAGES).stat().st_size
    assert size == 1797 * 256
    with (tmp_path / IMAGES).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(
        ValueError, match=r"images.bin has 460031 bytes instead of 460032: the prepared data is damaged"
    ):
        ClassifyImagesTask.load(tmp_path)
    (tmp_path / IMAGES).unlink()
    with pytest.raises(ValueError, match=r"images.bin is missing"):
        ClassifyImagesTask.load(tmp_path)


def test_the_whole_has_all_images_in_training(task):
    whole = task.whole()
    assert whole.info == task.info
    assert whole.size("train") == 1797
    assert whole.size("test") == task.size("test")
    x = whole.batch("train", torch.arange(1797))["x"]
    assert abs(float(x.mean())) < 1e-4
    assert not torch.equal(whole._tensors["mean"], task._tensors["mean"])


def test_scores_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    metrics, right, confusion = class_scores(logits, torch.tensor([0, 1, 1, 0]))
    assert right.tolist() == [1, 1, 0, 0]
    assert metrics["accuracy"] == 0.5
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    chances = logits.double().softmax(1)[torch.arange(4), [0, 1, 1, 0]]
    assert metrics["log_loss"] == pytest.approx(float(-chances.log().mean()))
    assert confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    unbalanced = class_scores(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))[0]
    assert unbalanced["accuracy"] == 0.75
    assert unbalanced["balanced_accuracy"] == 0.5


def test_augmentation_moves_flips_and_colours():
    x = torch.randn(64, 3, 16, 24)
    torch.manual_seed(0)
    moved = augmented(x, ("shift",))
    for one, other in zip(x, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-3, 4)
            if torch.equal(one[:, 4 + dy : 12 + dy, 6 + dx : 18 + dx], other[:, 4:12, 6:18])
        ]
        assert len(found) == 1
    assert not torch.equal(moved, x)
    flipped = augmented(x, ("flip",))
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(x, flipped, strict=True)]
    assert 10 < sum(turned) < 54
    assert all(t or torch.equal(a, b) for t, a, b in zip(turned, x, flipped, strict=True))
    coloured = augmented(x, ("colour",))
    for one, other in zip(x, coloured, strict=True):
        line = torch.stack([one[0].flatten(), torch.ones(16 * 24)], 1)
        residual = torch.linalg.lstsq(line, other[0].flatten()[:, None])
        assert torch.allclose(line @ residual.solution, other[0].flatten()[:, None], atol=1e-4)
    assert torch.equal(augmented(x, ()), x)
    assert read_kinds("none") == ()
    assert read_kinds("flip, shift") == ("shift", "flip")


def test_only_training_sees_augmented_images(task):
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.new_zeros(len(x), 10)

    batch, model = task.batch("train", torch.arange(8)), Watch()
    task.loss(model.train(), batch)
    task.loss(model.eval(), batch)
    task.evaluate(model.train(), "val", 50)
    assert not torch.equal(seen[0], batch["x"])
    assert torch.equal(seen[1], batch["x"])
    assert torch.equal(seen[2], task.batch("val", torch.arange(50))["x"])
    assert model.training
    plain = ClassifyImagesTask.prepare(image_size=16, augment="none")
    plain.loss(model.train(), batch)
    assert torch.equal(seen[-1], batch["x"])


@pytest.mark.parametrize(("cls", "least"), [(PixelRidge, 0.9), (NearestCentroid, 0.8), (FrequentClass, 0.09)])
def test_baselines_learn_what_they_can(task, cls, least):
    model = cls.for_task(task.info)
    FitOnce(task).fit(model, None)
    found = task.evaluate(model, "test")
    assert found.metrics["accuracy"] >= least
    assert float(found.per_sample.mean()) == pytest.approx(found.metrics["accuracy"])


def test_ridge_is_the_same_in_both_forms():
    x, y = torch.randn(40, 1, 6, 7), torch.arange(40) % 3
    few, many = PixelRidge((6, 7), 1, 3), PixelRidge((6, 7), 1, 3)
    few.fit({"x": x[:30], "y": y[:30]})  # 42 features of 30 samples
    many.fit({"x": x[:30].repeat(2, 1, 1, 1), "y": y[:30].repeat(2)})  # the same samples twice: the other form
    torch.testing.assert_close(few(x), many(x), rtol=1e-4, atol=1e-4)


def test_averages_share_pixels_at_borders():
    assert averages(3, 2).tolist() == [
        [pytest.approx(2 / 3), pytest.approx(1 / 3), 0],
        [0, pytest.approx(1 / 3), pytest.approx(2 / 3)],
    ]
    assert torch.equal(averages(5, 5), torch.eye(5))


def test_the_package_answers_as_the_task_does(task, tmp_path):
    model = resolve("softmax_attention").build(task.info, {}).eval()
    packaged = task.package(model)
    batch = task.batch("test", torch.arange(6))
    raw = task.images[task._part("test")[:6]].float() / 255
    torch.testing.assert_close(packaged(raw), task.apply(model, batch), rtol=1e-4, atol=1e-5)
    again = ClassifyImagesTask.unpack(packaged.config, lambda info: resolve("softmax_attention").build(info, {}))
    again.load_state_dict(packaged.state_dict())
    assert torch.equal(again.eval()(raw), packaged(raw))
    assert packaged(**packaged.example_inputs(2)).shape == (2, 10)
    for wrong in (raw[0], raw[:, :, :8], (raw * 255).to(torch.uint8), torch.full_like(raw, torch.nan)):
        with pytest.raises(ValueError, match=r"^x has "):
            packaged(wrong)


def test_predictions_of_files_and_of_arrays(task, tmp_path):
    model = resolve("nearest_centroid").build(task.info, {})
    FitOnce(task).fit(model, None)
    packaged = task.package(model)
    table = task.predict(packaged)
    assert list(table.columns) == ["image", "class", *(f"p({n})" for n in range(10))]
    assert len(table) == 1797
    assert np.allclose(table.filter(like="p(").sum(axis=1), 1)
    raw = task.images[:5, 0].numpy()
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for i, image in enumerate(raw):
        Image.fromarray(image).save(tmp_path / "new" / ("deep" if i > 2 else "") / f"{i}.png")
    files = task.predict(packaged, tmp_path / "new")
    assert files["image"].tolist() == ["0.png", "1.png", "2.png", "deep/3.png", "deep/4.png"]
    np.savez(tmp_path / "a.npz", images=raw)
    arrays = task.predict(packaged, tmp_path / "a.npz", batch_size=2)
    assert files["class"].tolist() == arrays["class"].tolist() == table["class"].tolist()[:5]
    one = task.predict(packaged, tmp_path / "new" / "1.png")
    assert one["class"].tolist() == files["class"].tolist()[1:2]
    (tmp_path / "new" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2.png' is empty"):
        task.predict(packaged, tmp_path / "new")
    with pytest.raises(TypeError, match="time is not possible here"):
        task.predict(packaged, time="when")
