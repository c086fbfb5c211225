"""gasim: our own. GAS with direct generators that start from what the teacher's weights tell of its data.

Vectors start from the teacher's geometry (core.geometry) at many scales. Images start from lines, shapes and leaves
amid an empty ground, or, in colours, from textured leaves that fill the frame; of these are taken those that the
teacher answers most decidedly, as many for each class. An order keeps them and moves copies a few steps towards a class
drawn at random, past what lies between two classes, and to where teacher and student disagree. A game's frames start
from scenes in motion and stay as they are. Every order draws a fresh batch, so each is a re-initialisation.

The student replays a pool; one of images starts as the teacher cut down to its size where that fits (core.prune).
"""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """One setting for every vector teacher, one for pictures and one for successive frames of a game."""
    if teacher.observation.stack > 1 and teacher.observation.is_image:
        return frames_preset()
    return image_preset(teacher) if teacher.observation.is_image else vector_preset()


def vector_preset() -> Tree:
    """Geometry, half of it where the teacher's actions differ little, with a light adversary."""
    return {
        "generator": {"kind": "direct", "prior": ["geometry", "undecided"], "steps": 3, "learning_rate": 0.1},
        "objective": {"adversarial": 1.0, "bound": 4.0},
        "pool": {"capacity": 200_000, "hard": 0.25},
        "student": {"learning_rate": 3e-3, "batch_size": 512, "steps": 10},
    }


def image_preset(teacher: TeacherFacts) -> Tree:
    """Pictures that the teacher answers decidedly, and what a few steps make of them.

    Grey ones are lines, shapes and dead leaves amid an empty ground; coloured ones fill the frame.
    """
    coloured = teacher.observation.channels > 1
    return {
        "generator": {
            "kind": "direct",
            "prior": ["nature"] if coloured else ["contours", "shapes", "leaves"],
            "candidates": 8,
            "contrast": 0.0 if coloured else 0.7,
            "actors": 1,
            "steps": 4,
            "learning_rate": 0.3,
            "keep_start": True,
            "blur": 1.0,
            "views": 3,
            "shift": 1,
        },
        "objective": {
            "logit": 1.0,
            "adversarial": 0.3,
            "bound": 4.0,
            "batch_norm": 1.0 if teacher.batch_norm else 0.0,
        },
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


def frames_preset() -> Tree:
    """Scenes in motion, each used a few times; the student is the teacher cut down, where that fits."""
    return {
        "generator": {"kind": "direct", "prior": ["scenes"], "steps": 0, "actors": 1},
        "pool": {"capacity": 20_000},
        "student": {"init": "auto", "learning_rate": 1e-3, "batch_size": 256, "steps": 2},
    }
