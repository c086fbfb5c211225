"""gasim: our own. GAS with direct generators that start from what the teacher's weights tell of its data.

Vectors start from the teacher's geometry (core.geometry) at many scales; images from lines, shapes and dead leaves, of
which those are taken that the teacher answers most decidedly, as many for each class, and their contrast is raised; an
order keeps them and moves copies a few steps towards a class drawn at random, past what lies between two classes. Every
order draws a fresh batch, so each is a re-initialisation; its steps also lead to where teacher and student disagree.
The student replays a pool; an image student starts as the teacher cut down to its size where that fits (core.prune).
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
    """Lines, shapes and dead leaves that the teacher answers decidedly, and what a few steps make of them."""
    return {
        "generator": {
            "kind": "direct",
            "prior": ["contours", "shapes", "leaves"],
            "candidates": 8,
            "contrast": 0.7,
            "actors": 1,
            "steps": 4,
            "learning_rate": 0.3,
            "keep_start": True,
            "blur": 1.0,
            "views": 3,
            "shift": 1,
        },
        "objective": {"logit": 1.0, "adversarial": 0.3, "bound": 4.0},
        "pool": {"capacity": 200_000, "hard": 0.5, "fade": 0.5},
        "student": {
            "init": "auto",
            "learning_rate": 6e-3,
            "batch_size": 256,
            "steps": 20,
            "temperature": 3.0,
            "logits_weight": 0.3,
        },
    }
