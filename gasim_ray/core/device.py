"""Where networks compute: how a device is named, and whether this machine has it."""

from __future__ import annotations

import re

import torch

from gasim_ray.errors import UserError


def check_device_name(device: str) -> None:
    """Raise UserError unless this is cpu, cuda or cuda:N."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device: {device!r} is not one of cpu, cuda, cuda:N")


def check_device_is_there(device: str) -> None:
    """Raise UserError if it is no device's name, or a GPU that PyTorch does not see on this machine."""
    check_device_name(device)
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(f"device: {device} is not there (PyTorch sees no GPU); use cpu")
    count = torch.cuda.device_count()
    if number and int(number) >= count:
        raise UserError(f"device: {device} is not there; give cuda:N with N from 0 to {count - 1}")
