"""DeepInversion, adaptive (Yin et al., CVPR 2020): images are optimised batch by batch from normal noise.

Each batch is moved along the gradient of cross-entropy to wanted classes in equal shares, total variation, distance to
the teacher's batch-norm statistics, and the Jensen-Shannon divergence from the student. What is made is kept and
replayed. Weights 1 (classes), 10 (statistics) and 1 (divergence) are those with which CMI's authors ran it on CIFAR-10.

Departures: 100 steps of Adam for a batch instead of 1,000 or more, because a sitting has minutes and not days; images
are neither jittered nor flipped between steps, there is no term for their L2 norm, they start around the middle of the
bounds with a quarter of their width as deviation, and the last ones are taken, of steps that shorten to 0.3, where
CMI's authors take the best of steps of one length; the student takes 50 steps a batch by Adam at 2e-3 and temperature
1, where CMI's authors take 400 by SGD at 0.1 and temperature 20, on crops and flips of what is kept, and the divergence
is at temperature 1, not 3; total variation is the mean absolute difference of neighbouring pixels of the normalised
image, and its weight, 0.1, is our own choice; without batch normalisation that term is off, and nothing takes its
place. Teachers that read vectors have no total variation.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """Its terms and weights."""
    return {
        "generator": {
            "kind": "direct",
            "prior": ["gaussian"],
            "batch_size": 256,
            "steps": 100,
            "adam": True,
            "learning_rate": 0.1,
        },
        "objective": {
            "label": 1.0,
            "total_variation": 0.1 if teacher.observation.is_image else 0.0,
            "batch_norm": 10.0 if teacher.batch_norm else 0.0,
            "adversarial": 1.0,
            "divergence": "js",
            "bound": 1.0,
        },
        "pool": {"replay": 1.0, "capacity": 50_000},
        "student": {"batch_size": 256, "steps": 50, "learning_rate": 2e-3},
    }
