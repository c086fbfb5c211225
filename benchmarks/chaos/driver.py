"""`gasim` with a generator actor that goes wrong: python -m benchmarks.chaos.driver distill ...

Generator 0 of the run fails in the way that the file `<out>.fault` names, from the order on at which it is there. It
removes the file, so that its successor is sound.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gasim_ray import cli
from gasim_ray.actors import ray_workers
from gasim_ray.config import DistillConfig
from gasim_ray.core.model import Model

#: Times as long as the others that a slow generator takes.
SLOWNESS = 10


class GeneratorActor(ray_workers.GeneratorActor):
    """Of the same name, so that its process has the same title."""

    def __init__(self, teacher: Model, config: DistillConfig, actor: int) -> None:
        super().__init__(teacher, config, actor)
        self.file = Path(f"{config.out}.fault") if actor == 0 else None
        self.fault = ""

    def synthesize(self, order: int, weights: Any) -> Any:
        """As it should, and then not."""
        started = time.perf_counter()
        info, batch = super().synthesize(order, weights)
        if self.file and self.file.exists():
            self.fault = self.file.read_text()
            self.file.unlink()
        if self.fault == "hang":
            time.sleep(1e6)
        if self.fault == "slow":
            time.sleep((SLOWNESS - 1) * (time.perf_counter() - started))
        if self.fault == "nan":
            batch = replace(batch, teacher_answers=np.full_like(batch.teacher_answers, np.nan))
        if self.fault == "shape":
            batch = replace(batch, observations=batch.observations[:, :-1])
        return info, batch


if __name__ == "__main__":
    ray_workers.GeneratorActor = GeneratorActor  # type: ignore[misc]
    sys.exit(cli.main(sys.argv[1:]))
