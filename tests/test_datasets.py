"""Data sets: the embedded sample, idx files as they should be, and as they should not."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gasim_ray.errors import UserError
from gasim_ray.evaluation.datasets import DATA_VARIABLE, SOURCES, grouped, load_dataset, parse_groups
from gasim_ray.evaluation.mnist_sample import first_of_each_class, write_sample
from gasim_ray.evaluation.readers import read_idx

NAMES = SOURCES["mnist"].layouts[0].file_names


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, *, suffix="", images=3, labels=3, label=7, side=28):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if "images" in name:
            array = np.arange(images * side * side, dtype=np.uint8).reshape(images, side, side)
        else:
            array = np.full(labels, label, np.uint8)
        content = idx(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A place from which no data set is found, on a machine that has them too."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("gasim_ray.evaluation.datasets._REPOSITORY", tmp_path / "a" / "repository")
    current = tmp_path / "b" / "current"
    current.mkdir(parents=True)
    monkeypatch.chdir(current)
    return tmp_path


def test_sample_is_balanced_and_small(nowhere):
    sample = load_dataset("mnist-sample")
    assert sample.train_images.shape == (1500, 1, 28, 28)
    assert sample.test_images.shape == (500, 1, 28, 28)
    assert sample.train_images.dtype == np.uint8
    assert sample.train_labels.dtype == np.int64
    assert np.bincount(sample.train_labels).tolist() == [150] * 10
    assert np.bincount(sample.test_labels).tolist() == [50] * 10
    asset = Path(__file__).parents[1] / "gasim_ray" / "assets" / "mnist-sample.npz"
    assert asset.stat().st_size < 1_000_000


def test_sample_labels_belong_to_the_images():
    sample = load_dataset("mnist-sample")
    train, test = (x.reshape(len(x), -1).astype(np.float32) for x in (sample.train_images, sample.test_images))
    centroids = np.stack([train[sample.train_labels == digit].mean(0) for digit in range(10)])
    nearest = ((test[:, None] - centroids) ** 2).sum(2).argmin(1)
    assert (nearest == sample.test_labels).mean() > 0.75


def test_spec_normalises_the_sample():
    sample = load_dataset("mnist-sample")
    pixels = (sample.train_images - sample.spec.mean[0]) / sample.spec.std[0]
    assert abs(pixels.mean()) < 0.05
    assert abs(pixels.std() - 1) < 0.05


def test_sample_is_made_from_the_first_images_of_each_class(tmp_path):
    sample = load_dataset("mnist-sample")
    assert first_of_each_class(np.array([1, 0, 1, 1, 0]), 2).tolist() == [0, 1, 2, 4]
    write_sample(sample, tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        assert (again["train_images"] == sample.train_images[:, 0]).all()
        assert (again["test_labels"] == sample.test_labels).all()


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=6)), st.booleans())
def test_idx_is_read_back(tmp_path_factory, array, zipped):
    folder = tmp_path_factory.mktemp("idx")
    (folder / ("x.gz" if zipped else "x")).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    assert (read_idx(folder / "x") == array).all()


@settings(deadline=None)
@given(st.data(), hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=6)), st.booleans())
def test_truncated_idx_is_refused(tmp_path_factory, data, array, zipped):
    content = gzip.compress(idx(array)) if zipped else idx(array)
    kept = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if zipped else "x")
    path.write_bytes(content[:kept])
    with pytest.raises(UserError, match="fetch it again"):
        read_idx(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" * 4, idx(np.zeros(3, np.uint8)) + b"x", b""])
def test_other_content_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="fetch it again"):
        read_idx(tmp_path / "x")


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_layout_is_found(nowhere, place, suffix):
    write_mnist(nowhere / "given" / place, suffix=suffix)
    dataset = load_dataset("mnist", nowhere / "given")
    assert dataset.train_images.shape == (3, 1, 28, 28)
    assert dataset.test_labels.tolist() == [7, 7, 7]
    assert dataset.train_images.flags.writeable


@pytest.mark.parametrize("folder", ["b/current/data", "b/shared/datasets", "a/repository/data", "a/shared/datasets"])
def test_usual_folders_are_searched(nowhere, folder):
    write_mnist(nowhere / folder / "MNIST" / "raw")
    assert len(load_dataset("mnist").train_images) == 3


def test_the_variable_is_searched_before_the_usual_folders(nowhere, monkeypatch):
    write_mnist(nowhere / "b/current/data")
    write_mnist(nowhere / "named", images=2, labels=2)
    monkeypatch.setenv(DATA_VARIABLE, str(nowhere / "named"))
    assert len(load_dataset("mnist").train_images) == 2


def test_missing_says_which_files_go_where(nowhere):
    with pytest.raises(UserError) as caught:
        load_dataset("fashion-mnist")
    for part in (*NAMES, "FashionMNIST/raw", "--data", "$GASIM_DATA"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_folder_is_refused_even_if_another_holds_the_data(nowhere):
    write_mnist(nowhere / "b/current/data")
    with pytest.raises(UserError, match="elsewhere"):
        load_dataset("mnist", nowhere / "elsewhere")


def test_incomplete_folder_is_refused(nowhere):
    write_mnist(nowhere / "given")
    (nowhere / "given" / NAMES[2]).unlink()
    with pytest.raises(UserError, match=NAMES[2]):
        load_dataset("mnist", nowhere / "given")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": 2}, "3 images and 2 labels; .* fetch them again"),
        ({"label": 10}, "label 10, but 10 classes; .* fetch them again"),
        ({"side": 32}, r"images of \[1, 32, 32\], not \[1, 28, 28\]; is it another data set"),
        ({"images": 0, "labels": 0}, "0 images"),
    ],
)
def test_contradictory_files_are_refused(nowhere, settings, said):
    write_mnist(nowhere / "given", **settings)
    with pytest.raises(UserError, match=said):
        load_dataset("mnist", nowhere / "given")


def test_labels_named_as_images_are_refused(nowhere):
    folder = write_mnist(nowhere / "given")
    (folder / NAMES[0]).write_bytes((folder / NAMES[1]).read_bytes())
    with pytest.raises(UserError, match="1 axes where 3 belong"):
        load_dataset("mnist", folder)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fashion-mnist'"):
        load_dataset("fashon-mnist")
    with pytest.raises(UserError, match="known: mnist, fashion-mnist"):
        load_dataset("zzz")


@given(st.data(), st.integers(2, 12))
def test_groups_are_read_back_and_partition_the_classes(data, classes):
    order = data.draw(st.permutations(range(classes)))
    cuts = sorted(data.draw(st.sets(st.integers(1, classes - 1), min_size=1)))
    members = [tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, classes], strict=True)]
    assert parse_groups("/".join(",".join(map(str, group)) for group in members), classes) == tuple(members)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("0,1/1,2", "class 1 is named 2 times; name each once"),
        ("0,1/2", "class 3 is in no group"),
        ("0/1,2,3,4", "class 4 does not exist; there are 0 to 3"),
        ("0,1,2,3", "one group"),
        ("0,1/2,,3", "write class numbers as 0,1/2,3/4"),
        ("a/b", "write class numbers"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, said):
    with pytest.raises(UserError, match=f"^groups: .*{said}"):
        parse_groups(groups, 4)


def test_merged_classes_keep_their_former_labels_as_hidden_modes():
    sample = load_dataset("mnist-sample")
    merged = load_dataset("mnist-sample", groups="9,1,2,3/0,4,5,6,7,8")
    assert merged.class_names == ("9+1+2+3", "0+4+5+6+7+8")
    assert (merged.train_images == sample.train_images).all()
    assert merged.modes.names == sample.class_names
    for labels, former in ((merged.train_labels, sample.train_labels), (merged.test_labels, sample.test_labels)):
        assert (labels == np.isin(former, [9, 1, 2, 3]).choose([1, 0])).all()
    assert (merged.modes.test_labels == sample.test_labels).all()
    assert grouped(sample, "9,1,2,3/0,4,5,6,7,8").spec == sample.spec
