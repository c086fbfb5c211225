"""ZSKT: Zero-shot Knowledge Transfer via Adversarial Belief Matching (Micaelli & Storkey, NeurIPS 2019).

A generator network maximises KL(teacher || student), and the student minimises it: one generator step, then ten student
steps on the same batch of 128, with nothing kept. Latent 100, learning rates 1e-3 (generator) and 2e-3 (student), Adam.

Departures: no attention transfer, which needs teacher and student of one family; the KL is clipped at 20 nats, to keep
gradients finite; the student goes on with the newest batch while the generator makes the next, so ten steps a batch are
the fewest; Adam's first beta is 0.5 for the generator; gradients are not clipped at 5, and the generator's step size
does not fall; it has no batch normalisation at its end, and DAFL's epsilon of 0.8 in the others; what the student
learns from is drawn after the generator's step; in the generator's turn a student with batch normalisation uses its
stored statistics, not those of the batch.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """The paper's game: KL for both sides."""
    return {
        "generator": {
            "kind": "network",
            "prior": [],
            "actors": 1,
            "batch_size": 128,
            "steps": 1,
            "latent": 100,
            "learning_rate": 1e-3,
        },
        "objective": {"adversarial": 1.0, "bound": 20.0},
        "pool": {"replay": 0.0, "capacity": 128},
        "student": {"batch_size": 128, "steps": 10, "learning_rate": 2e-3},
    }
