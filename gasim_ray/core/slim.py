"""A wide residual student that starts as the teacher with fewer channels and blocks: from weights alone.

Layer by layer the student is fitted to the teacher by least squares, on what the student itself answers so far (as He
et al. 2017, "Channel Pruning", do it with data); here both read invented observations. Channels are kept as in
core.prune. A student's block stands for as many successive blocks of the teacher as the depths ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prune import by_unit, choose_units, rows_read
from gasim_ray.models.resnet import WideBlock, WideResNet

#: Images whose patches are laid out at once.
CHUNK = 64
#: Weight of the fit's ridge, as a share of the mean variance of what is regressed on.
RIDGE = 1e-3


def slim_obstacle(teacher: Model, student: Model) -> str | None:
    """Why the student cannot be fitted so, in words; None if both are wide residual networks and it is no larger."""
    wide, narrow = teacher.network, student.network
    if not isinstance(wide, WideResNet) or not isinstance(narrow, WideResNet):
        return "teacher and student are not both wide residual networks"
    if not wide.normalised or not narrow.normalised:
        return "a wide residual network without batch normalisation has nothing to take shifts up"
    big, small = stages_of(wide), stages_of(narrow)
    if any(len(a) < len(b) or width(a) < width(b) for a, b in zip(big, small, strict=True)):
        return "the student is deeper or wider than the teacher"
    return None


def stages_of(network: WideResNet) -> list[list[WideBlock]]:
    """Its blocks by stage."""
    blocks = [block for block in network.stages if isinstance(block, WideBlock)]
    each = len(blocks) // 3
    return [blocks[start : start + each] for start in range(0, len(blocks), each)]


def width(stage: Sequence[WideBlock]) -> int:
    """Channels of a stage."""
    return stage[0].second.out_channels


@torch.no_grad()
def slim(teacher: Model, student: Model, observations: Tensor) -> None:
    """Fill the student with what can be kept of the teacher on the observations (N, *spec.shape).

    Both are on the CPU, and nothing stands in the way (`slim_obstacle`). The closer the observations are to what the
    teacher was trained on, the more is kept.
    """
    wide, narrow = teacher.network, student.network
    assert isinstance(wide, WideResNet)
    assert isinstance(narrow, WideResNet)
    training = narrow.training
    narrow.eval()
    narrow.stem.load_state_dict(wide.stem.state_dict())
    full = wide.stem(teacher.config.observation.normalise(observations))
    own = narrow.stem(student.config.observation.normalise(observations))
    kept, shift = torch.arange(own.shape[1]), torch.zeros(own.shape[1])
    for stage, readers in zip(pairs(wide, narrow), [*stages_of(wide)[1:], None], strict=True):
        ends = list(stage_ends(stage, full))
        stream = kept  # unless the teacher's stage begins another
        if stage[0][0][0].shortcut is not None:
            read = wide.last(ends[-1]) if readers is None else readers[0].before(ends[-1])
            reader = wide.head if readers is None else readers[0].first
            stream = choose_units(read, by_unit(reader, read.shape[1]), stage[0][1].second.out_channels)[0]
            if stage[0][1].shortcut is None:
                stream = stream[in_order_of(own, ends[0][:, stream])]
        for (blocks, small), end in zip(stage, ends, strict=True):
            own, shift = fit_block(blocks[0], small, full, end[:, stream], own, kept, shift)
            full, kept = end, stream
    copy_norm(narrow.last[0], wide.last[0], kept, shift)
    features = narrow.last(own).mean((2, 3))
    weight, bias = least_squares([(features, policy_logits(teacher(observations), teacher.config.output_scale))])
    narrow.head.weight.copy_(weight)
    narrow.head.bias.copy_(bias)
    narrow.train(training)


def pairs(wide: WideResNet, narrow: WideResNet) -> Iterator[list[tuple[list[WideBlock], WideBlock]]]:
    """For each stage the student's blocks, each with those of the teacher that it stands for."""
    for big, small in zip(stages_of(wide), stages_of(narrow), strict=True):
        edges = [round(i * len(big) / len(small)) for i in range(len(small) + 1)]
        yield [(big[start:stop], block) for (start, stop), block in zip(pairwise(edges), small, strict=True)]


