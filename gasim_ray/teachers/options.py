"""What a user says about a source when importing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gasim_ray.core.model import OutputKind


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import; a source reads those that it needs."""

    #: Open pickles, which run the code that they contain. RLlib's checkpoints are pickles.
    trust: bool = False
    #: RLlib source: frames that an environment's wrapper stacks in an observation; a connector's are known.
    stack: int | None = None
    #: PyTorch source: file of the weights, a `torch.save`d state dict or safetensors.
    weights: Path | None = None
    #: PyTorch source: JSON or YAML file with the fields of ObservationSpec.
    observation: Path | None = None
    #: PyTorch source: number of discrete actions or classes.
    actions: int | None = None
    #: PyTorch source: what the network gives, `logits` or `q_values`.
    outputs: OutputKind = "logits"
    #: PyTorch source: keyword arguments of the factory, beside the input shape and the number of actions.
    arguments: dict[str, Any] = field(default_factory=dict)
