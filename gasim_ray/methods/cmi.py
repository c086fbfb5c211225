"""CMI: Contrastive Model Inversion (Fang et al., IJCAI 2021).

A generator network with its latent vectors is trained anew for every batch: cross-entropy to wanted classes in equal
shares, batch-norm statistics, an adversary masked to where teacher and student agree, and a contrastive term that
pushes each image away from the others and from earlier ones in the teacher's features. All batches are kept and
replayed. Weights 0.5, 1, 0.5 and 0.8, contrastive temperature 0.1, batches of 256 and 128, latent 256 and learning rate
1e-3 are those of the authors' script for CIFAR-10.

Departures: 50 steps for a batch instead of 200, and 25 of the student by Adam at 2e-3 where the authors take 2,000 by
SGD at 0.1; no images are inverted before the student begins, where they have some 50,000; the contrastive term compares
shifted views in the features before the teacher's last layer, without the learned head and the local crops, with 2,048
earlier ones where theirs has 4,096 of a bank that are anchors too, and its gradient goes through both views, where
theirs leaves one as it is; weights start as PyTorch's do, not from N(0, 0.02), and batch normalisation has DAFL's
epsilon of 0.8; no crops and flips of what is inverted or replayed, no choice of the best step; the adversary is KL
clipped at 4 nats; without batch normalisation that term is off. Vectors have no views, so their contrastive term is off
as well.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """Its terms and weights."""
    return {
        "generator": {
            "kind": "network",
            "prior": [],
            "batch_size": 256,
            "steps": 50,
            "latent": 256,
            "learning_rate": 1e-3,
            "fixed_latent": True,
            "reset_every": 1,
        },
        "objective": {
            "label": 0.5,
            "batch_norm": 1.0 if teacher.batch_norm else 0.0,
            "adversarial": 0.5,
            "masked": True,
            "bound": 4.0,
            "contrastive": 0.8 if teacher.observation.is_image else 0.0,
        },
        "pool": {"replay": 1.0, "capacity": 100_000},
        "student": {"batch_size": 128, "steps": 25, "learning_rate": 2e-3, "temperature": 20.0},
    }
