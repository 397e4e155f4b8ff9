"""The task segment: reading images, masks and volumes; patches, windows, scores; what is stored and what is shipped."""

from __future__ import annotations

import base64
import gzip
import io
import math
import os
import struct

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from foveate.models.build import resolve
from foveate.models.vision.voxel_bayes import Background, VoxelBayes
from foveate.tasks.fit import FitOnce
from foveate.tasks.segment.cases import nearest
from foveate.tasks.segment.examples import example
from foveate.tasks.segment.scores import IGNORED, dice_and_cross_entropy, hausdorff95, overlaps
from foveate.tasks.segment.task import SegmentTask
from foveate.tasks.segment.windows import origins, sliding_window, weights


def refused(source, match, **options):
    with pytest.raises((ValueError, TypeError, LookupError), match=match) as error:
        SegmentTask.prepare(source, **options)
    assert "\n" not in str(error.value)


def draw(seed, size=(20, 24)):
    """A bright square on noise, and its mask."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    y, x = generator.integers(2, 8, 2)
    mask[y : y + 8, x : x + 8] = 1
    return (60 * generator.random(size) + 150 * mask).astype(np.uint8), mask


@pytest.fixture
def pictures(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "p" / name).mkdir(parents=True)
    for i in range(12):
        image, mask = draw(i, (20, 24) if i % 2 else (17, 30))
        Image.fromarray(image).save(tmp_path / "p" / "images" / f"{i:02}.png")
        Image.fromarray(mask * 255).save(tmp_path / "p" / "masks" / f"{i:02}_mask.png")
    return tmp_path / "p"


def volume(path, values, spacing=(1.0, 1.0, 1.0), axes="RAS"):
    affine = np.diag([*spacing, 1.0])
    image = nibabel.Nifti1Image(values, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(turn), path)


@pytest.fixture
def scans(tmp_path):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "v" / name).mkdir(parents=True)
    for i in range(6):
        generator = np.random.default_rng(i)
        label = np.zeros((12, 10, 9), np.uint8)
        label[2:6, 3:7, 1 + i % 3 : 5] = 1 + i % 2
        label[7:10, 2:6, 2:6] = 2 - i % 2
        image = (generator.normal(size=label.shape) + 5 * label).astype(np.float32)
        axes = "RAS" if i % 2 else "LPI"
        volume(tmp_path / "v" / "imagesTr" / f"s{i}.nii.gz", image, axes=axes)
        volume(tmp_path / "v" / "labelsTr" / f"s{i}.nii.gz", label, axes=axes)
    return tmp_path / "v"


# ----- images


def test_a_folder_of_images_and_masks(pictures):
    task = SegmentTask.prepare(pictures)
    assert task.info.class_names == ("0", "255")
    assert task.info.size == (32, 32)  # the median, rounded up
    assert task.info.channels == 1
    facts = task.describe()
    assert (facts["smallest"], facts["largest"]) == ([17, 24], [20, 30])
    assert sum(p["samples"] for p in facts["parts"].values()) == 12
    assert torch.equal(task.store.mask(1), torch.from_numpy(draw(1)[1]))
    assert torch.equal(task.store.image(0)[0], torch.from_numpy(draw(0, (17, 30))[0]))
    batch = task.batch("train", torch.arange(3))
    assert batch["x"].shape == (3, 1, 32, 32)
    assert set(batch["y"].unique().tolist()) == {0, 1, IGNORED}


def test_colours_and_palettes_are_classes(pictures):
    for i in range(12):
        mask = draw(i, (20, 24) if i % 2 else (17, 30))[1]
        colour = np.zeros((*mask.shape, 3), np.uint8)
        colour[mask == 1] = (255, 0, 16)
        Image.fromarray(colour).save(pictures / "masks" / f"{i:02}_mask.png")
    assert SegmentTask.prepare(pictures).info.class_names == ("#000000", "#ff0010")
    indexed = Image.fromarray(draw(1)[1], "P")
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    indexed.save(pictures / "masks" / "01_mask.png")
    refused(pictures, "some masks are coloured and some are not")


def test_what_is_wrong_with_images_and_masks(pictures):
    masks = pictures / "masks"
    whole = (masks / "03_mask.png").read_bytes()
    (masks / "03_mask.png").unlink()
    refused(pictures, "03.png' has no mask of its name")
    (masks / "03_mask.png").write_bytes(whole)
    (masks / "99.png").write_bytes(whole)
    refused(pictures, "99.png' is the mask of no image")
    (masks / "99.png").unlink()
    (masks / "03_mask.png").write_bytes((masks / "02_mask.png").read_bytes())
    refused(pictures, "has 17 x 30 pixels, its image 03.png has 20 x 24: they must be alike")
    (masks / "03_mask.png").write_bytes(whole[:60])
    refused(pictures, "03_mask.png' is damaged or cut off")
    Image.fromarray(draw(3)[1] * 255).save(masks / "03_mask.jpg")
    (masks / "03_mask.png").unlink()
    refused(pictures, "is a JPEG file, which blurs the borders of classes")
    (masks / "03_mask.jpg").unlink()
    (masks / "03_mask.png").write_bytes(whole)
    picture = (pictures / "images" / "03.png").read_bytes()
    (pictures / "images" / "03.png").write_bytes(b"")
    refused(pictures, "03.png' is empty")
    Image.fromarray(np.zeros((17, 30, 3), np.uint8)).save(pictures / "images" / "00.png")
    refused(pictures, "03.png' is empty")  # no header is read any more, for the channels are known
    (pictures / "images" / "03.png").unlink()
    os.mkfifo(pictures / "images" / "03.png")
    refused(pictures, "03.png' is no file: remove it")
    (pictures / "images" / "03.png").unlink()
    os.symlink(pictures / "gone.png", pictures / "images" / "03.png")
    refused(pictures, "03.png' is a link to nothing: remove it")
    (pictures / "images" / "03.png").unlink()
    (pictures / "images" / "03.png").write_bytes(picture)
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(pictures / "masks" / "03_mask.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(pictures / "images" / "03.png")
    refused(pictures, "'images/03.png' has 600 different values, and at most 254 classes are possible")
    masks.rename(pictures / "other")
    refused(pictures, "holds images and no folder called masks")
    refused(pictures / "other", "holds no folder called images")
    refused(pictures / "none", "does not exist")


def test_a_value_that_does_not_count(pictures):
    for i in range(12):
        mask = draw(i, (20, 24) if i % 2 else (17, 30))[1]
        mask[0] = 255
        Image.fromarray(mask).save(pictures / "masks" / f"{i:02}_mask.png")
    assert SegmentTask.prepare(pictures).info.class_names == ("0", "1", "255")
    task = SegmentTask.prepare(pictures, ignore=255)
    assert task.info.class_names == ("0", "1")
    assert bool((task.store.mask(0)[0] == IGNORED).all())
    assert bool((task.store.mask(0)[1:] != IGNORED).all())
    odd = task._part("test")[0]
    Image.fromarray(np.full(draw(int(odd), (20, 24) if odd % 2 else (17, 30))[1].shape, 7, np.uint8)).save(
        pictures / "masks" / f"{odd:02}_mask.png"
    )
    refused(pictures, "has the class 7, which no training mask has", ignore=255)


def test_one_class_only(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8), np.uint8), masks=np.zeros((6, 8, 8), np.uint8))
    refused(tmp_path / "a.npz", "the training masks have 1 class: at least two are needed")
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8), np.uint8), masks=np.zeros((6, 8, 9), np.uint8))
    refused(tmp_path / "a.npz", r"images have shape \(6, 8, 8\), masks \(6, 8, 9\): they must be alike")
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8), np.uint8), masks=np.zeros((6, 8, 8)))
    refused(tmp_path / "a.npz", "whole numbers of shape")
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8), np.uint8), masks=np.full((6, 8, 8), 1 << 32))
    refused(tmp_path / "a.npz", "masks hold values beyond 32 bits")
    np.savez(tmp_path / "a.npz", images=np.full((6, 8, 8, 8), 1e300), masks=np.zeros((6, 8, 8, 8), np.uint8))
    refused(tmp_path / "a.npz", "images hold values that are too large for 32-bit numbers")
    np.savez(tmp_path / "a.npz", pictures=np.zeros((6, 8, 8), np.uint8))
    refused(tmp_path / "a.npz", "holds the arrays pictures: images .* and masks of the same shape are needed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": "8x"}, "patch='8x' is not possible"),
        ({"patch": "8x8x8"}, "patch='8x8x8' is not possible: a side such as 64, or height x width"),
        ({"overlap": 1.0}, "overlap=1.0 is not possible"),
        ({"blending": "normal"}, "blending='normal' is not possible: it must be 'gaussian' or 'constant'"),
        ({"normalise": "none"}, "normalise='none' is not possible"),
        ({"spacing": "median"}, "have no spacing"),
        ({"split": "0.5/0.3/0.2"}, "has parts of its own"),
        ({"ignore": "255"}, "ignore='255' is not possible"),
    ],
)
def test_bad_options(options, message):
    refused(None, message, **options)


# ----- volumes


def test_volumes_are_turned_alike(scans):
    task = SegmentTask.prepare(scans)
    assert task.info.size == (12, 12, 12)  # networks halve a patch twice
    assert task.info.class_names == ("0", "1", "2")
    assert task.spec.rank == 3
    assert task.spec.metrics == ("dice", "iou", "dice(1)", "dice(2)")
    assert task.describe()["spacing"] == [1.0, 1.0, 1.0]
    for i in range(6):
        label = task.store.mask(i)
        assert bool((label[2:6, 3:7, 1 + i % 3 : 5] == 1 + i % 2).all())
        assert float(task.store.image(i)[0][label == 2].mean()) == pytest.approx(10, abs=0.5)


def test_differing_spacings_are_refused_or_resampled(scans):
    image = nibabel.load(scans / "imagesTr" / "s3.nii.gz")
    label = nibabel.load(scans / "labelsTr" / "s3.nii.gz")
    for file, folder in ((image, "imagesTr"), (label, "labelsTr")):
        volume(scans / folder / "s3.nii.gz", np.asarray(file.dataobj), spacing=(1, 1, 2))
    refused(scans, r"have different spacings \(1 x 1 x 1 mm and 1 x 1 x 2 mm\): resample with spacing median")
    refused(scans, "spacing='1x1' is not possible", spacing="1x1")
    refused(scans, "s0.* would have 1200 x 1000 x 900 voxels at a spacing of 0.01 x", spacing="0.01x0.01x0.01")
    median = SegmentTask.prepare(scans, spacing="median")
    assert median.store.shapes.tolist() == [[12, 10, 9]] * 3 + [[12, 10, 18]] + [[12, 10, 9]] * 2
    finer = SegmentTask.prepare(scans, spacing="0.5x1x2")
    assert finer.store.shapes[0].tolist() == [24, 10, 4]
    assert finer.describe()["spacing"] == [0.5, 1.0, 2.0]
    assert SegmentTask.prepare(scans, spacing="keep").store.shapes.tolist() == [[12, 10, 9]] * 6


def test_what_is_wrong_with_volumes(scans):
    label = scans / "labelsTr" / "s2.nii.gz"
    whole = label.read_bytes()
    values = np.zeros((12, 10, 9), np.float32)
    volume(label, values + 0.5)
    refused(scans, "holds values that are not whole")
    volume(label, values[:, :, :5])
    refused(scans, "has 12 x 10 x 5 voxels, its volume s2.nii.gz has 12 x 10 x 9")
    volume(label, values, spacing=(1, 1, 3))
    refused(scans, "lies elsewhere in space than its volume s2.nii.gz")
    label.write_bytes(whole[: len(whole) // 2])
    refused(scans, "s2.nii.gz' is (no NIfTI volume, or damaged|damaged or cut off)")
    label.write_bytes(b"")
    refused(scans, "s2.nii.gz' is empty")
    label.write_text("no volume")
    refused(scans, "s2.nii.gz' is no NIfTI volume, or damaged")
    label.write_bytes(whole)
    volume(scans / "imagesTr" / "s2.nii.gz", np.full((12, 10, 9), np.nan, np.float32), axes="LPI")
    refused(scans, "s2.nii.gz' holds missing or infinite values")


@pytest.mark.parametrize(
    ("offset", "changed", "says"),
    [
        (70, b"\xff\xff", "is no NIfTI volume, or damaged"),  # the type of a voxel
        (42, struct.pack("<h", -5), r"has shape \(-5, 10, 9\): a volume of three axes"),
        (42, struct.pack("<3h", 30_000, 30_000, 30_000), "unpacks to 30000 x 30000 x 30000 voxels"),
        (70, struct.pack("<2h", 32, 64), "holds complex64 instead of plain numbers"),
        (70, struct.pack("<2h", 128, 24), "instead of plain numbers"),  # red, green, blue
        (500, b"\1\2\3\4", "damaged or cut off"),  # a voxel, told by the check sum alone
    ],
)
def test_damaged_heads_and_voxels_of_volumes(scans, capfd, offset, changed, says):
    path = scans / "imagesTr" / "s1.nii.gz"
    packed = gzip.compress(gzip.decompress(path.read_bytes()))
    whole = bytearray(gzip.decompress(packed))
    whole[offset : offset + len(changed)] = changed
    path.write_bytes(gzip.compress(bytes(whole))[:-8] + packed[-8:] if offset == 500 else gzip.compress(bytes(whole)))
    refused(scans, f"s1.nii.gz' .*{says}")
    assert not capfd.readouterr().err


def test_masks_are_written_where_their_volumes_lie(scans, tmp_path):
    task = SegmentTask.prepare(scans)
    model = VoxelBayes.for_task(task.info)
    FitOnce(task).fit(model, None)
    packaged = task.package(model)
    assert SegmentTask.write_predictions(packaged, scans / "imagesTr", tmp_path / "out") == 6
    for i in range(6):
        made = nibabel.load(tmp_path / "out" / f"s{i}.nii.gz")
        truth = nibabel.load(scans / "labelsTr" / f"s{i}.nii.gz")
        assert np.allclose(made.affine, truth.affine)
        assert (np.asarray(made.dataobj) == np.asarray(truth.dataobj)).mean() > 0.97
    table = task.predict(packaged, scans)
    assert list(table.columns) == ["image", "p(0)", "p(1)", "p(2)"]
    assert np.allclose(table.filter(like="p(").sum(axis=1), 1)


# ----- patches and windows


def test_every_second_patch_holds_a_class(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (6, 90, 90), dtype=np.uint8)
    masks = np.zeros((6, 90, 90), np.uint8)
    masks[:, 80:84, 2:6] = 1
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    task = SegmentTask.prepare(tmp_path / "a.npz", patch=16)
    assert task.size("train") == 32 * 4
    y = task.batch("train", torch.arange(task.size("train")))["y"]
    assert y.shape[1:] == (16, 16)
    holds = (y == 1).flatten(1).any(1)
    assert bool(holds[::2].all())
    assert float(holds[1::2].float().mean()) < 0.4
    again = SegmentTask.prepare(tmp_path / "a.npz", patch=16)
    assert torch.equal(task._tensors["origins"], again._tensors["origins"])


def test_one_window_that_covers_all_is_the_model_itself():
    net = torch.nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(3, 2, 16, 12)
    assert torch.equal(sliding_window(net, x, (16, 12), at_once=4), net(x))


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("rank", [2, 3])
def test_windows_of_a_pointwise_model_change_nothing(rank, blending):
    shape, window = (19, 23, 14)[:rank], (8, 6, 7)[:rank]
    x = torch.randn(2, 1, *shape)
    y = sliding_window(lambda part: part * 2 + 1, x, window, overlap=0.4, blending=blending, at_once=3)
    torch.testing.assert_close(y, x * 2 + 1)


def test_windows_cover_everything_and_meet_the_border():
    for side in range(8, 40):
        for overlap in (0.0, 0.3, 0.5, 0.9):
            places = [o[0] for o in origins((side,), (8,), overlap)]
            covered = np.zeros(side, int)
            for o in places:
                covered[o : o + 8] += 1
            assert covered.min() >= 1
            assert places[-1] == side - 8
            assert len(set(places)) == len(places)
    assert weights((8, 8), "gaussian").argmax() in (27, 28, 35, 36)
    assert float(weights((64, 64, 64), "gaussian").min()) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="the ranks differ"):
        sliding_window(torch.nn.Identity(), torch.zeros(1, 1, 8, 8), (4, 4, 4))


# ----- scores and loss


def test_dice_and_iou_by_hand():
    truth = torch.tensor([[1, 1, 0, 0], [2, IGNORED, 0, 0]])
    answer = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    dice, iou = overlaps(answer, truth, 4)
    assert dice.tolist() == pytest.approx([2 * 1 / (2 + 2), 0, 1])
    assert iou.tolist() == pytest.approx([1 / 3, 0, 1])


def test_distances_of_borders():
    one, other = torch.zeros(30, 30, dtype=torch.int64), torch.zeros(30, 30, dtype=torch.int64)
    one[5:15, 5:15] = 1
    other[5:15, 8:18] = 1
    assert hausdorff95(one, one, 3, (1.0, 1.0)).tolist() == [0, 0]
    assert hausdorff95(one, other, 2, (1.0, 1.0)).item() == pytest.approx(3)
    assert hausdorff95(one, other, 2, (1.0, 2.5)).item() == pytest.approx(7.5)
    assert hausdorff95(one, torch.zeros_like(one), 2, (1.0, 1.0)).item() == pytest.approx(math.hypot(30, 30))
    line = torch.zeros(9, 40, dtype=torch.int64)
    longer = line.clone()
    line[4, :20] = 1
    longer[4, :40] = 1
    assert hausdorff95(longer, line, 2, (1.0, 1.0)).item() == pytest.approx(18.05)  # of 0, ..., 0, 1, ..., 20


def test_the_loss_ignores_what_does_not_count():
    logits, truth = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randint(0, 3, (2, 6, 6))
    truth[:, :3] = IGNORED
    loss = dice_and_cross_entropy(logits, truth)
    (grad,) = torch.autograd.grad(loss, logits)
    assert bool((grad[:, :, :3] == 0).all())
    changed = logits.detach().clone()
    changed[:, :, :3] += 5
    torch.testing.assert_close(dice_and_cross_entropy(changed, truth), loss)
    nothing = dice_and_cross_entropy(logits, torch.full_like(truth, IGNORED))
    assert bool(torch.isfinite(nothing))


# ----- the task


@pytest.mark.parametrize("volumes", [False, True])
def test_digits_are_there_and_come_back(volumes, tmp_path):
    task = SegmentTask.prepare(volumes=volumes, patch=16)
    assert task.info.class_names == ("background", "0-4", "5-9")
    assert min(task.describe()["shares"]) > 0.02
    task.save(tmp_path)
    again = SegmentTask.load(tmp_path)
    assert again.describe() == task.describe()
    assert again.spec == task.spec
    index = torch.tensor([0, 7, 40])
    for split in ("train", "val", "test"):
        one, other = task.batch(split, index % task.size(split)), again.batch(split, index % task.size(split))
        assert all(torch.equal(one[k], other[k]) for k in one)
    whole = task.whole()
    assert whole.size("train") > task.size("train")
    assert whole.size("test") == task.size("test")
    assert (
        SegmentTask.prepare(volumes=volumes, split_seed=1).store.images.float().mean()
        != task.store.images.float().mean()
    )


def _shown(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def test_pictures_of_the_test_part(pictures):
    task = SegmentTask.prepare(pictures)
    nothing = task.evaluate(Background.for_task(task.info), "test").examples
    part = task._part("test").tolist()
    assert [image["name"] for image in nothing["images"]] == [f"image {i}" for i in part]
    assert "images" not in task.evaluate(Background.for_task(task.info), "val").examples
    for i, image in zip(part, nothing["images"], strict=True):
        grey = _shown(image["image"])
        assert np.array_equal(grey, np.repeat(task.store.image(i).numpy()[0][..., None], 3, 2))
        assert np.array_equal(_shown(image["answer"]), grey)
        differs = (_shown(image["truth"]) != grey).any(-1)
        assert np.array_equal(differs, task.store.mask(i).numpy() == 1)
        orange = 0.7 * np.array([0xE6, 0x9F, 0]) + 0.3 * grey[differs]
        assert np.abs(_shown(image["truth"])[differs] - orange).max() <= 1
        assert image["dice"] == 0


def test_pictures_of_volumes_are_the_slice_with_most_labels(scans):
    task = SegmentTask.prepare(scans)
    i = int(task._part("test")[0])
    shown = example(task, i, task.store.mask(i).long(), 1.0)
    at = int((task.store.mask(i) > 0).sum((0, 1)).argmax())
    assert shown["name"] == f"volume {i}, slice {at}"
    assert shown["truth"] == shown["answer"]
    differs = (_shown(shown["truth"]) != _shown(shown["image"])).any(-1)
    assert np.array_equal(differs, task.store.mask(i)[..., at].numpy().T[::-1] > 0)  # right to the right, front up


@pytest.mark.parametrize("normalise", ["training", "each"])
def test_the_package_answers_as_the_task_does(pictures, normalise):
    task = SegmentTask.prepare(pictures, patch=16, normalise=normalise)
    model = VoxelBayes.for_task(task.info)
    FitOnce(task).fit(model, None)
    packaged = task.package(model).eval()
    found = task.evaluate(model, "test")
    dices = []
    for i in task._part("test").tolist():
        raw = task.store.image(i)[None].float() / 255
        dices.append(overlaps(packaged(raw)[0].argmax(0), task.store.mask(i).long(), 2)[0])
    assert found.metrics["dice"] == pytest.approx(float(torch.stack(dices).mean()))
    assert float(found.per_sample.mean()) == pytest.approx(found.metrics["dice"])
    again = SegmentTask.unpack(packaged.config, lambda info: VoxelBayes.for_task(info))
    again.load_state_dict(packaged.state_dict())
    assert torch.equal(again(raw), packaged(raw))
    assert packaged(**packaged.example_inputs(2)).shape == (2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"floating point \(batch, 1, height, width\) is needed"):
        packaged(raw[0])


def test_baselines():
    task = SegmentTask.prepare()
    nothing = task.evaluate(Background.for_task(task.info), "test")
    model = VoxelBayes.for_task(task.info)
    FitOnce(task).fit(model, None)
    by_brightness = task.evaluate(model, "test")
    empty = [float((task.store.mask(i) == c).any()) for i in task._part("test").tolist() for c in (1, 2)]
    assert nothing.metrics["dice"] == pytest.approx(1 - np.mean(empty))
    assert by_brightness.metrics["dice"] > nothing.metrics["dice"] + 0.1


def test_baselines_leave_out_padding(pictures):
    task = SegmentTask.prepare(pictures)
    assert bool((task.batch("train", torch.arange(2))["y"] == IGNORED).any())
    model = VoxelBayes.for_task(task.info)
    FitOnce(task).fit(model, None)
    assert task.evaluate(model, "test").metrics["dice"] > 0.95  # the square is brighter than any noise
    share = np.mean([float((task.store.mask(i) == 1).float().mean()) for i in task._part("train").tolist()])
    assert float(model.log_share.exp()[1]) == pytest.approx(share, rel=0.05)


def test_naive_bayes_with_two_classes_is_a_threshold():
    model = VoxelBayes((8, 8), 1, 2)
    y = torch.arange(64).view(1, 8, 8) % 2
    x = y[:, None] * 4.0 + torch.randn(1, 1, 8, 8)
    model.fit({"x": x, "y": y})
    model.variances.fill_(1.0)
    line = torch.linspace(-3, 8, 64).view(1, 1, 8, 8)
    answer = model(line).argmax(1).flatten().tolist()
    assert answer == sorted(answer)
    assert 0 < sum(answer) < 64


# ----- a head around backbones


def test_backbones_become_segmenters():
    task = SegmentTask.prepare()
    model = resolve("mambaout").build(task.info, {"width": 16})
    batch = task.batch("train", torch.arange(2))
    assert task.apply(model, batch).shape == (2, 3, 48, 48)
    task.loss(model, batch).backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None and not n.startswith("backbone.")}
    assert not unused
    odd = torch.randn(1, 1, 33, 29)
    assert model(odd).shape == (1, 3, 33, 29)
    with pytest.raises(ValueError, match="width=12 is not possible"):
        resolve("mambaout").build(task.info, {"width": 12})
    with pytest.raises(TypeError, match="has no option 'widths'"):
        resolve("mambaout").build(task.info, {"widths": 12})


def test_image_backbones_do_not_take_volumes():
    task = SegmentTask.prepare(volumes=True)
    with pytest.raises(TypeError, match="image backbones segment images"):
        resolve("mambaout").build(task.info, {})


def test_masks_at_another_size():
    label = np.arange(12).reshape(3, 4)
    assert nearest(label, (3, 4)).tolist() == label.tolist()
    assert nearest(label, (6, 8))[::2, ::2].tolist() == label.tolist()
    assert nearest(nearest(label, (9, 12)), (3, 4)).tolist() == label.tolist()
