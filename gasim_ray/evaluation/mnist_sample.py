"""Makes the MNIST sample that the package carries, for tests and for machines without data.

The first 150 training images and the first 50 test images of each digit, in the files' order: 1,500 and 500.
MNIST: LeCun, Cortes, Burges (CC BY-SA 3.0).

Usage, from the repository's root, with MNIST where `load_dataset` finds it:

    python -m gasim_ray.evaluation.mnist_sample gasim_ray/assets/mnist-sample.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gasim_ray.evaluation.datasets import Dataset, load_dataset
from gasim_ray.evaluation.readers import Labels

TRAIN_IMAGES_PER_CLASS = 150
TEST_IMAGES_PER_CLASS = 50


def first_of_each_class(labels: Labels, count: int) -> npt.NDArray[np.int64]:
    """Indices, rising, of the first `count` items of every label (N,) that occurs."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def write_sample(dataset: Dataset, path: Path) -> None:
    """Write the balanced sample of a data set as a compressed .npz."""
    train = first_of_each_class(dataset.train_labels, TRAIN_IMAGES_PER_CLASS)
    test = first_of_each_class(dataset.test_labels, TEST_IMAGES_PER_CLASS)
    np.savez_compressed(
        path,
        train_images=dataset.train_images[train, 0],
        train_labels=dataset.train_labels[train].astype(np.uint8),
        test_images=dataset.test_images[test, 0],
        test_labels=dataset.test_labels[test].astype(np.uint8),
    )


if __name__ == "__main__":
    write_sample(load_dataset("mnist"), Path(sys.argv[1]))
