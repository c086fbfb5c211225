"""What a run reserves on a cluster, and whether that is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray._private.state

from gasim_ray.config import DistillConfig
from gasim_ray.errors import UserError

#: Seconds that a killed actor's resources take at most to be free again.
RELEASE_SECONDS = 5.0


def learner_gpus(config: DistillConfig) -> float:
    """GPUs that the learner reserves: none on a CPU, else a generator's share, or a whole one if those have none."""
    return (config.generator.gpus or 1.0) if config.device.startswith("cuda") else 0.0


def check_resources(config: DistillConfig, elastic: bool) -> None:
    """Raise UserError if the cluster has less free than the run reserves, or no such node or device.

    If `elastic`, its learner suffices. Ray would wait for it for ever. What a run before this one is still letting go
    of is waited for.
    """
    learner, *others = bundles(config)
    if learner["GPU"] and not ray.cluster_resources().get("GPU"):
        raise UserError(f"device: {config.device} is not there (no machine of the cluster has a GPU); use cpu")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    wanted_label = label(config) or {}
    labelled = [node for node in nodes if wanted_label.items() <= node["Labels"].items()]
    if wanted_label and all(lacking(learner, node["Resources"]) for node in labelled):
        raise UserError(
            f"student.node_label: no node with {config.student.node_label} has what the learner reserves ({learner}); "
            f"start one with `ray start --labels={config.student.node_label}`, or leave it out"
        )
    if not elastic and lacking(reserved(config), ray.cluster_resources()):
        raise UserError(not_free(config, elastic))
    for section, one in (("student", learner), *([] if elastic else [("generator", others[0])])):
        if all(lacking(one, node["Resources"]) for node in nodes):
            raise UserError(f"{section}.cpus: no node has what one such actor reserves ({one}); lower it, or its GPUs")
    deadline = time.monotonic() + RELEASE_SECONDS
    while missing := not_free(config, elastic):
        if time.monotonic() > deadline:
            raise UserError(missing)
        time.sleep(0.1)


def not_free(config: DistillConfig, elastic: bool) -> str:
    """What the cluster's nodes now have too little of for the run, in words; empty if there is enough."""
    learner, *others = bundles(config)
    nodes, actors, wanted_label = free_nodes(), config.generator.actors, label(config) or {}
    free = summed([node["Resources"] for node in nodes])
    if not elastic and (short := lacking(reserved(config), free)):
        resource, amount = short
        return (
            f"generator.actors: {actors} actors and the learner reserve {reserved(config)[resource]:g} {resource}, "
            f"{amount:g} is free; lower generator.actors or generator.{resource.lower()}s"
        )
    if all(lacking(learner, n["Resources"]) for n in nodes if wanted_label.items() <= n["Labels"].items()):
        return f"student.cpus: no node has what the learner reserves ({learner}) free; lower it, or wait for one"
    if not elastic and (most := places(learner, others[0], nodes, wanted_label)) < len(others):
        return (
            f"generator.actors: {actors} actors, of which each needs a place on one node, and nodes have {most} free "
            "beside the learner; lower generator.actors, generator.cpus or generator.gpus"
        )
    return ""


def free_nodes() -> list[dict[str, Any]]:
    """Ray's live nodes, of which `Resources` are those that are free."""
    # Ray tells the sum of all nodes openly, which may be in parts that nothing fits.
    free = ray._private.state.available_resources_per_node()
    return [{**node, "Resources": free.get(node["NodeID"], {})} for node in ray.nodes() if node["Alive"]]


def places(
    learner: Mapping[str, float],
    generator: Mapping[str, float],
    nodes: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> int:
    """Generators that fit Ray's nodes, each whole on one, beside a learner that lies where it hinders least.

    Those nodes count for the learner that have its labels.
    """

    def fitting(node: Mapping[str, Any], taken: Mapping[str, float]) -> int:
        left = {name: node["Resources"].get(name, 0.0) - taken.get(name, 0.0) for name in generator}
        # Shares of a GPU add up to a little more or less than the whole.
        return min((int(left[name] / amount + 1e-6) for name, amount in generator.items() if amount), default=2**31)

    its = [n for n in nodes if labels.items() <= n["Labels"].items() and not lacking(learner, n["Resources"])]
    return sum(fitting(n, {}) for n in nodes) - min((fitting(n, {}) - fitting(n, learner) for n in its), default=0)


def label(config: DistillConfig) -> dict[str, str] | None:
    """What a node must be labelled with for the learner, as Ray takes it; None for nothing."""
    key, _, value = config.student.node_label.partition("=")
    return {key: value} if key else None


def bundles(config: DistillConfig) -> list[dict[str, float]]:
    """What each actor of a run reserves: the learner first, then the generators."""
    learner = {"CPU": config.student.cpus, "GPU": learner_gpus(config)}
    generator = {"CPU": config.generator.cpus, "GPU": config.generator.gpus}
    return [learner, *([generator] * config.generator.actors)]


def reserved(config: DistillConfig) -> dict[str, float]:
    """What all of a run's actors reserve together."""
    return summed(bundles(config))


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """CPUs and GPUs of several actors together."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in ("CPU", "GPU")}


def lacking(wanted: Mapping[str, float], there: Mapping[str, float]) -> tuple[str, float] | None:
    """The first resource of which less is there than wanted, and how much is."""
    short = ((name, there.get(name, 0.0)) for name, amount in wanted.items() if amount > there.get(name, 0.0))
    return next(short, None)
