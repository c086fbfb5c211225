"""The bounded pool of synthetic observations that the student replays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gasim_ray.core.observation import ObservationSpec


class Pool:
    """A ring of observations with the teacher's answers and the student's last loss on each.

    Observations are kept in the spec's dtype on the learner's device. When the pool is full the oldest are replaced:
    what early generators found has been replayed most by then.
    """

    def __init__(self, capacity: int, spec: ObservationSpec, columns: int, device: torch.device) -> None:
        self.capacity = capacity
        self.observations = torch.zeros((capacity, *spec.shape), dtype=spec.torch_dtype, device=device)
        self.answers = torch.zeros((capacity, columns), device=device)
        self.losses = torch.zeros(capacity, device=device)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, observations: Tensor, answers: Tensor) -> None:
        """Store (N, *shape) and (N, columns); of more than the capacity only the last are kept.

        A new observation counts as hardest until the student has seen it.
        """
        kept = min(len(observations), self.capacity)
        self.added += len(observations) - kept
        slots = (torch.arange(kept, device=self.losses.device) + self.added) % self.capacity
        self.observations[slots] = observations[-kept:].to(self.observations)
        self.answers[slots] = answers[-kept:].to(self.answers)
        self.losses[slots] = torch.inf
        self.added += kept

    def draw(self, count: int, hard: float, rng: torch.Generator) -> Tensor:
        """Slots (count,) int64 to replay: a share `hard` has the highest stored loss among four times as many.

        The rest, and the candidates, are drawn uniformly with replacement. Raises ValueError if the pool is empty.
        """
        if len(self) == 0:
            raise ValueError("the pool is empty")
        hardest = int(count * hard)
        candidates = torch.randint(len(self), (4 * hardest,), generator=rng, device=self.losses.device)
        chosen = candidates[self.losses[candidates].topk(hardest).indices] if hardest else candidates
        uniform = torch.randint(len(self), (count - hardest,), generator=rng, device=self.losses.device)
        return torch.cat([chosen, uniform])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: only the filled part, copied, since a saved view would take the whole pool along."""
        filled = len(self)
        return {
            "observations": self.observations[:filled].clone(),
            "answers": self.answers[:filled].clone(),
            "losses": self.losses[:filled].clone(),
            "added": torch.tensor(self.added),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; a pool of another capacity takes the newest that it can hold."""
        # Slots stay where they were if they can: what is drawn depends on them.
        filled, added = len(state["losses"]), int(state["added"])
        unwrapped = added == filled < self.capacity
        kept = torch.arange(filled) if unwrapped or filled == self.capacity else (torch.arange(filled) + added) % filled
        kept = kept[-self.capacity :]
        self.observations[: len(kept)] = state["observations"][kept].to(self.observations)
        self.answers[: len(kept)] = state["answers"][kept].to(self.answers)
        self.losses[: len(kept)] = state["losses"][kept].to(self.losses)
        self.added = added if filled == self.capacity else len(kept)
