"""CIFAR-10 as its authors publish it, and folders and archives of images: as they should be, and as they should not."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gasim_ray.errors import UserError
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.evaluation.readers import CIFAR_PICKLES, CIFAR_RECORDS, read_image_archive, read_image_folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(seed: int, count: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def write_pickles(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for index, name in enumerate(CIFAR_PICKLES):
        batch = {b"data": pixels(index).reshape(2, -1), b"labels": [index, 9], b"batch_label": b"x"}
        # Protocol 2, as Python 2 wrote the published files.
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def write_records(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for index, name in enumerate(CIFAR_RECORDS):
        rows = np.concatenate([np.array([[index], [9]], np.uint8), pixels(index).reshape(2, -1)], 1)
        (folder / name).write_bytes(rows.tobytes())
    return folder


def write_images(folder: Path, classes: tuple[str, ...] = CLASSES, side: int = 32) -> Path:
    for part, seed in (("train", 0), ("test", 1)):
        for index, name in enumerate(classes):
            place = folder / part / name
            place.mkdir(parents=True)
            image = np.random.default_rng([seed, index]).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(image).save(place / "0000.png")
    return folder


@pytest.mark.parametrize(
    ("write", "place"), [(write_pickles, "cifar-10-batches-py"), (write_records, "cifar-10-batches-bin")]
)
def test_published_batches_are_read(write: Callable[[Path], Path], place: str, tmp_path: Path) -> None:
    write(tmp_path / place)
    dataset = load_dataset("cifar10", tmp_path)
    assert (dataset.train_images == np.concatenate([pixels(index) for index in range(5)])).all()
    assert dataset.train_labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert (dataset.test_images == pixels(5)).all()
    assert dataset.test_labels.tolist() == [5, 9]
    assert dataset.class_names == CLASSES


def test_folders_and_archives_of_images_give_the_same(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "cifar10")
    with tarfile.open(tmp_path / "cifar10-jpeg.tar.xz", "w:xz") as archive:
        for part in ("train", "test"):
            archive.add(folder / part, part)
    (tmp_path / "apart").mkdir()
    (tmp_path / "cifar10-jpeg.tar.xz").rename(tmp_path / "apart" / "cifar10-jpeg.tar.xz")
    first, second = load_dataset("cifar10", tmp_path), load_dataset("cifar10", tmp_path / "apart")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert (getattr(first, name) == getattr(second, name)).all()
    assert first.train_labels.tolist() == list(range(10))
    itself = load_dataset("cifar10", folder)
    assert (itself.train_images == first.train_images).all()
    expected = np.random.default_rng([0, 3]).integers(0, 256, (32, 32, 3), np.uint8)
    assert (first.train_images[3] == expected.transpose(2, 0, 1)).all()


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("this-code-ran",))


def test_a_pickle_that_holds_code_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_pickles(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Hostile()}))
    with pytest.raises(UserError, match=r"test_batch: not a batch of CIFAR-10 \(it asks for \w+\.mkdir"):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "this-code-ran").exists()


def test_a_batch_of_fewer_records_than_the_others_is_named(tmp_path: Path) -> None:
    path = write_records(tmp_path / "cifar-10-batches-bin") / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(UserError, match=r"data_batch_3\.bin: 1 images where other batches have 2; fetch it again"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(("write", "name"), [(write_pickles, "data_batch_3"), (write_records, "data_batch_3.bin")])
def test_a_truncated_batch_is_named(write: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar-10-batches-py") if name[-1] == "3" else write(tmp_path / "cifar-10-batches-bin")
    (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{name}: .*fetch it again"):
        load_dataset("cifar10", tmp_path)


def test_an_image_folder_of_ones_own_is_a_data_set(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", ("dog", "cat"), side=20)
    dataset = load_dataset("pets", tmp_path)
    assert (dataset.class_names, dataset.spec.shape) == (("cat", "dog"), (3, 20, 20))
    assert dataset.train_labels.tolist() == [0, 1]
    read = dataset.spec.normalise(torch.from_numpy(dataset.train_images).float())
    torch.testing.assert_close(read.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(read.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match=f"'pests' is not known; .* nor are there folders pests/train .* in {tmp_path}"):
        load_dataset("pests", tmp_path)
    with pytest.raises(UserError, match=f"'{tmp_path}/pets' is not known"):
        load_dataset(f"{tmp_path}/pets", tmp_path)
    for hidden in (tmp_path / "pets" / "train" / ".hidden" / "0.png", tmp_path / "pets" / "test" / "cat" / ".DS_Store"):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"no image")
    assert load_dataset("pets", tmp_path).class_names == ("cat", "dog")
    (tmp_path / "pets" / "train" / "owl").mkdir()
    with pytest.raises(UserError, match=r"pets/train/owl holds no images; fill it, or remove it"):
        load_dataset("pets", tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_an_archive_that_is_damaged_is_refused(damage: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as archive:
        archive.add(write_images(tmp_path / "images") / "train", "train")
    content = (tmp_path / "x.tar.xz").read_bytes()
    half = len(content) // 2
    rest = b"" if damage == "cut off" else bytes(100) + content[half + 100 :]
    (tmp_path / "x.tar.xz").write_bytes(content[:half] + rest)
    # Where the damage shows first, in the archive's own sums or in a picture, depends on the bytes.
    with pytest.raises(UserError, match=r"x\.tar\.xz: (cannot be read|train/.*png is no image) \(.*; fetch it again"):
        read_image_archive(tmp_path, "x.tar.xz", CLASSES)


def test_an_archive_of_which_a_later_header_is_damaged_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(write_images(tmp_path / "images") / "train", "train")
    with tarfile.open(tmp_path / "x.tar") as archive:
        offset = archive.getmembers()[-1].offset
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[offset : offset + 512] = b"?" * 512
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar: cannot be read \(a header is damaged"):
        read_image_archive(tmp_path, "x.tar", CLASSES)


def test_a_grey_picture_among_coloured_ones_is_read_as_one(tmp_path: Path) -> None:
    folder, grey = write_images(tmp_path / "mixed", ("cat", "dog")), np.full((32, 32), 7, np.uint8)
    Image.fromarray(grey).save(folder / "test" / "dog" / "0000.png")
    train, _, test, _ = read_image_folder(folder, ("cat", "dog"))
    assert train.shape == test.shape == (2, 3, 32, 32)
    assert (test[1] == 7).all()


def test_folders_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", ("cat", "dog"))
    (folder / "test" / "dog").rename(folder / "test" / "owl")
    with pytest.raises(UserError, match="the same folders of classes"):
        read_image_folder(folder, ("cat", "dog"))
    other = write_images(tmp_path / "b", ("cat", "dog"))
    (other / "train" / "cat" / "0000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/cat/0000\.png is no image"):
        read_image_folder(other, ("cat", "dog"))
    third = write_images(tmp_path / "c", ("cat", "dog"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(third / "train" / "cat" / "0001.png")
    with pytest.raises(UserError, match="images of several shapes"):
        read_image_folder(third, ("cat", "dog"))


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "cifar10", side=16)
    with pytest.raises(UserError, match=r"images of \[3, 16, 16\], not \[3, 32, 32\]"):
        load_dataset("cifar10", tmp_path)


def test_folders_that_are_not_named_after_the_classes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "cifar10", tuple(f"class{index}" for index in range(10)))
    with pytest.raises(UserError, match=r"named class0, class1, .*, the classes airplane, automobile, .*; rename each"):
        load_dataset("cifar10", tmp_path)
    # In another order than that of the names.
    folder = write_images(tmp_path / "other", ("dog", "cat"))
    assert read_image_folder(folder, ("dog", "cat"))[1].tolist() == [1, 0]
