"""DFAD: Data-Free Adversarial Distillation (Fang et al. 2019, arXiv 1912.11006).

A generator network maximises the mean absolute difference of teacher's and student's logits, and the student minimises
it: one generator step for five student steps, on what the newest generator makes, with nothing kept. Batch 512, latent
100 and the generator's learning rate of 1e-3 are those of the authors' code for MNIST, batch 256 and latent 256 for
pictures in colours those for CIFAR-10.

Departures: the five student steps of a round take 256 each out of one batch instead of five fresh ones; the student
learns with Adam and a cosine instead of SGD and steps of epochs, and goes on with the newest batch while the generator
makes the next, so five steps a batch are the fewest; Adam's first beta is 0.5 for the generator; logits are centred;
the generator has no batch normalisation at its end, and DAFL's epsilon of 0.8 in the others; in the generator's turn a
student with batch normalisation uses its stored statistics, not those of the batch.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """The paper's game: L1 of logits for both sides."""
    batch, latent = (256, 256) if teacher.coloured else (512, 100)
    return {
        "generator": {
            "kind": "network",
            "prior": [],
            "actors": 1,
            "batch_size": batch,
            "steps": 1,
            "latent": latent,
            "learning_rate": 1e-3,
        },
        "objective": {"adversarial": 1.0, "divergence": "l1", "bound": 1e6},
        "pool": {"replay": 0.0, "capacity": batch},
        "student": {
            "batch_size": 256,
            "steps": 5,
            "learning_rate": 2e-3,
            "logits_weight": 1.0,
            "logits_alone": True,
        },
    }
