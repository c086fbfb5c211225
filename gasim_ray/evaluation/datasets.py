"""Labelled images for classifiers: where they are looked for, how they are read, and the sample that comes along.

Distillation never reads these: they train a teacher beforehand and measure a student afterwards. Another data set is an
image folder, or one entry in SOURCES and, if it is kept in another layout than those of readers.py, one function there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError, nearest
from gasim_ray.evaluation import readers
from gasim_ray.evaluation.readers import Images, Labels, Splits, plain_or_gzipped

#: The folder that the user names once for all commands.
DATA_VARIABLE = "GASIM_DATA"

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class Modes:
    """The classes that a data set had before they were merged: hidden from teacher and student."""

    #: (M,) int64.
    test_labels: Labels
    #: What each means.
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split as their authors split them."""

    #: Its name in SOURCES, or that of its folder.
    name: str
    #: (N, channels, height, width) uint8.
    train_images: Images
    #: (N,) int64, each below the number of class names.
    train_labels: Labels
    #: (M, channels, height, width) uint8.
    test_images: Images
    #: (M,) int64.
    test_labels: Labels
    #: What label 0, 1, ... means.
    class_names: tuple[str, ...]
    #: What a classifier of these reads: CHW, uint8, with the normalisation that is usual, or measured on one's own.
    spec: ObservationSpec
    #: Where classes were merged: what they were before.
    modes: Modes | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which a data set is kept."""

    #: Folders, under the one that is searched, that may hold the files; "" is that folder itself.
    places: tuple[str, ...]
    #: Files or folders that must be there; a file may carry `.gz` as well.
    file_names: tuple[str, ...]
    #: Reads the folder that holds them; raises UserError if one is corrupt.
    read: Callable[[Path], Splits]


@dataclass(frozen=True)
class Source:
    """How a data set is recognised in a folder, read and normalised."""

    #: Those that are looked for, in this order; none for what comes with the package.
    layouts: tuple[Layout, ...]
    #: What label 0, 1, ... means.
    class_names: tuple[str, ...]
    #: Shape of an image: (channels, height, width).
    shape: tuple[int, int, int]
    #: Mean of the training pixels in [0, 255], one a channel or one for all.
    mean: tuple[float, ...]
    #: Their standard deviation, likewise.
    std: tuple[float, ...]

    def spec(self) -> ObservationSpec:
        """What a classifier of these images reads."""
        return ObservationSpec(self.shape, "uint8", "CHW", (0.0,), (255.0,), self.mean, self.std)


def load_dataset(name: str, folder: Path | None = None, groups: str = "") -> Dataset:
    """Read a data set by name; `groups` merges classes, see `grouped`.

    A folder that is given must hold it. Without one, $GASIM_DATA, ./data and ../shared/datasets are searched, from
    the current folder and from the repository's root. `mnist-sample` comes with the package and needs no folder. Any
    other name is that of an image folder there (train/CLASS/* and test/CLASS/*).

    Raises UserError if the name is unknown, the files are not there (it says which go where), one is corrupt, or the
    groups are no partition of the classes.
    """
    if name in SOURCES:
        dataset = _published(name, folder)
    elif place := _image_folder(name, folder):
        dataset = _own(name, place)
    else:
        known, searched = nearest(name, SOURCES), ", ".join(map(str, _folders(folder)))
        raise UserError(
            f"dataset: {name!r} is not known; {known}; nor are there folders {name}/train and {name}/test in {searched}"
        )
    return grouped(dataset, groups) if groups else dataset


def _published(name: str, folder: Path | None) -> Dataset:
    source = find_source(name)
    splits = _read(name, source, folder)
    for images, labels in (splits[:2], splits[2:]):
        _check(name, source, images, labels)
    return Dataset(name, *splits, source.class_names, source.spec())


def _image_folder(name: str, folder: Path | None) -> Path | None:
    """Where train/CLASS/* and test/CLASS/* of that name lie; a path is no name."""
    places = (root / name for root in _folders(folder) if Path(name).name == name)
    return next((place for place in places if all((place / part).is_dir() for part in ("train", "test"))), None)


def _own(name: str, place: Path) -> Dataset:
    """Classes are the folders in order of their names; how images are normalised is measured on those for training."""
    folders = [path for path in sorted((place / "train").iterdir()) if path.is_dir() and path.name[0] != "."]
    for path in folders:
        if not any(path.iterdir()):
            raise UserError(f"dataset: {path} holds no images; fill it, or remove it")
    classes = tuple(path.name for path in folders)
    splits = readers.read_image_folder(place, classes)
    channels, height, width = splits[0].shape[1:]
    source = Source((), classes, (channels, height, width), *_normalisation(splits[0]))
    return Dataset(name, *splits, classes, source.spec())


def _normalisation(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel."""
    total, squares = np.zeros(images.shape[1]), np.zeros(images.shape[1])
    # Some at a time: as float64 all take eight times their memory.
    for part in np.array_split(images, -(-len(images) // 1000)):
        pixels = part.astype(np.float64)
        total += pixels.sum((0, 2, 3))
        squares += np.square(pixels).sum((0, 2, 3))
    mean = total / images[:, 0].size
    std = np.sqrt((squares / images[:, 0].size - mean**2).clip(1.0))
    return tuple(map(float, mean.round(2))), tuple(map(float, std.round(2)))


def find_source(name: str) -> Source:
    """The entry of SOURCES; raises UserError that names the nearest."""
    if name not in SOURCES:
        raise UserError(f"dataset: {name!r} is not known; {nearest(name, SOURCES)}")
    return SOURCES[name]


def grouped(dataset: Dataset, groups: str) -> Dataset:
    """The same images with classes merged: '0,1/2,3/4' makes classes 0 or 1, 2 or 3, and 4.

    The classes before remain as the hidden modes of the new ones. Raises UserError unless each is in one group.
    """
    members = parse_groups(groups, len(dataset.class_names))
    new_label = np.zeros(len(dataset.class_names), np.int64)
    for index, group in enumerate(members):
        new_label[list(group)] = index
    return replace(
        dataset,
        train_labels=new_label[dataset.train_labels],
        test_labels=new_label[dataset.test_labels],
        class_names=tuple("+".join(dataset.class_names[label] for label in group) for group in members),
        modes=Modes(dataset.test_labels, dataset.class_names),
    )


def parse_groups(groups: str, classes: int) -> tuple[tuple[int, ...], ...]:
    """'0,1/2,3' -> ((0, 1), (2, 3)); raises UserError unless each of the classes is in exactly one of two or more."""
    try:
        members = tuple(tuple(int(label) for label in group.split(",")) for group in groups.split("/"))
    except ValueError as error:
        raise UserError(f"groups: {groups!r} cannot be read; write class numbers as 0,1/2,3/4") from error
    named = [label for group in members for label in group]
    for label in named:
        if not 0 <= label < classes:
            raise UserError(f"groups: class {label} does not exist; there are 0 to {classes - 1}")
        if named.count(label) > 1:
            raise UserError(f"groups: class {label} is named {named.count(label)} times; name each once")
    missing = sorted(set(range(classes)) - set(named))
    if missing:
        raise UserError(f"groups: class {', '.join(map(str, missing))} is in no group; name each of the {classes} once")
    if len(members) < 2:
        raise UserError(f"groups: {groups!r} is one group; a classifier needs two or more")
    return members


def _folders(folder: Path | None) -> list[Path]:
    if folder is not None:
        return [folder]
    named = [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []
    roots = (Path.cwd(), _REPOSITORY)
    usual = [(root / place).resolve() for place in ("data", "../shared/datasets") for root in roots]
    return list(dict.fromkeys(named + usual))


def _read(name: str, source: Source, folder: Path | None) -> Splits:
    if not source.layouts:
        return readers.read_sample()
    searched = _folders(folder)
    for root in searched:
        for layout in source.layouts:
            for place in layout.places:
                if all(plain_or_gzipped(root / place / file).exists() for file in layout.file_names):
                    return layout.read(root / place)
    ways = " or ".join(f"{', '.join(layout.file_names)} into {layout.places[0] or '.'}" for layout in source.layouts)
    raise UserError(
        f"dataset: {name} is not in {', '.join(map(str, searched))}; put {ways}, "
        f"under a folder named by --data or ${DATA_VARIABLE} (idx files as they are or as .gz)"
    )


def _check(name: str, source: Source, images: Images, labels: Labels) -> None:
    if images.shape[1:] != source.shape:
        raise UserError(
            f"dataset: {name} holds images of {list(images.shape[1:])}, not {list(source.shape)}; "
            "is it another data set? Give its folder, or fetch it again"
        )
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(
            f"dataset: {name} holds {len(images)} images and {len(labels)} labels; "
            "the files are no pair, fetch them again"
        )
    strange = labels[(labels < 0) | (labels >= len(source.class_names))]
    if len(strange):
        raise UserError(
            f"dataset: {name} has label {strange[0]}, but {len(source.class_names)} classes; "
            "the labels are another data set's, fetch them again"
        )


_DIGITS = tuple(str(digit) for digit in range(10))
_GARMENTS = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

# The usual normalisation, 0.1307 and 0.3081 for MNIST and 0.2860 and 0.3530 for Fashion-MNIST, in units of [0, 255].
_MNIST_MEAN, _MNIST_STD = (33.318,), (78.567,)
_FASHION_MEAN, _FASHION_STD = (72.940,), (90.021,)

_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Mean and standard deviation of the published training pixels, 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616.
_CIFAR_MEAN, _CIFAR_STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)


def _idx(place: str) -> tuple[Layout, ...]:
    return (Layout((f"{place}/raw", place, ""), readers.IDX_FILES, readers.read_idx_folder),)


#: Name -> how it is found and read.
SOURCES: dict[str, Source] = {
    "mnist": Source(_idx("MNIST"), _DIGITS, (1, 28, 28), _MNIST_MEAN, _MNIST_STD),
    "fashion-mnist": Source(_idx("FashionMNIST"), _GARMENTS, (1, 28, 28), _FASHION_MEAN, _FASHION_STD),
    "cifar10": Source(
        (
            Layout(("cifar-10-batches-py", ""), readers.CIFAR_PICKLES, readers.read_cifar_pickles),
            Layout(("cifar-10-batches-bin", ""), readers.CIFAR_RECORDS, readers.read_cifar_records),
            Layout(("cifar10", ""), ("train", "test"), partial(readers.read_image_folder, class_names=_CIFAR)),
            Layout(
                ("",),
                ("cifar10-jpeg.tar.xz",),
                partial(readers.read_image_archive, name="cifar10-jpeg.tar.xz", class_names=_CIFAR),
            ),
        ),
        _CIFAR,
        (3, 32, 32),
        _CIFAR_MEAN,
        _CIFAR_STD,
    ),
    "mnist-sample": Source((), _DIGITS, (1, 28, 28), _MNIST_MEAN, _MNIST_STD),
}
