"""Reading images: every kind of source and of file, and what is wrong with them told in one sentence."""

from __future__ import annotations

import gzip
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.tasks.classify_images.decode import decode
from foveate.tasks.classify_images.pictures import choose_size, fitted
from foveate.tasks.classify_images.task import ClassifyImagesTask


def picture(seed: int = 0, size: tuple[int, int] = (12, 10), channels: int = 3) -> np.ndarray:
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten PNG files."""
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(picture(100 * c + i)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def refused(source, match, **options):
    with pytest.raises((ValueError, TypeError, LookupError), match=match) as error:
        ClassifyImagesTask.prepare(source, **options)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?", ")"))


# ----- kinds of sources


def test_a_folder_of_class_folders(photos):
    (photos / "cat" / "more").mkdir()
    Image.fromarray(picture(77)).save(photos / "cat" / "more" / "deep.PNG")
    (photos / "cat" / ".hidden.png").write_bytes(b"no image")
    (photos / "dog" / "notes.txt").write_text("not an image")
    task = ClassifyImagesTask.prepare(photos)
    assert task.info.class_names == ("cat", "dog")
    assert task.info.size == (12, 10)
    assert task.info.channels == 3
    facts = task.describe()
    assert facts["samples"] == 21
    assert facts["other_files"] == 1
    assert len(facts["sha256"]) == 64
    assert sum(task.size(s) for s in ("train", "val", "test")) == 21
    stored = {tuple(image.flatten().tolist()) for image in task.images}
    assert tuple(picture(77).transpose(2, 0, 1).flatten().tolist()) in stored


def test_folders_of_parts_keep_their_parts(tmp_path):
    for p, part in enumerate(("train", "valid", "test")):
        for c in range(2):
            (tmp_path / part / f"c{c}").mkdir(parents=True)
            for i in range(3 + p):
                Image.fromarray(picture(100 * p + 10 * c + i)).save(tmp_path / part / f"c{c}" / f"{i}.png")
    task = ClassifyImagesTask.prepare(tmp_path)
    assert [task.size(s) for s in ("train", "val", "test")] == [6, 8, 10]
    refused(tmp_path, "has parts of its own, train, val and test", split="0.5/0.3/0.2")
    refused(tmp_path, "holds a test part of its own: leave out test", test=tmp_path / "test")


def test_a_validation_folder_alone_leaves_the_test_part_to_be_drawn(tmp_path):
    for p, part in enumerate(("train", "val")):
        for c in range(2):
            (tmp_path / part / f"c{c}").mkdir(parents=True)
            for i in range(10):
                Image.fromarray(picture(100 * p + 10 * c + i)).save(tmp_path / part / f"c{c}" / f"{i}.png")
    task = ClassifyImagesTask.prepare(tmp_path)
    assert [task.size(s) for s in ("train", "val", "test")] == [16, 20, 4]


def test_a_table_of_paths(photos):
    lines = ["file,kind,split,who"]
    for name in ("cat", "dog"):
        lines += [f"photos/{name}/{i}.png,{name}s,{'test' if i > 7 else 'train'},{i % 4}" for i in range(10)]
    table = photos.parent / "list.csv"
    table.write_text("\n".join(lines) + "\n")
    task = ClassifyImagesTask.prepare(table, label="kind", group="who")
    assert task.info.class_names == ("cats", "dogs")
    assert task.size("test") == 4
    whose = {s: set(task.sample_groups(s).tolist()) for s in ("train", "val")}
    assert not whose["train"] & whose["val"]
    refused(table, "no column called label or class")
    refused(table, "unknown label column 'sort'", label="sort")
    table.write_text(lines[0] + "\nphotos/cat/0.png,,train,1\n")
    refused(table, r"line 2: the column 'kind' is empty", label="kind")
    table.write_text(lines[0] + "\nphotos/cat/99.png,cats,train,1\n")
    refused(table, r"line 2: 'photos/cat/99.png' is no file", label="kind")
    table.write_text(lines[0] + "\nphotos/cat/0.png,cats,holdout,1\n")
    refused(table, r"line 2: the part 'holdout' is unknown", label="kind")
    table.write_text(lines[0] + "\n" + 2 * "photos/cat/0.png,cats,train,1\n")
    refused(table, "line 3: 'photos/cat/0.png' stands in line 2 too", label="kind")
    table.write_bytes(b"\xff\xfe\x00\x01\x02")
    refused(table, "is neither images nor a CSV file")
    refused(photos, "label name columns of a CSV file", label="kind")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(folder, count=40, zipped=True, stem="train"):
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 7), dtype=np.uint8)
    labels = (np.arange(count) % 4).astype(np.uint8)
    for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
        raw = idx(array)
        (folder / (name + (".gz" if zipped else ""))).write_bytes(gzip.compress(raw) if zipped else raw)
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path, zipped):
    images, labels = mnist_like(tmp_path / "m", zipped=zipped)
    task = ClassifyImagesTask.prepare(tmp_path / "m")
    assert task.info.size == (9, 7)
    assert task.info.channels == 1
    assert torch.equal(task.images[:, 0], torch.from_numpy(images))
    assert task._tensors["labels"].tolist() == labels.tolist()
    mnist_like(tmp_path / "m", count=8, zipped=zipped, stem="t10k")
    task = ClassifyImagesTask.prepare(tmp_path / "m")
    assert task.size("test") == 8
    file = next((tmp_path / "m").glob("train-images*"))
    assert ClassifyImagesTask.prepare(file).describe()["samples"] == 40


def test_bad_idx_files(tmp_path):
    folder = tmp_path / "m"
    mnist_like(folder, zipped=False)
    pixels, labels = (folder / f"train-{n}-ubyte" for n in ("images-idx3", "labels-idx1"))
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-5])
    refused(folder, "holds 2515 of the 2520 bytes that its head tells")
    pixels.write_bytes(whole + b"x")
    refused(folder, "holds more than the 2520 bytes")
    pixels.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 28))
    refused(folder, "says that it holds an array of shape")
    pixels.write_bytes(whole)
    labels.write_bytes(idx(np.zeros(39, np.uint8)))
    refused(folder, "has 39 labels for the 40 images")
    labels.unlink()
    refused(folder, "has no file of labels beside it, such as train-labels-idx1-ubyte")
    pixels.unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-30])
    refused(folder, "is a damaged gzip file")


def test_npz_files(tmp_path):
    x = picture(0, (30, 8, 6), 3)
    y = np.arange(30) % 3
    file = tmp_path / "a.npz"
    for arrays in (
        {"images": x, "labels": y},
        {"x": x.transpose(0, 3, 1, 2), "y": y[:, None]},
        {"x": (x / 255).astype(np.float32), "y": y.astype(float)},
        {"x": x.astype(np.uint16) * 257, "y": y.astype(np.int8)},
        {"train_images": x, "train_labels": y.astype("U3")},
    ):
        np.savez(file, **arrays)
        task = ClassifyImagesTask.prepare(file)
        assert torch.equal(task.images, torch.from_numpy(x).movedim(-1, 1)), list(arrays)
        assert task._tensors["labels"].tolist() == y.tolist()
    parts = {f"{part}_{what}": a for part in ("train", "val", "test") for what, a in (("images", x), ("labels", y))}
    np.savez(file, **parts)
    task = ClassifyImagesTask.prepare(file)
    assert [task.size(s) for s in ("train", "val", "test")] == [30, 30, 30]
    assert any("30 images stand in several parts" in note for note in task.describe()["notes"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "has no array 'labels'"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(3)}, r"labels has shape \(3,\)"),
        ({"images": np.zeros((4, 64), np.uint8), "labels": np.arange(4)}, r"images has shape \(4, 64\)"),
        ({"images": np.full((4, 8, 8), -3.0), "labels": np.arange(4)}, "holds values from -3 to -3"),
        ({"images": np.full((4, 8, 8), np.nan), "labels": np.arange(4)}, "holds missing or infinite values"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.array([0, 1, np.nan, 1])}, "labels of image 2 is nan"),
        ({"pictures": np.zeros((4, 8, 8))}, "holds the arrays pictures that cannot be told"),
        ({"x": np.zeros((4, 8, 8)), "y": np.arange(4), "more": np.zeros(3)}, "holds the arrays more that"),
        ({"x": np.array([{}], dtype=object), "y": np.arange(1)}, "not a whole .npz file of plain arrays"),
    ],
)
def test_bad_npz_files(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", message)


def test_a_cut_npz_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8)), y=np.arange(4))
    raw = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(raw[: len(raw) // 2])
    refused(tmp_path / "a.npz", "not a whole .npz file")


def test_an_npz_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((400, 50, 50), np.uint8), y=np.arange(400))
    monkeypatch.setattr("foveate.tasks.classify_images.arrays.MOST_BYTES", 100_000)
    refused(tmp_path / "a.npz", "unpacks to 0 MiB, which is refused")


# ----- files as viewers show them


def pixels(path):
    return decode(path.read_bytes(), path)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_formats(tmp_path, ending):
    flat = np.full((9, 7, 3), (200, 40, 90), np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(flat).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert np.abs(pixels(path).astype(int) - flat).max() <= (3 if ending == "jpg" else 0)


def test_sixteen_bits_keep_their_high_end(tmp_path):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    for ending in ("png", "tiff"):
        Image.fromarray(deep).save(tmp_path / f"a.{ending}")
        assert pixels(tmp_path / f"a.{ending}")[..., 0].tolist() == [[0, 1, 128, 255]]


def test_cmyk_becomes_red_green_blue(tmp_path):
    for ending in ("jpg", "tiff"):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
        found = pixels(tmp_path / f"a.{ending}")
        assert found.shape == (8, 8, 3)
        assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 0, 0)])
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(10, 255), (10, 0)])
    grey.save(tmp_path / "b.png")
    assert pixels(tmp_path / "b.png").tolist() == [[[10], [255]]]


def test_palettes(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    image.save(tmp_path / "b.png", transparency=1)
    assert pixels(tmp_path / "b.png").tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    image.putpalette([0, 0, 0, 100, 100, 100, 255, 255, 255])
    image.save(tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").tolist() == [[[0], [100], [255]]]


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[..., 0].tolist() == [[255, 0]]


def test_the_first_frame_of_an_animation_and_a_note(photos):
    frames = [Image.new("RGB", (10, 12), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixels(photos / "cat" / "moving.gif")[0, 0].tolist() == [255, 0, 0]
    notes = ClassifyImagesTask.prepare(photos).describe()["notes"]
    assert "1 file has several frames, of which the first is read." in notes


def test_exif_orientation_turns_the_image(photos):
    image = Image.fromarray(picture(5, (10, 12)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(photos / "cat" / "turned.png", exif=exif)
    assert np.array_equal(pixels(photos / "cat" / "turned.png"), np.rot90(picture(5, (10, 12)), -1))
    assert ClassifyImagesTask.prepare(photos).info.size == (12, 10)  # alike only when turned


def test_floating_point_pixels_are_refused(photos):
    Image.fromarray(np.zeros((12, 10), np.float32)).save(photos / "cat" / "f.tiff")
    refused(photos, "'.*f.tiff' has floating-point pixels")


# ----- what is wrong


def spoil(kind, path):
    whole = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("this is no image at all, though it is called so")
    elif kind == "corrupt":
        path.write_bytes(whole[:60] + bytes(200) + whole[260:])
    elif kind == "bomb":
        head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        path.write_bytes(whole[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty: it has no bytes"),
        ("cut off", "is damaged or cut off"),
        ("text", "is not an image that can be read"),
        ("corrupt", "is damaged or cut off"),
        ("bomb", "unpacks to .* pixels, more than 89,478,485, and is refused"),
    ],
)
def test_files_that_are_no_whole_images(photos, kind, message):
    spoil(kind, photos / "dog" / "3.png")
    refused(photos, f"'.*dog/3.png' {message}")
    task = ClassifyImagesTask.prepare(photos, skip_bad=True)
    facts = task.describe()
    assert facts["samples"] == 19
    assert facts["skipped"] == 1
    assert any("dog/3.png" in note for note in facts["notes"])


def test_images_that_are_only_just_too_large_are_refused(photos, monkeypatch):
    monkeypatch.setattr("foveate.tasks.classify_images.decode.MOST_PIXELS", 119)
    refused(photos, r"unpacks to 10 x 12 pixels, more than 119")


def test_every_damaged_file_ends_in_one_sentence(tmp_path):
    """300 files with random bytes changed or cut, in every format: an image, or a refusal that names the file."""
    generator = np.random.default_rng(0)
    refusals = []
    for ending in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(picture(3, (24, 20))).save(path)
        whole = path.read_bytes()
        for _ in range(50):
            raw = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            for at in generator.integers(0, len(raw), 4):
                raw[at] = generator.integers(256)
            try:
                assert decode(bytes(raw), path).dtype == np.uint8
            except ValueError as error:
                refusals.append(str(error).count(str(path)) == 1 and "\n" not in str(error))
    assert len(refusals) > 150
    assert all(refusals)


def test_one_class_no_class_and_empty_classes(photos):
    (photos / "bird").mkdir()
    refused(photos, "the class folder '.*bird' holds no image")
    (photos / "bird").rmdir()
    for file in (photos / "dog").iterdir():
        file.unlink()
    (photos / "dog").rmdir()
    refused(photos, "has one class only, 'cat'")
    refused(photos / "cat", "holds no sub-folders: a folder of images for each class is needed")
    refused(photos / "cat" / "0.png", "is one image: name a folder")
    refused(photos.parent / "nothing", "does not exist")
    (photos.parent / "void").mkdir()
    refused(photos.parent / "void", "holds no sub-folders")


def test_an_image_beside_the_class_folders(photos):
    Image.fromarray(picture(1)).save(photos / "stray.jpg")
    refused(photos, "stray.jpg' lies beside the folders of the classes")


def test_links_are_followed_and_loops_are_refused(photos):
    os.symlink(photos / "dog", photos / "wolf")
    refused(photos, "are the same file in two classes")
    (photos / "wolf").unlink()
    os.symlink(photos, photos / "cat" / "up")
    refused(photos, "'.*cat/up' is a link that leads back to a folder it lies in")
    (photos / "cat" / "up").unlink()
    os.symlink(photos / "gone.png", photos / "cat" / "broken.png")
    refused(photos, r"broken.png' is a link to nothing: remove it \(or leave such files out .*\)\.$")
    assert ClassifyImagesTask.prepare(photos, skip_bad=True).describe()["skipped"] == 1


def test_the_same_file_in_two_classes(photos):
    (photos / "dog" / "twin.png").write_bytes((photos / "cat" / "4.png").read_bytes())
    refused(photos, "'cat/4.png' and 'dog/twin.png' are the same file in two classes")
    facts = ClassifyImagesTask.prepare(photos, skip_bad=True).describe()
    assert facts["samples"] == 19
    assert facts["contradicting"] == 2


def test_equal_files_of_one_class_stay_in_one_part(photos):
    for i in range(30):
        (photos / "dog" / f"copy{i}.png").write_bytes((photos / "dog" / f"{i % 10}.png").read_bytes())
    task = ClassifyImagesTask.prepare(photos)
    groups = [set(task.sample_groups(s).tolist()) for s in ("train", "val", "test")]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]


def test_odd_names(photos):
    for old, new in (("cat", "Kätzchen, groß & 'klein'"), ("dog", " 犬\n")):
        (photos / old).rename(photos / new)
    assert set(ClassifyImagesTask.prepare(photos).info.class_names) == {"Kätzchen, groß & 'klein'", " 犬\n"}
    os.rename(photos / " 犬\n", os.fsencode(photos) + b"/\xff\xfe")
    refused(photos, "is not UTF-8: rename it")


def test_a_class_that_only_the_test_part_has(photos):
    test = photos.parent / "test"
    (test / "cat").mkdir(parents=True)
    (test / "fox").mkdir()
    for name in ("cat", "fox"):
        Image.fromarray(picture(900 + len(name) + ord(name[0]))).save(test / name / "a.png")
    refused(photos, "the class 'fox' occurs in the test part but not among the training images", test=test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": "3"}, "image_size='3' is not possible"),
        ({"image_size": 12.5}, "image_size=12.5 is not possible"),
        ({"fit": "pad"}, "fit='pad' is not possible: it must be 'crop' or 'stretch'"),
        ({"channels": 2}, "channels=2 is not possible"),
        ({"augment": "flips"}, "unknown kind of augment 'flips': did you mean 'flip'"),
        ({"split": "0.7/0.3"}, "split='0.7/0.3' is not possible"),
        ({"split_seed": -1}, "split_seed=-1 is not possible"),
        ({"label": "kind"}, "label cannot be given without data"),
    ],
)
def test_bad_options(options, message):
    refused(None, message, **options)


def test_too_few_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(ord(name))).save(tmp_path / name / "1.png")
    refused(tmp_path, "has too few images .2. for a val part: give more")


# ----- sizes


def test_the_size_that_is_chosen():
    assert choose_size([(30, 17)] * 3, None) == (30, 17)
    assert choose_size([(300, 300)] * 3, None) == (224, 224)
    assert choose_size([(400, 800), (500, 1000), (600, 1200)], None) == (112, 224)
    assert choose_size([(10, 20), (12, 20)], None) == (8, 24) or choose_size([(10, 20), (12, 20)], None) == (8, 16)
    assert choose_size([(10, 20)], "24x32") == (24, 32)
    assert choose_size([(10, 20)], 64) == (64, 64)


@pytest.mark.parametrize("size", [(16, 12), (60, 45), (31, 80)])
def test_resizing_is_pillows(size):
    """Bicubic with antialiasing: at most one level from pillow, whose weights are rounded to 8 bits and more."""
    smooth = np.asarray(Image.fromarray(picture(2, (6, 5))).resize((40, 30), Image.Resampling.BICUBIC))
    ours = fitted(smooth, size, 3, "stretch").movedim(0, -1).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(smooth).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_cropping_keeps_the_shape():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert bool((fitted(wide, (10, 10), 3, "crop") == 255).all())
    assert fitted(wide, (10, 10), 3, "stretch").float().mean() < 100


def test_colour_becomes_grey_as_pillow_does_it():
    colour = picture(4)
    theirs = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    assert np.abs(fitted(colour, (12, 10), 1, "crop")[0].numpy() - theirs).max() <= 1
