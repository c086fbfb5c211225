"""How long a model takes to answer on the CPU."""

from __future__ import annotations

import copy
import time
from statistics import median

import torch
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.prior import random_observations

#: A measurement ends after this many answers, or after MAX_SECONDS once there are MIN_ANSWERS.
MAX_ANSWERS, MIN_ANSWERS, MAX_SECONDS = 200, 5, 1.0


def latency_ms(model: Model, batch_size: int) -> float:
    """Median milliseconds, on one CPU thread, for a batch of observations as the environment gives them.

    The model is left where it is; normalisation is part of what is measured.
    """
    model = copy.deepcopy(model).cpu().eval()
    observations = random_observations(model, batch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model(observations)  # the first answer allocates
            return 1e3 * median(_answer_seconds(model, observations))
    finally:
        torch.set_num_threads(threads)


def _answer_seconds(model: Model, observations: Tensor) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < MAX_ANSWERS and (len(seconds) < MIN_ANSWERS or sum(seconds) < MAX_SECONDS):
        start = time.perf_counter()
        model(observations)
        seconds.append(time.perf_counter() - start)
    return seconds
