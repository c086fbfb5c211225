"""A sweep on disk: what it is, its validation observations, and Ray Tune's own files beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from gasim_ray.errors import UserError
from gasim_ray.run_folder import check_clear, clear_folder, save_tensors, write_atomically
from gasim_ray.tuning.sweep import Sweep, parse_sweep
from gasim_ray.tuning.validation import Validation


class SweepFolder:
    """The folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep = path / "sweep.yaml"
        #: Tells whether the sweep was changed; what it is beside is a sweep's folder.
        self.digest = path / ".sweep.sha256"
        self.validation = path / "validation.pt"
        #: Is there when the sweep's seconds were over before its trials.
        self.over = path / ".over"

    def check_clear(self, overwrite: bool) -> None:
        """Raise UserError if there is a sweep and `overwrite` is off, and in any case if what is there is none."""
        check_clear(self.path, self.digest.name, "a sweep", overwrite)

    def begin(self, sweep: Sweep, overwrite: bool) -> None:
        """Make the folder with sweep.yaml in it; raises UserError if it cannot be, or holds what is not to be lost."""
        try:
            clear_folder(self.path, self.digest.name, "a sweep", overwrite)
            write_atomically(self.sweep, sweep.to_yaml().encode())
            write_atomically(self.digest, self._digest())
        except OSError as error:
            raise UserError(f"out: {self.path} cannot be written ({error.strerror})") from error

    def read_sweep(self) -> Sweep:
        """What the sweep is; raises UserError if there is none, or it is not as it began."""
        if not self.sweep.exists():
            raise UserError(f"resume: {self.path} holds no sweep ({self.sweep.name} is missing)")
        sweep = parse_sweep(self.sweep)
        if not self.digest.exists() or self.digest.read_bytes() != self._digest():
            raise UserError(f"resume: {self.sweep} is no longer what the sweep began with; start a new one")
        return sweep

    def _digest(self) -> bytes:
        return hashlib.sha256(self.sweep.read_bytes()).hexdigest().encode()

    def begun(self) -> bool:
        """Whether Tune has saved where the sweep stands; raises UserError if that cannot be read."""
        states = sorted(self.path.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime)
        if not states or not self.validation.exists():
            return False
        try:
            json.loads(states[-1].read_text())
        except ValueError as error:
            raise UserError(f"resume: {states[-1]} cannot be read ({error}); start again with --overwrite") from error
        return True

    def save_validation(self, validation: Validation) -> None:
        """Keep the validation observations with the sweep; raises UserError if they cannot be written."""
        try:
            save_tensors(self.validation, validation.state_dict())
        except OSError as error:
            raise UserError(f"out: {error}; free some space") from error

    def read_validation(self) -> Validation:
        """What `save_validation` kept."""
        return Validation.from_state(torch.load(self.validation, weights_only=True))
