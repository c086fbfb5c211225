"""GAS: Generative Adversarial Simulator (Raiman 2020, arXiv 2011.11472).

DAFL's terms, an adversarial reward where teacher and student disagree, generators that are re-initialised again and
again, and a pool that keeps what earlier ones found.

Departures: only the paper's abstract is public to us, so the interval of re-initialisation, the divergence (KL,
bounded) and the pool's size are our own choice; the generator is DAFL's, without its last batch normalisation.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """DAFL's weights with an adversary, several generators for each actor and a replayed pool."""
    return {
        "generator": {
            "kind": "network",
            "prior": [],
            "actors": 2,
            "per_actor": 2,
            "batch_size": 512,
            "steps": 3,
            "latent": 100,
            "learning_rate": 2e-3,
            "reset_every": 30,
        },
        "objective": {"one_hot": 1.0, "activation": 0.1, "entropy": 5.0, "adversarial": 1.0, "bound": 4.0},
        "pool": {"replay": 1.0, "capacity": 50_000},
        "student": {"batch_size": 256, "steps": 5, "learning_rate": 2e-3},
    }