def in_order_of(own: Tensor, aim: Tensor) -> Tensor:
    """The order of the channels of `aim` in which each is as close as can be to that of `own` in its place."""
    from scipy.optimize import linear_sum_assignment  # only here, since every actor's start imports this file

    first, second = (x.movedim(1, 0).flatten(1) for x in (own, aim))
    first, second = (x - x.mean(1, keepdim=True) for x in (first, second))
    distance = first.square().sum(1, keepdim=True) + second.square().sum(1) - 2 * first @ second.T
    return torch.from_numpy(linear_sum_assignment(distance.numpy())[1])


def stage_ends(stage: list[tuple[list[WideBlock], WideBlock]], full: Tensor) -> Iterator[Tensor]:
    """What the teacher answers at the end of each of the student's blocks."""
    for blocks, _ in stage:
        for block in blocks:
            full = block(full)
        yield full


def fit_block(
    big: WideBlock, small: WideBlock, full: Tensor, aim: Tensor, own: Tensor, kept: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit a block; returns what the student then answers, and what is to be added for the aim.

    full, own: what the teacher's and the student's block read; own + shift is close to the `kept` channels of full.
    """
    copy_norm(small.before[0], big.before[0], kept, shift)
    active, own_active = big.before(full), small.before(own)
    sums = big.first(active)
    inner = choose_units(big.between(sums), by_unit(big.second, sums.shape[1]), small.first.out_channels)[0]
    offset = fit([small.first], [own_active], sums[:, inner])
    copy_norm(small.between[0], big.between[0], inner, offset)
    own_inner = small.between(small.first(own_active))
    if small.shortcut is None:
        shift = fit([small.second], [own_inner], aim - own)
    else:
        shift = fit([small.second, small.shortcut], [own_inner, own_active], aim)
    return small(own), shift


def copy_norm(small: nn.Module, big: nn.Module, kept: Tensor, shift: Tensor) -> None:
    """Take over the kept channels of a batch normalisation whose inputs lack the shift."""
    for name, tensor in small.state_dict().items():
        if tensor.dim():
            tensor.copy_(big.state_dict()[name][kept])
    small.state_dict()["running_mean"].sub_(shift)


def fit(layers: Sequence[nn.Conv2d], inputs: Sequence[Tensor], aim: Tensor) -> Tensor:
    """Fit convolutions whose sum should be the aim (N, channels, height, width); returns what is missing a channel."""

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(aim), CHUNK):
            chunk = slice(start, start + CHUNK)
            laid = [rows_read(layer, x[chunk]) for layer, x in zip(layers, inputs, strict=True)]
            yield torch.cat(laid, 1), aim[chunk].movedim(1, -1).reshape(-1, aim.shape[1])

    weight, bias = least_squares(rows())
    parts = torch.split(weight, [layer.weight[0].numel() for layer in layers], dim=1)
    for layer, part in zip(layers, parts, strict=True):
        layer.weight.copy_(part.reshape(layer.weight.shape))
    return bias


def least_squares(chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) and bias (outputs,) of a ridge regression over chunks of rows and their aims."""
    count, sums, aims, inner, outer = 0, *[torch.zeros(())] * 4
    for rows, aim in chunks:
        count = count + len(rows)
        sums, aims = sums + rows.sum(0, dtype=torch.float64), aims + aim.sum(0, dtype=torch.float64)
        inner, outer = inner + (rows.T @ rows).double(), outer + (rows.T @ aim).double()
    mean, aimed = sums / count, aims / count
    inner, outer = inner / count - torch.outer(mean, mean), outer / count - torch.outer(mean, aimed)
    ridge = RIDGE * inner.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(inner + ridge * torch.eye(len(inner), dtype=inner.dtype), outer).T
    return weight.float(), (aimed - weight @ mean).float()
