"""Readers of the layouts in which labelled images are kept: idx files, CIFAR-10's batches, folders of images.

Each takes the folder that holds the files and returns (train images, train labels, test images, test labels).
"""

from __future__ import annotations

import gzip
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gasim_ray.errors import UserError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

#: Training images (N, channels, height, width), training labels (N,), test images, test labels.
Splits = tuple[Images, Labels, Images, Labels]


def plain_or_gzipped(path: Path) -> Path:
    """The file itself, or the same name with `.gz` if that file is not there."""
    return path if path.exists() else path.with_name(path.name + ".gz")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped, as an array of the shape that its header states.

    Raises UserError if the file cannot be read, is not idx, or is shorter or longer than its header says.
    """
    path = plain_or_gzipped(path)
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


#: The files that MNIST and its kin consist of.
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx_folder(folder: Path) -> Splits:
    """Four idx files; raises UserError as `read_idx` does, or if one has the wrong number of axes."""
    arrays = []
    for file, axes in zip(IDX_FILES, (3, 1, 3, 1), strict=True):
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


def read_sample() -> Splits:
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


#: CIFAR-10 as its authors publish it: pickles for Python, or raw records.
CIFAR_PICKLES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR_RECORDS = tuple(f"{name}.bin" for name in CIFAR_PICKLES)
CIFAR_SHAPE = (3, 32, 32)


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of NumPy arrays and nothing else, so that no code of theirs runs."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")


def read_cifar_pickles(folder: Path) -> Splits:
    """`cifar-10-batches-py`; only arrays are read of the pickles. Raises UserError that names a damaged file."""
    return _read_cifar(folder, CIFAR_PICKLES, _read_pickle)


def read_cifar_records(folder: Path) -> Splits:
    """`cifar-10-batches-bin`: records of a label and 3,072 bytes. Raises UserError that names a damaged file."""
    return _read_cifar(folder, CIFAR_RECORDS, _read_records)


def _read_cifar(folder: Path, names: tuple[str, ...], read: Any) -> Splits:
    parts = [read(folder / name) for name in names]
    counts = [len(labels) for _, labels in parts]
    for name, count in zip(names, counts, strict=True):
        if count < max(counts):
            raise UserError(f"{folder / name}: {count} images where other batches have {max(counts)}; fetch it again")
    images = [pixels.reshape(-1, *CIFAR_SHAPE) for pixels, _ in parts]
    labels = [label.astype(np.int64) for _, label in parts]
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]


def _read_pickle(path: Path) -> tuple[Images, Labels]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.int64)
    except Exception as error:
        raise UserError(f"{path}: not a batch of CIFAR-10 ({error}); fetch it again") from error
    return _checked(path, pixels, labels)


def _read_records(path: Path) -> tuple[Images, Labels]:
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
    size = 1 + int(np.prod(CIFAR_SHAPE))
    if len(content) == 0 or len(content) % size:
        raise UserError(f"{path}: {len(content)} bytes are no whole number of {size}-byte records; fetch it again")
    records = content.reshape(-1, size)
    return _checked(path, records[:, 1:].copy(), records[:, 0].astype(np.int64))


def _checked(path: Path, pixels: Images, labels: Labels) -> tuple[Images, Labels]:
    size = int(np.prod(CIFAR_SHAPE))
    if pixels.ndim != 2 or pixels.shape[1] != size or len(labels) != len(pixels):
        raise UserError(f"{path}: {list(pixels.shape)} pixels and {len(labels)} labels; fetch it again")
    return pixels, labels


def read_image_folder(folder: Path, class_names: Sequence[str]) -> Splits:
    """`train/<class>/*` and `test/<class>/*` in any format that Pillow reads; a label is its place in `class_names`.

    Raises UserError if a part is missing, an image is damaged, sizes differ, or train or test has other classes.
    """
    paths = (path for part in ("train", "test") for path in sorted((folder / part).glob("*/*")) if path.is_file())
    return _read_images(((path.relative_to(folder).parts, path.read_bytes()) for path in paths), folder, class_names)


def read_image_archive(folder: Path, name: str, class_names: Sequence[str]) -> Splits:
    """An image folder packed as a tar archive of any compression; nothing is unpacked to disk."""

    def members() -> Iterator[tuple[tuple[str, ...], bytes]]:
        try:
            with tarfile.open(folder / name) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield tuple(Path(member.name).parts[-3:]), file.read()
                check_end(archive)
        except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{folder / name}: cannot be read ({error}); fetch it again") from error

    return _read_images(members(), folder / name, class_names)


def check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless an archive that was read ends as one should, which tarfile does not look at."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a header is damaged, or its end is missing")
    while archive.fileobj.read(2**20):  # to where a compressed file's sum is compared
        pass


def _read_images(found: Iterator[tuple[tuple[str, ...], bytes]], where: Path, class_names: Sequence[str]) -> Splits:
    images: dict[str, list[Images]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for (part, label, name), content in sorted_by_name(found):
        try:
            with Image.open(BytesIO(content)) as picture:
                if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                    raise OSError(f"of mode {picture.mode}, where 8 bits a channel are read")
                pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(
                f"{where}: {part}/{label}/{name} is no image ({error}); fetch it again, or remove it"
            ) from error
        images[part].append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        labels[part].append(label)
    classes = sorted(set(labels["train"]))
    if not classes or sorted(set(labels["test"])) != classes:
        raise UserError(f"{where}: train/ and test/ must hold the same folders of classes, with images in each")
    if classes != sorted(class_names):
        raise UserError(
            f"{where}: the folders are named {', '.join(classes)}, the classes {', '.join(class_names)}; "
            "rename each folder to its class"
        )
    # A grey picture among coloured ones is one of them.
    channels = max(len(image) for part in images.values() for image in part)
    images = {part: [image.repeat(channels // len(image), 0) for image in some] for part, some in images.items()}
    sizes = {image.shape for part in images.values() for image in part}
    if len(sizes) > 1:
        raise UserError(f"{where}: images of several shapes, {sorted(sizes)[0]} and {sorted(sizes)[1]}; give all one")
    number = {name: index for index, name in enumerate(class_names)}
    return (
        np.stack(images["train"]),
        np.array([number[name] for name in labels["train"]], np.int64),
        np.stack(images["test"]),
        np.array([number[name] for name in labels["test"]], np.int64),
    )


def sorted_by_name(found: Iterator[tuple[tuple[str, ...], bytes]]) -> list[tuple[tuple[str, ...], bytes]]:
    """The files that lie at train/<class>/<name> or test/<class>/<name>, in order; hidden ones are none."""
    seen = (item for item in found if not any(part.startswith(".") for part in item[0]))
    return sorted((item for item in seen if len(item[0]) == 3 and item[0][0] in ("train", "test")), key=lambda i: i[0])
