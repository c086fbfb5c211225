"""Writing folders so that a crash, a full disk or a kill never leaves half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gasim_ray.errors import UserError

#: What a teacher's folder holds, trained, half trained, or left by a kill.
TEACHER_FILES = {"config.json", "model.safetensors", "checkpoint", ".checkpoint.new", ".checkpoint.old"}


def check_teacher_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise UserError if a teacher may not be written there: a file, or a folder with one or with something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; give a folder")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found and not (resume or overwrite):
        raise UserError(f"out: {out} exists; --resume goes on with it, --overwrite starts afresh")
    other = sorted(found - TEACHER_FILES)
    if other and not resume:
        raise UserError(f"out: {out} holds {other[0]}, which is no part of a teacher; --overwrite leaves it alone")


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it takes `target`'s place when the block ends well.

    After an error the target is as it was. After a kill at any moment `surviving_folder(target)` is whole.
    Raises UserError if the disk is full or may not be written.
    """
    fresh, old = _beside(target, "new"), _beside(target, "old")
    surviving_folder(target)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    except OSError as error:
        surviving_folder(target)
        raise UserError(f"out: {target} cannot be written ({error}); what was there before is kept") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def surviving_folder(target: Path) -> Path:
    """The target, put back if a kill fell between the two renames of `replaced_folder`."""
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")
