"""What every recorded line says of where, with what and when it was made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from gasim_ray.run_folder import versions


def provenance() -> dict[str, Any]:
    """What every line says of where, with what and when it was made."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"hardware": hardware(), "versions": versions(), "commit": COMMIT, "date": today}


def hardware() -> str:
    """Processor, cores and GPU in words."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {model}{gpu}"


def commit() -> str:
    """The commit that is checked out; marked where code, suites or teachers differ from it."""
    what = ["--", "gasim_ray", "benchmarks/*.py", "benchmarks/suites", "benchmarks/teachers", "tune_configs"]
    found = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return f"{found}-dirty" if git("status", "--porcelain", *what) else found


def git(*arguments: str) -> str:
    """What a git command prints; nothing if it fails, or where there is no git."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


#: Of the code that was loaded, whatever is checked out when a cell ends.
COMMIT = commit()
