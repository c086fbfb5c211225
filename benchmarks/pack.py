"""Packs what a sitting on a lent machine made: python -m benchmarks.pack SUITE OUT [--only task=cifar10].

Recorded lines, teachers and students in half precision, as parts of one archive that are small enough to be carried,
and the checkpoints of teachers that are not finished as they are; what no longer fits in is named: one teacher of
ResNet-34's size does, with --without-teachers the students beside it, its checkpoint does not. At home the same
command with --back adds the lines and the models that are not there yet, and replaces nothing but those checkpoints.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import torch
from safetensors.torch import load_file, save

from benchmarks.cells import Cell, append_result, load_suite, matches, read_results, results_path, suite_names
from gasim_ray.errors import UserError

#: Bytes of a part, and the most parts: less than 64 MiB together.
PART, PARTS = 15 * 2**20, 4


def main() -> int:
    """Write the parts; returns the exit code, 1 if something was left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=__doc__)
    parser.add_argument("suite", choices=suite_names())
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="task=...,method=...,seed=... that a cell must have")
    parser.add_argument("--without-teachers", action="store_true", help="leave out those that are finished")
    parser.add_argument("--back", action="store_true", help="unpack what lies in OUT into this repository")
    given = parser.parse_args()
    archive = given.out / f"{given.suite}.tar"
    try:
        if given.back:
            print(f"{archive}: {unpack(given.suite, archive)} new files and lines")
        else:
            cells = [cell for cell in load_suite(given.suite) if matches(cell, given.only)]
            count, left = pack(results_path(given.suite), cells, archive, not given.without_teachers)
            print(f"{archive}: {count} parts")
            if left:
                print(f"left out, since {PARTS} parts hold no more: {', '.join(map(str, left))}", file=sys.stderr)
                return 1
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def pack(results: Path, cells: list[Cell], archive: Path, teachers: bool = True) -> tuple[int, list[Path]]:
    """Write archive.00, archive.01, ...; returns how many, and the folders that no longer fitted in.

    Raises UserError, writing nothing, if not even the recorded lines do.
    """
    buffer, left = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder, files in packed_together(results, cells, teachers):
            contents = [packed(path) for path in files]
            # An entry is padded to 512 bytes behind a head of as many; the archive to 10,240.
            if buffer.tell() + sum(len(content) + 1024 for content in contents) + 10_240 > PART * PARTS:
                if files == [results]:
                    raise UserError(f"suite: {results} alone is more than {PARTS} parts of {PART} bytes")
                left.append(folder)
                continue
            for path, content in zip(files, contents, strict=True):
                entry = tarfile.TarInfo(str(path.absolute().relative_to(Path.cwd())))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    whole = buffer.getvalue()
    parts = [whole[start : start + PART] for start in range(0, len(whole), PART)]
    archive.parent.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        archive.with_name(f"{archive.name}.{number:02}").write_bytes(part)
    return len(parts), left


def unpack(suite: str, archive: Path) -> int:
    """Add the recorded lines and the files that are not there; returns how many. Raises UserError if nothing is there.

    Models that are there stay as they are: what comes back is in half precision.
    """
    parts = sorted(archive.parent.glob(f"{archive.name}.*"))
    if not parts:
        raise UserError(f"out: no {archive}.00 there; pack it first")
    results, known, added = results_path(suite).absolute(), read_results(suite), 0
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
        for entry in tar:
            if Path(entry.name).absolute() == results:
                lines = [json.loads(line) for line in cast(IO[bytes], tar.extractfile(entry))]
                for line in (line for line in lines if line not in known):
                    append_result(suite, line)
                    added += 1
            elif not Path(entry.name).exists() or ".unfinished/" in entry.name:
                # Not tar.extract: before Python 3.11.4 it cannot be told to stay within the folder.
                place = Path(entry.name)
                if not entry.isfile() or place.is_absolute() or ".." in place.parts:
                    raise UserError(f"out: {archive} holds {entry.name}, which is no file within this folder")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(cast(IO[bytes], tar.extractfile(entry)).read())
                added += 1
    return added


def packed_together(results: Path, cells: list[Cell], teachers: bool = True) -> Iterator[tuple[Path, list[Path]]]:
    """Files that are of use only together and the folder that they are of, what matters most first.

    The recorded lines; unfinished teachers; configuration and weights of each teacher, if `teachers` are wanted, and of
    each student that is there.
    """
    if results.exists():
        yield results.parent, [results]
    for folder in dict.fromkeys(cell.unfinished_teacher for cell in cells):
        unfinished = sorted(path for path in folder.rglob("*") if path.is_file())
        yield from [(folder, unfinished)] if unfinished else []
    folders = [*(cell.teacher for cell in cells if teachers), *(cell.folder / "student" for cell in cells)]
    for folder in dict.fromkeys(folders):
        files = [folder / "config.json", folder / "model.safetensors"]
        whole = all(file.exists() for file in files) and not (folder / "checkpoint").exists()
        yield from [(folder, files)] if whole else []


def packed(path: Path) -> bytes:
    """A file's content; a finished model's weights with their float32 tensors in float16."""
    if path.suffix != ".safetensors" or ".unfinished/" in str(path):
        return path.read_bytes()
    tensors = load_file(path)
    return save({name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()})


if __name__ == "__main__":
    sys.exit(main())
