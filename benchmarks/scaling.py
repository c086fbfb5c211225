"""How many generators one learner can drive: python -m benchmarks.scaling records it, for benchmarks/scaling.md.

Measured: orders a second with generators and a learner that do nothing, by the project's loop and by plain Ray in turn;
and what an order of real tasks costs. What larger clusters give is computed from that, and is called a model wherever
it stands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

from benchmarks.cells import append_result, read_results
from gasim_ray.errors import exit_code

SUITE = "scaling"
#: Generators that do nothing.
COUNTS = (1, 10, 50, 100)
#: Tasks whose orders are measured -> the student's architecture.
TASKS: dict[str, dict[str, Any]] = {
    "acrobot-dqn": {"name": "mlp", "hidden": [64, 64]},
    "mnist": {"name": "lenet5", "width": 0.5},
}
#: Orders of which the mean is taken, after as many of warming up.
ORDERS = 12
#: Generators for which the model is computed.
MODELLED = (8, 64, 512)


def main() -> int:
    """Record all; returns the exit code."""
    return exit_code("benchmarks", record)


def record() -> None:
    """Measure the loop with each number of generators, then what real orders cost."""
    # Only here: the tables that this module makes need neither Ray nor PyTorch.
    from benchmarks.loop_cost import NullWorkers, by_loop, by_plain_ray
    from benchmarks.provenance import provenance
    from gasim_ray.config import build_config

    config = build_config({"teacher": "benchmarks/teachers/acrobot-dqn"})
    for count in COUNTS:
        workers = NullWorkers(config, count)
        started = time.perf_counter()
        sides = [(by_loop(workers, config), by_plain_ray(workers, config)) for _ in range(2)]
        memory, wall = workers.memory(), time.perf_counter() - started
        workers.close()
        loop, plain = (mean(column) for column in zip(*sides, strict=True))
        measured = {"generators": count, "loop": loop, "plain": plain, "memory": memory, "wall_seconds": wall}
        append_result(SUITE, {"suite": SUITE, "task": "null", **measured, **provenance()})
        print(f"{count} generators: {loop:.0f} orders/s, plain Ray {plain:.0f}", flush=True)
    for task, architecture in TASKS.items():
        append_result(SUITE, {"suite": SUITE, "task": task, **order_costs(task, architecture), **provenance()})


def order_costs(task: str, architecture: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of an order of `gasim` on one core, in this process."""
    from gasim_ray.actors.workers import LocalWorkers
    from gasim_ray.config import build_config
    from gasim_ray.teachers import load_teacher

    tree = {"teacher": f"benchmarks/teachers/{task}", "local": True, "student": {"architecture": architecture}}
    config = build_config(tree)
    workers = LocalWorkers(load_teacher(config.teacher), config)
    costs: list[tuple[float, float, float]] = []
    for order in range(2 * ORDERS):
        weights = workers.student_weights()
        answer = workers.order(0, order, weights)
        report = workers.update(0.1, [answer.payload]).summary
        costs.append((answer.summary.seconds, answer.summary.teacher_seconds, report.seconds))
    generator, teacher, learner = (mean(column) for column in zip(*costs[ORDERS:], strict=True))
    batch = answer.payload
    return {
        "generator_seconds": generator,
        "teacher_seconds": teacher,
        "learner_seconds": learner,
        "batch_bytes": batch.observations.nbytes + batch.teacher_answers.nbytes,
        "weight_bytes": sum(array.nbytes for array in weights.tensors.values()),
        "observations": len(batch.observations),
    }


def newest() -> dict[tuple[str, int], dict[str, Any]]:
    """(task, generators) -> its newest line."""
    return {(line["task"], line.get("generators", 0)): line for line in read_results(SUITE)}


def loop_rows() -> list[str]:
    """Orders a second with null generators."""
    rows = [
        "| generators | this loop, orders/s | plain Ray, orders/s | ratio | MB a generator's process |",
        "| --- | --- | --- | --- | --- |",
    ]
    for count in COUNTS:
        line = newest().get(("null", count))
        if line is None:
            rows.append(f"| {count} | not measured | | | |")
            continue
        rates = f"{line['loop']:,.0f} | {line['plain']:,.0f} | {line['loop'] / line['plain']:.2f}"
        rows.append(f"| {count} | {rates} | {line['memory'] / 1e6:.0f} |")
    return rows


def cost_rows() -> list[str]:
    """What an order of real tasks costs."""
    rows = [
        "| task | observations | generator, ms | of that the teacher, ms | learner, ms | batch, kB | weights, kB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        line = newest().get((task, 0))
        if line is None:
            rows.append(f"| {task} | not measured | | | | | |")
            continue
        times = [1000 * line[f"{who}_seconds"] for who in ("generator", "teacher", "learner")]
        sizes = [line["batch_bytes"] / 1000, line["weight_bytes"] / 1000]
        rows.append(f"| {task} | {line['observations']:,} | " + " | ".join(f"{x:.1f}" for x in [*times, *sizes]) + " |")
    return rows


def model_rows() -> list[str]:
    """The model: orders a second with many generators, and what limits them."""
    rows = [
        "| task | generators | orders/s (model) | observations/s (model) | what limits |",
        "| --- | --- | --- | --- | --- |",
    ]
    # With few generators their own speed limits.
    driven = newest().get(("null", COUNTS[-1]))
    for task in TASKS:
        line = newest().get((task, 0))
        if line is None or driven is None:
            rows.append(f"| {task} | | not measured | | |")
            continue
        for count in MODELLED:
            limits = {
                "generators": count / line["generator_seconds"],
                "learner": 1 / line["learner_seconds"],
                "loop": driven["loop"],
            }
            limit = min(limits, key=limits.__getitem__)
            orders = limits[limit]
            rows.append(f"| {task} | {count} | {orders:,.0f} | {orders * line['observations']:,.0f} | {limit} |")
    return rows


#: Name of a table -> its rows.
TABLES: dict[str, Callable[[], list[str]]] = {
    "scaling-loop": loop_rows,
    "scaling-costs": cost_rows,
    "scaling-model": model_rows,
}

if __name__ == "__main__":
    sys.exit(main())
