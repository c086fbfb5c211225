"""DAFL: Data-Free Learning of Student Networks (Chen et al., ICCV 2019).

One generator network, never re-initialised, minimises one-hot loss, minus activation and minus batch entropy of the
teacher's answers; the student learns from the newest batch only. Weights 1, 0.1 and 5, batch 512, latent 100 and the
learning rates 0.2 (images) and 2e-3 are those of the paper's MNIST experiment; pictures in colours have batch 1024,
latent 1000 and the generator's learning rate of 0.02 of that on CIFAR-10.

Departures: the last batch normalisation of the generator is left out, so that its output respects the bounds; for
vectors the generator is a dense network with learning rate 1e-3, since the paper has images only; the student learns by
Adam at 2e-3 along a cosine of the budget, where their MNIST student's rate stays as it is, and goes on with the newest
batch while the generator makes the next, so that it takes many steps on each instead of one; what it learns from is
drawn after the generator's step, from fresh latent vectors, where theirs learns from the very batch of that step; the
generator's Adam has 0.5 as its first beta, and entropies are in nats where the authors' code has log10, which makes
that weight 2.3 times theirs. On CIFAR-10 their student learns by SGD at 0.1.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """The paper's settings."""
    batch, latent, rate = (1024, 1000, 0.02) if teacher.coloured else (512, 100, 0.2)
    return {
        "generator": {
            "kind": "network",
            "prior": [],
            "actors": 1,
            "batch_size": batch,
            "steps": 1,
            "latent": latent,
            "learning_rate": rate if teacher.observation.is_image else 1e-3,
        },
        "objective": {"one_hot": 1.0, "activation": 0.1, "entropy": 5.0},
        "pool": {"replay": 0.0, "capacity": batch},
        "student": {"batch_size": batch, "steps": 1, "learning_rate": 2e-3},
    }
