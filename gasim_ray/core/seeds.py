"""Randomness that depends on nothing but named integers, so that a lost order can be asked for again."""

from __future__ import annotations

import numpy as np
import torch


def rng(device: torch.device | str, *key: int) -> torch.Generator:
    """A random generator on the device, seeded from the key alone, e.g. (run seed, generator, order).

    The key's length counts too: without it, NumPy takes (0,) and (0, 0) for the same.
    """
    low, high = np.random.SeedSequence([*key, len(key)]).generate_state(2)
    generator = torch.Generator(device=device)
    generator.manual_seed((int(high) << 31) ^ int(low))
    return generator
