"""Which arithmetic is faster here: that of bfloat16 needs units that only some processors have."""

from __future__ import annotations

import torch
from torch.utils.benchmark import Timer

from gasim_ray.core.model import Model

#: Seconds for which each is measured.
SECONDS = 0.3


def bf16_is_faster(model: Model, batch: int) -> bool:
    """Whether a gradient step on so many observations takes less time in bfloat16 with images channels last.

    Leaves the model without gradients, computing as before.
    """
    spec = model.config.observation
    observations = torch.zeros((batch, *spec.shape), dtype=spec.torch_dtype, device=next(model.parameters()).device)
    before = model.bf16, model.channels_last

    def seconds(bf16: bool) -> float:
        model.computing(bf16, bf16)
        step = Timer(
            "model(observations).sum().backward()",
            globals={"model": model, "observations": observations},
            num_threads=torch.get_num_threads(),
        )
        return float(step.blocked_autorange(min_run_time=SECONDS).median)

    faster = seconds(True) < seconds(False)
    model.computing(*before).zero_grad()
    return faster
