"""Writing folders so that a crash, a full disk or a kill never leaves half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it takes `target`'s place when the block ends well.

    After an error the target is as it was. After a kill at any moment `surviving_folder(target)` is whole.
    """
    fresh, old = _beside(target, "new"), _beside(target, "old")
    surviving_folder(target)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
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
