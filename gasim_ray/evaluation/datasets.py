"""Labelled images for classifiers: where they are looked for, how they are read, and the sample that comes along.

Distillation never reads these: they train a teacher beforehand and measure a student afterwards. Another data set is
one entry in SOURCES, and, if it is not kept as idx files, one function that reads a folder.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

#: Training images, training labels, test images, test labels.
Splits = tuple[Images, Labels, Images, Labels]

#: The folder that the user names once for all commands.
DATA_VARIABLE = "GASIM_DATA"

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split as their authors split them."""

    #: Its name in SOURCES.
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
    #: What a classifier of these reads: CHW, uint8, with the normalisation that is usual for the data set.
    spec: ObservationSpec


@dataclass(frozen=True)
class Source:
    """How a data set is recognised in a folder, read and normalised."""

    #: Folders, under the one that is searched, that may hold the files; "" is that folder itself.
    places: tuple[str, ...]
    #: Files that must be there; each may carry `.gz` as well.
    file_names: tuple[str, ...]
    #: Reads the folder that holds the files; raises UserError if one is corrupt.
    read: Callable[[Path], Splits]
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


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Read a data set by name.

    A folder that is given must hold it. Without one, $GASIM_DATA, ./data and ../shared/datasets are searched, from
    the current folder and from the repository's root. `mnist-sample` comes with the package and needs no folder.

    Raises UserError if the name is unknown, the files are not there (it says which go where), or one is corrupt.
    """
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SOURCES)}"
        raise UserError(f"dataset: {name!r} is not known; {hint}")
    source = SOURCES[name]
    splits = source.read(_locate(name, source, folder)) if source.file_names else source.read(Path())
    for images, labels in (splits[:2], splits[2:]):
        _check(name, source, images, labels)
    return Dataset(name, *splits, source.class_names, source.spec())


def _folders(folder: Path | None) -> list[Path]:
    if folder is not None:
        return [folder]
    named = [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []
    roots = (Path.cwd(), _REPOSITORY)
    usual = [(root / place).resolve() for place in ("data", "../shared/datasets") for root in roots]
    return list(dict.fromkeys(named + usual))


def _locate(name: str, source: Source, folder: Path | None) -> Path:
    searched = _folders(folder)
    for candidate in (root / place for root in searched for place in source.places):
        if all(_plain_or_gzipped(candidate / file).exists() for file in source.file_names):
            return candidate
    raise UserError(
        f"dataset: {name} is not in {', '.join(map(str, searched))}; put {', '.join(source.file_names)} "
        f"(as they are or as .gz) into {source.places[0]} under a folder named by --data or ${DATA_VARIABLE}"
    )


def _plain_or_gzipped(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


def _check(name: str, source: Source, images: Images, labels: Labels) -> None:
    if images.shape[1:] != source.shape:
        raise UserError(f"dataset: {name} holds images of {list(images.shape[1:])}, not {list(source.shape)}")
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"dataset: {name} holds {len(images)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        raise UserError(f"dataset: {name} has label {labels.max()}, but {len(source.class_names)} classes")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped, as an array of the shape that its header states.

    Raises UserError if the file cannot be read, is not idx, or is shorter or longer than its header says.
    """
    path = _plain_or_gzipped(path)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); it is missing or damaged, fetch it again") from error
    # Header: two zero bytes, the type (8 is unsigned byte), the number of axes, then each axis as a big-endian int32.
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * axes:
        raise UserError(f"{path}: not an idx file of unsigned bytes; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    expected = int(np.prod(shape, dtype=object))
    if values.size != expected:
        raise UserError(f"{path}: {values.size} values where its header says {list(shape)}; fetch it again")
    return values.reshape(shape).copy()  # what lies on bytes is read-only, and PyTorch warns of that


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _read_idx_folder(folder: Path) -> Splits:
    arrays = []
    for file, axes in zip(_IDX_FILES, (3, 1, 3, 1), strict=True):
        array = read_idx(folder / file)
        if array.ndim != axes:
            raise UserError(f"{folder / file}: {array.ndim} axes where {axes} belong; is it another file renamed?")
        arrays.append(array)
    train_images, train_labels, test_images, test_labels = arrays
    return (
        train_images[:, None],
        train_labels.astype(np.int64),
        test_images[:, None],
        test_labels.astype(np.int64),
    )


def _read_sample(_: Path) -> Splits:
    """The MNIST images that come with the package; mnist_sample.py says how they were chosen."""
    with as_file(files("gasim_ray") / "assets" / "mnist-sample.npz") as path:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                members: dict[str, npt.NDArray[Any]] = {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise UserError(f"{path}: cannot be read ({error}); install the package again") from error
    return (
        members["train_images"][:, None],
        members["train_labels"].astype(np.int64),
        members["test_images"][:, None],
        members["test_labels"].astype(np.int64),
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

#: Name -> how it is found and read. `mnist-sample` lists no files: it lies in the package.
SOURCES: dict[str, Source] = {
    "mnist": Source(
        ("MNIST/raw", "MNIST", ""), _IDX_FILES, _read_idx_folder, _DIGITS, (1, 28, 28), _MNIST_MEAN, _MNIST_STD
    ),
    "fashion-mnist": Source(
        ("FashionMNIST/raw", "FashionMNIST", ""),
        _IDX_FILES,
        _read_idx_folder,
        _GARMENTS,
        (1, 28, 28),
        _FASHION_MEAN,
        _FASHION_STD,
    ),
    "mnist-sample": Source((), (), _read_sample, _DIGITS, (1, 28, 28), _MNIST_MEAN, _MNIST_STD),
}
