"""A network with what it reads and what it answers, and the folder it is kept in.

Teachers and students share one format: `config.json` (architecture, observation, actions, kind of output,
source) beside `model.safetensors` (weights). Nothing here imports Ray or Gymnasium.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import NotWritten, UserError
from gasim_ray.models import build_network

FORMAT_VERSION = 1
#: What a model's folder holds.
FILES = CONFIG, WEIGHTS = "config.json", "model.safetensors"

OutputKind = Literal["logits", "q_values"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights of a teacher or a student."""

    #: A registered architecture's name, or `package.module:factory`, under "name"; its settings beside it.
    architecture: dict[str, Any]
    #: What the network reads.
    observation: ObservationSpec
    #: Number of discrete actions or classes.
    actions: int
    #: `logits` or `q_values`.
    outputs: OutputKind
    #: What the outputs are divided by before they are read as a policy: 1 for logits, for Q-values see core.outputs.
    output_scale: float = 1.0
    #: Whether the network's last output is the state's value, which `Model.with_value` gives beside the policy.
    value: bool = False
    #: Where the model came from: source, environment or data set, training settings, scores.
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actions < 2:
            raise UserError(
                f"actions: {self.actions} leaves nothing to choose; give 2 or more (a network that answers one logit x "
                "stands for two classes of the logits 0 and x: let it answer both)"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description, which `from_json` reads back."""
        return {
            "format": FORMAT_VERSION,
            "architecture": self.architecture,
            "observation": self.observation.to_json(),
            "actions": {"type": "discrete", "n": self.actions},
            "outputs": self.outputs,
            "output_scale": self.output_scale,
            "value": self.value,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, fields: Any) -> ModelConfig:
        """Inverse of `to_json`; raises UserError for another format, an unknown kind, a missing or a strange field."""
        if not isinstance(fields, dict):
            raise UserError(f"holds a {type(fields).__name__}; import the source again with `gasim teacher import`")
        if fields.get("format") != FORMAT_VERSION:
            raise UserError(
                f"format: {fields.get('format')!r} is not the version this program reads ({FORMAT_VERSION}); "
                "import the source again with `gasim teacher import`"
            )
        try:
            actions, outputs = fields["actions"], fields["outputs"]
            if actions["type"] != "discrete":
                raise UserError(f"actions.type: {actions['type']!r} is not supported; only 'discrete' is")
            if outputs not in ("logits", "q_values"):
                raise UserError(f"outputs: {outputs!r} is not one of 'logits', 'q_values'")
            return cls(
                architecture=fields["architecture"],
                observation=ObservationSpec.from_json(fields["observation"]),
                actions=int(actions["n"]),
                outputs=outputs,
                output_scale=float(fields.get("output_scale", 1.0)),
                value=bool(fields.get("value", False)),
                source=fields.get("source", {}),
            )
        except KeyError as error:
            raise UserError(f"{error.args[0]}: missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"a field is not what it should be ({error})") from error


class Model(nn.Module):
    """A network that takes observations as the environment gives them.

    Raises UserError if the architecture is unknown or its settings do not fit.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        outputs = config.actions + config.value
        self.network = build_network(config.architecture, config.observation.network_shape, outputs)
        self.bf16 = self.channels_last = False

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (N, *shape), any dtype, in the environment's units -> logits or Q-values (N, actions)."""
        outputs = self._outputs(observations)
        return outputs[:, :-1] if self.config.value else outputs

    def with_value(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """As calling it, and the states' values (N,); only for a network that has them (`config.value`)."""
        assert self.config.value
        outputs = self._outputs(observations)
        return outputs[:, :-1], outputs[:, -1]

    def _outputs(self, observations: Tensor) -> Tensor:
        read = self.config.observation.normalise(observations)
        if self.channels_last and read.dim() == 4:
            read = read.contiguous(memory_format=torch.channels_last)
        with torch.autocast(read.device.type, torch.bfloat16, enabled=self.bf16):
            outputs: Tensor = self.network(read)
        return outputs.float() if self.bf16 else outputs

    def computing(self, bf16: bool, channels_last: bool) -> Model:
        """Itself, from now on with products in bfloat16 (weights and outputs stay float32) and images channels last."""
        self.bf16, self.channels_last = bf16, channels_last
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def frozen(self) -> Model:
        """Itself in evaluation mode with no parameter that learns: what a teacher is."""
        return self.eval().requires_grad_(False)

    @property
    def has_batch_norm(self) -> bool:
        """Whether it stores statistics of what it was trained on."""
        return bool(self.batch_norms())

    def batch_norms(self) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
        """Its batch-norm layers that store statistics; those with track_running_stats=False store none."""
        found = [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        return [layer for layer in found if layer.running_mean is not None]

    @property
    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(p.numel() for p in self.parameters())


def save_model(model: Model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into the folder, which is made if need be.

    Raises OSError, each file as it was, if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    partial = folder / "model.partial"
    try:
        save_file(weights, partial)
        partial.replace(folder / WEIGHTS)
        partial.write_text(json.dumps(model.config.to_json(), indent=1) + "\n")
        partial.replace(folder / CONFIG)
    except SafetensorError as error:
        raise NotWritten(f"{folder}: not written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def has_model(folder: Path) -> bool:
    """Whether a folder holds what `save_model` writes."""
    return all((folder / name).exists() for name in FILES)


def model_files(folder: Path) -> dict[str, bytes]:
    """The files of a model by name; raises OSError if one cannot be read."""
    return {name: (folder / name).read_bytes() for name in FILES}


def same_model(one: Path, other: Path) -> bool:
    """Whether two folders hold the same model, byte for byte."""
    return has_model(one) and has_model(other) and all(cmp(one / n, other / n, shallow=False) for n in FILES)


def load_config(folder: Path) -> ModelConfig:
    """Read only `config.json`; raises UserError if it is missing, unreadable or of another version."""
    path = folder / CONFIG
    try:
        return ModelConfig.from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no model there (config.json is missing)") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_model(folder: str | Path) -> Model:
    """Load a teacher or a student, on the CPU and in evaluation mode; half-precision weights become float32.

    Raises UserError if the folder is missing, its weights are truncated, or they do not fit the architecture.
    """
    folder = Path(folder)
    model = Model(load_config(folder))
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it is missing or truncated") from error
    load_weights(model.network, weights, path)
    return model.eval()


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Fill a network; raises UserError that names missing keys, extra keys and shapes that differ."""
    expected = network.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)} where the architecture has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise UserError(
            f"{source}: the weights do not fit the architecture: {'; '.join(problems)}; "
            "give the architecture's settings with which they were saved, or its own weights"
        )
    network.load_state_dict({name: t.to(expected[name].dtype) for name, t in weights.items()})


def check_network(model: Model, field: str) -> None:
    """Try the network on two observations of zeros, in evaluation mode, where it leaves the model.

    Raises UserError, which begins with `field`, if it fails or answers for another number of actions.
    """
    config = model.config
    example = torch.zeros((2, *config.observation.shape), dtype=config.observation.torch_dtype)
    try:
        with torch.no_grad():
            answered = list(model.eval()(example).shape)
    except Exception as error:  # the network may be the user's own
        kind = "images" if config.observation.is_image else "vectors"
        raise UserError(
            f"{field}: {config.architecture} does not fit input {list(config.observation.network_shape)} "
            f"({type(error).__name__}: {error}); give one that reads {kind} of that shape"
        ) from error
    if answered != [2, config.actions]:
        raise UserError(
            f"{field}: {config.architecture} answers {answered[1:]} where there are {config.actions} actions; "
            "give one that answers for each"
        )


def check_finite(outputs: Tensor, who: str) -> Tensor:
    """Return the outputs; raises UserError if one is NaN or infinite."""
    if not torch.isfinite(outputs).all():
        raise UserError(f"{who}: answered NaN or infinity to an observation within bounds; its weights are unusable")
    return outputs
