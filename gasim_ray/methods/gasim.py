"""gasim: our own. GAS with direct generators that start from what the teacher's weights tell of its data.

Vectors start from the teacher's geometry (core.prior) at many scales; images from lines along the level sets of smooth
random fields. Each order draws a fresh batch and moves it a few steps to where teacher and student disagree, so every
batch is a re-initialisation. The student replays a pool.
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """One setting for every vector teacher, one for every image teacher."""
    return image_preset() if teacher.observation.is_image else vector_preset()


def vector_preset() -> Tree:
    """Geometry, half of it where the teacher's actions differ little, with a light adversary."""
    return {
        "generator": {"kind": "direct", "prior": ["geometry", "undecided"], "steps": 3, "learning_rate": 0.1},
        "objective": {"adversarial": 1.0, "bound": 4.0},
        "pool": {"capacity": 200_000, "hard": 0.25},
        "student": {"learning_rate": 3e-3, "batch_size": 512, "steps": 10},
    }


def image_preset() -> Tree:
    """Contours, moved a little along a blurred gradient; each is labelled in four shifted views."""
    return {
        "generator": {
            "kind": "direct",
            "prior": ["contours"],
            "steps": 3,
            "learning_rate": 0.25,
            "blur": 1.0,
            "views": 4,
            "shift": 2,
        },
        "objective": {"label": 1.0, "adversarial": 3.0, "bound": 4.0},
        "pool": {"capacity": 200_000, "hard": 0.5, "fade": 0.5},
        "student": {"learning_rate": 4e-3, "batch_size": 256, "steps": 10, "logits_weight": 0.05},
    }
