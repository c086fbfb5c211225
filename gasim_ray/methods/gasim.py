"""gasim: our own. GAS with direct generators that start from a prior of what the teacher reads.

Vectors start from what the teacher's weights tell of its data, its geometry (core.geometry) at many scales. Images and
games start from drawings, which are knowledge of pictures (`generic`). Images start from lines, shapes and leaves amid
an empty ground, of which are taken those that the teacher answers most decidedly, as many for each class; an order
keeps them and moves copies a few steps towards a class drawn at random, past what lies between two classes, and to
where teacher and student disagree. Of grey ones, where the teacher has a hidden dense layer, those are taken that it,
too, answers strongly, which come nearer to classes that look alike, and as many of each of some clusters in what it
reads, so that no kind is left out where a class holds several. In colours they start from textured leaves that fill the
frame and are moved further, to the teacher's batch-norm statistics too. A game's frames start from scenes in motion and
stay as they are. Every order draws a fresh batch, so each is a re-initialisation. Several actors may differ in all of
this (`actor_settings`); on two cores two make fewer observations a second than one does.

The student replays a pool; one of images or games starts as the teacher cut down to its size where that fits
(core.prune, core.slim, core.svd).
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
    """Grey pictures: lines, shapes and dead leaves amid an empty ground that the teacher answers decidedly, of many
    kinds, and what a few steps make of them. Coloured ones: leaves that fill the frame, moved until each is of a class
    drawn at random and all together have the statistics that a teacher with batch normalisation has stored.
    """
    # What a hidden dense layer reads and answers tells kinds apart; more candidates by themselves bring nothing.
    hidden = {"candidates": 24, "alignment": 4.0, "clusters": 20}
    grey: Tree = {
        "generator": {
            "prior": ["contours", "shapes", "leaves"],
            **(hidden if teacher.dense_layers > 1 else {"candidates": 8}),
            "contrast": 0.7,
            "steps": 4,
            "learning_rate": 0.3,
            "keep_start": True,
            "views": 3,
            "shift": 1,
        },
        "objective": {"logit": 1.0, "batch_norm": 1.0 if teacher.batch_norm else 0.0},
        "student": {"learning_rate": 6e-3},
    }
    colour: Tree = {
        "generator": {
            "prior": ["nature"],
            "adam": True,
            "steps": 20,
            "learning_rate": 0.1,
            "views": 4,
            "shift": 4,
            "mirror": True,
        },
        "objective": {"label": 1.0, "batch_norm": 0.1 if teacher.batch_norm else 0.0},
        "student": {"learning_rate": 1e-3},
    }
    own = colour if teacher.coloured else grey
    return {
        "generator": {"kind": "direct", "actors": 1, "blur": 1.0, **own["generator"]},
        "objective": {"adversarial": 0.3, "bound": 4.0, **own["objective"]},
        "pool": {"capacity": 200_000, "hard": 0.5, "fade": 0.5},
        "student": {
            "init": "auto",
            "batch_size": 256,
            "steps": 20,
            "temperature": 3.0,
            "logits_weight": 0.3,
            **own["student"],
        },
    }


def frames_preset() -> Tree:
    """Scenes in motion, each used a few times; the student is the teacher cut down, where that fits.

    Few and faint things, chosen by the KL on frames of Pong before other games; recorded since, many or bright ones do
    as well there, all at once worse. A student from scratch needs more: things that may fill the picture, faint and
    bright and with noise, filters without a mean, and what the teacher's layers read (size `scratch` of
    benchmarks/suites/atari.yaml).
    """
    return {
        "generator": {"kind": "direct", "prior": ["scenes"], "steps": 0, "actors": 1},
        "scenes": {"sprites": 3, "static": 2, "largest": 16.0, "text": 0.1, "noise": 0.0, "contrast": 0.3},
        "pool": {"capacity": 20_000},
        "student": {"init": "auto", "learning_rate": 3e-4, "batch_size": 256, "steps": 2},
    }
