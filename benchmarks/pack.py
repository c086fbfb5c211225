"""Packs what a sitting on a lent machine made: python -m benchmarks.pack SUITE OUT [--only task=cifar10].

Recorded lines, teachers and students in half precision, as parts of one archive that are small enough to be carried;
in the repository's root `cat OUT/SUITE.tar.* | tar x` puts everything back in its place.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from benchmarks.cells import Cell, load_suite, matches, results_path, suite_names
from gasim_ray.errors import UserError

#: Bytes of a part, and the most parts.
PART, PARTS = 16 * 2**20, 8


def main() -> int:
    """Write the parts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=__doc__)
    parser.add_argument("suite", choices=suite_names())
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="task=...,method=...,seed=... that a cell must have")
    given = parser.parse_args()
    try:
        cells = [cell for cell in load_suite(given.suite) if matches(cell, given.only)]
        parts = pack(results_path(given.suite), cells, given.out / f"{given.suite}.tar")
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {parts} parts; cat {given.out}/{given.suite}.tar.* | tar x")
    return 0


def pack(results: Path, cells: list[Cell], archive: Path) -> int:
    """Write archive.00, archive.01, ... and return how many; raises UserError, writing nothing, for too many."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in files_of(results, cells):
            content = halved(path) if path.suffix == ".safetensors" else path.read_bytes()
            entry = tarfile.TarInfo(str(path.absolute().relative_to(Path.cwd())))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    whole = buffer.getvalue()
    parts = [whole[start : start + PART] for start in range(0, len(whole), PART)]
    if len(parts) > PARTS:
        raise UserError(
            f"only: {len(parts)} parts are needed and {PARTS} allowed; pack fewer cells, such as one task's"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        archive.with_name(f"{archive.name}.{number:02}").write_bytes(part)
    return len(parts)


def files_of(results: Path, cells: list[Cell]) -> Iterator[Path]:
    """The recorded lines, then configuration and weights of each teacher and student that is there."""
    if results.exists():
        yield results
    folders = [*(cell.teacher for cell in cells), *(cell.folder / "student" for cell in cells)]
    for folder in dict.fromkeys(folders):
        files = [folder / "config.json", folder / "model.safetensors"]
        yield from files if all(file.exists() for file in files) else []


def halved(path: Path) -> bytes:
    """A weights file with its float32 tensors in float16."""
    tensors = load_file(path)
    return save({name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()})


if __name__ == "__main__":
    sys.exit(main())
