"""Synthesizer and learner: clocks of re-initialisation, randomness, labels, student steps, saved state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from gasim_ray.actors.workers import LocalWorkers
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.batch import BatchInfo, StudentWeights, SyntheticBatch
from gasim_ray.core.contrast import REMEMBERED, Contrast
from gasim_ray.core.distill import new_student
from gasim_ray.core.learner import Learner
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.model import Model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prior import Uniform
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings, ObjectiveSettings, PoolSettings, StudentSettings
from gasim_ray.core.synthesizer import Synthesizer, wanted_actions
from gasim_ray.errors import UserError
from gasim_ray.run import check_actors, knowledge_level
from gasim_ray.teachers import load_teacher

STUDENT = StudentSettings(architecture=tiny.SMALL_NETWORK, batch_size=32, steps=2)


def handed_out(student: Model, step: int = 0) -> StudentWeights:
    return StudentWeights(step, {name: tensor.numpy() for name, tensor in student.network.state_dict().items()})


START = handed_out(new_student(tiny.model(tiny.VECTOR), STUDENT, 0))


def synthesizer(teacher: Model | None = None, actor: int = 0, seed: int = 0, **changed: Any) -> Synthesizer:
    teacher = teacher or tiny.model(tiny.VECTOR)
    settings = GeneratorSettings(**({"batch_size": 8, "steps": 1, "kind": "network", "latent": 4} | changed))
    prior = Mixture(settings.prior, teacher, "cpu") if settings.prior else None
    student = new_student(teacher, STUDENT, seed)
    given = DistillConfig("", seed=seed, student=STUDENT, generator=settings, objective=ObjectiveSettings(one_hot=1.0))
    return Synthesizer(teacher, student, [(prior, given)], actor, "cpu")


def generations(worker: Synthesizer, orders: int) -> dict[int, list[int]]:
    """Generator -> its generation at each of its orders."""
    found: dict[int, list[int]] = {}
    for order in range(orders):
        info, _ = worker.synthesize(order, START)
        found.setdefault(info.generator, []).append(info.generation)
    return found


def indifferent() -> Model:
    """A teacher whose answer never changes, so that no objective ever gets better."""
    teacher = tiny.model(tiny.VECTOR)
    for parameter in teacher.parameters():
        parameter.data.zero_()
    return teacher


def test_the_clock_restarts_a_network_and_the_clocks_of_a_worker_are_staggered() -> None:
    lives = generations(synthesizer(per_actor=2, reset_every=4, actor=3), 18)
    assert lives == {0: [0, 0, 0, 0, 1, 1, 1, 1, 2], 1: [0, 0, 1, 1, 1, 1, 2, 2, 2]}


def test_without_a_clock_a_network_lives_on() -> None:
    assert generations(synthesizer(), 12) == {0: [0] * 12}


def test_a_network_that_stagnates_is_restarted() -> None:
    assert generations(synthesizer(indifferent(), stagnation=3), 9) == {0: [0, 0, 0, 0, 1, 1, 1, 1, 2]}


def test_a_direct_generator_is_new_in_every_order_or_as_its_clock_says() -> None:
    assert generations(synthesizer(kind="direct"), 4) == {0: [0, 1, 2, 3]}
    assert generations(synthesizer(kind="direct", reset_every=3), 5) == {0: [0, 0, 0, 1, 1]}
    assert generations(synthesizer(kind="direct", reset_every=3, steps=0), 4) == {0: [0, 1, 2, 3]}


def test_a_restarted_network_has_other_weights() -> None:
    worker = synthesizer(reset_every=1)
    networks = []
    for order in range(2):
        worker.synthesize(order, START)
        networks.append(worker.slots[0].generator.state_dict()["network"])
    assert not any(torch.equal(a, b) for a, b in zip(networks[0].values(), networks[1].values(), strict=True))


@pytest.mark.parametrize("kind", ["direct", "network"])
def test_a_batch_depends_on_seed_actor_and_order(kind: str) -> None:
    def first(order: int, **key: int) -> bytes:
        return synthesizer(kind=kind, **key).synthesize(order, START)[1].observations.tobytes()

    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    batches = [first(order, actor=actor, seed=seed) for seed, actor, order in keys]
    assert len(set(batches)) == 4
    assert [first(order, actor=actor, seed=seed) for seed, actor, order in keys] == batches


def test_a_lost_order_of_a_direct_generator_can_be_asked_for_again() -> None:
    worker = synthesizer(kind="direct")
    batches = [worker.synthesize(order, START)[1].observations for order in range(3)]
    assert np.array_equal(synthesizer(kind="direct").synthesize(2, START)[1].observations, batches[2])


def test_a_batch_carries_the_teachers_answers_and_says_where_it_is_from() -> None:
    worker = synthesizer(actor=2, per_actor=2)
    info, made = worker.synthesize(3, handed_out(new_student(worker.teacher, STUDENT, 7), step=40))
    observations = torch.from_numpy(made.observations)
    outputs = worker.teacher(observations)
    np.testing.assert_array_equal(made.teacher_answers, policy_logits(outputs, 1.0).numpy())
    guess = new_student(worker.teacher, STUDENT, 7).eval()(observations)
    assert info.agreement == float((guess.argmax(1) == outputs.argmax(1)).float().mean())
    assert (info.actor, info.generator, info.order, info.student_step, info.count) == (2, 1, 3, 40, 8)
    assert made.info == info


def test_the_first_weights_that_are_handed_out_are_taken() -> None:
    worker = synthesizer(kind="direct")
    learnt = new_student(worker.teacher, STUDENT, 99)
    worker.synthesize(0, handed_out(learnt))
    assert all(torch.equal(a, b) for a, b in zip(worker.student.parameters(), learnt.parameters(), strict=True))


def test_all_actions_are_wanted_equally_often_in_random_order() -> None:
    wanted = wanted_actions(40, 5, rng("cpu", 0))
    assert wanted.bincount().tolist() == [8] * 5
    assert not torch.equal(wanted, wanted_actions(40, 5, rng("cpu", 1)))


def test_images_travel_in_their_own_type() -> None:
    worker = synthesizer(tiny.model(tiny.ATARI), kind="direct")
    worker.student = new_student(worker.teacher, StudentSettings(architecture=tiny.SMALL_CNN), 0).frozen()
    made = worker.synthesize(0, handed_out(worker.student))[1]
    assert made.observations.dtype == np.uint8
    assert made.observations.shape == (8, 84, 84, 4)


def test_a_teacher_that_answers_nan_is_refused() -> None:
    teacher = tiny.model(tiny.VECTOR)
    next(teacher.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"^teacher: answered NaN"):
        synthesizer(teacher, kind="direct", steps=0).synthesize(0, START)


def test_contrast_pushes_a_generator_away_from_what_is_remembered() -> None:
    teacher, objective = tiny.model(tiny.GREY), ObjectiveSettings(contrastive=1.0)
    contrast = Contrast(teacher, GeneratorSettings(shift=1), objective)
    known, new = torch.zeros((2, 1, 1, 28, 28))
    known[..., :14], new[..., 14:] = 255.0, 255.0
    contrast.remember(known)
    assert float(contrast.loss(known, rng("cpu", 3))) > float(contrast.loss(new, rng("cpu", 3)))
    contrast.remember(new.expand(REMEMBERED, -1, -1, -1))
    assert len(contrast.memory) == REMEMBERED
    assert float(contrast.loss(known, rng("cpu", 3))) < float(contrast.loss(new, rng("cpu", 3)))


def test_a_restored_synthesizer_remembers_what_it_contrasts_with() -> None:
    teacher, settings = tiny.model(tiny.GREY), StudentSettings(architecture=tiny.SMALL_CNN)
    generator = GeneratorSettings(kind="direct", prior=("uniform",), steps=1, batch_size=8)
    given = DistillConfig("", student=settings, generator=generator, objective=ObjectiveSettings(contrastive=1.0))

    def worker() -> Synthesizer:
        prior = Mixture(generator.prior, teacher, "cpu")
        return Synthesizer(teacher, new_student(teacher, settings, 0), [(prior, given)], 0, "cpu")

    saved, restored = worker(), worker()
    start = handed_out(saved.student)
    saved.synthesize(0, start)
    restored.load_state_dict(tiny.through_file(saved.state_dict()))
    (info, made), (other, again) = (w.synthesize(1, start) for w in (saved, restored))
    assert info.objective == other.objective
    assert np.array_equal(made.observations, again.observations)


def test_orders_go_round_the_kinds_of_an_actor() -> None:
    teacher = tiny.model(tiny.VECTOR)
    sizes = (8, 5)
    kinds = [GeneratorSettings(kind="direct", prior=("uniform",), steps=0, batch_size=n, per_actor=2) for n in sizes]
    given = [(Mixture(k.prior, teacher, "cpu"), DistillConfig("", student=STUDENT, generator=k)) for k in kinds]
    worker = Synthesizer(teacher, new_student(teacher, STUDENT, 0), given, 0, "cpu")
    answered = [worker.synthesize(order, START)[0] for order in range(5)]
    assert [(info.generator, info.count) for info in answered] == [(0, 8), (1, 5), (2, 8), (3, 5), (0, 8)]


@pytest.mark.parametrize("kind", ["direct", "network"])
def test_a_restored_synthesizer_goes_on_as_the_saved_one(kind: str) -> None:
    def worker() -> Synthesizer:
        return synthesizer(kind=kind, per_actor=2, reset_every=3, stagnation=2)

    saved, restored = worker(), worker()
    for order in range(3):
        saved.synthesize(order, START)
    restored.load_state_dict(tiny.through_file(saved.state_dict()))
    for order in range(3, 12):
        (info, made), (other, again) = (w.synthesize(order, START) for w in (saved, restored))
        assert (info.generation, info.objective) == (other.generation, other.objective)
        assert np.array_equal(made.observations, again.observations)


TEACHER = tiny.model(tiny.VECTOR)


def learner(pool: PoolSettings | None = None, **changed: Any) -> Learner:
    settings = StudentSettings(**({"architecture": tiny.SMALL_NETWORK, "batch_size": 32, "steps": 2} | changed))
    return Learner(new_student(TEACHER, settings, 0), settings, pool or PoolSettings(capacity=500), 0, "cpu")


def batch(seed: int = 0, count: int = 64) -> SyntheticBatch:
    observations = tiny.VECTOR.quantise(Uniform(TEACHER, "cpu").sample(count, rng("cpu", seed)))
    logits = policy_logits(TEACHER(observations), 1.0)
    info = BatchInfo(0, 0, 0, seed, 0, count, 0.0, 0.0, 0.0)
    return SyntheticBatch(observations.numpy(), logits.numpy(), info)


def weights_of(worker: Learner) -> bytes:
    return b"".join(array.tobytes() for array in worker.weights().tensors.values())


def test_the_student_learns_what_the_teacher_answers() -> None:
    worker = learner(learning_rate=1e-2)
    reports = [worker.update(0.0, batch(seed))[0] for seed in range(60)]
    assert reports[-1].loss < 0.5 * reports[0].loss
    held_out = torch.from_numpy(batch(999, 500).observations)
    same = worker.student(held_out).argmax(1) == TEACHER(held_out).argmax(1)
    assert float(same.float().mean()) > 0.8


def test_each_batch_brings_its_steps_and_an_update_without_one_still_steps() -> None:
    worker = learner()
    report, weights = worker.update(0.0, *(batch(seed) for seed in range(3)))
    assert (report.student_step, report.pool_size, weights.step) == (6, 192, 6)
    report, weights = worker.update(0.0)
    assert (report.student_step, report.pool_size) == (8, 192)


def test_the_learning_rate_falls_to_zero_with_the_budget() -> None:
    worker = learner(learning_rate=1e-2)
    rates = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        before = weights_of(worker)
        worker.update(progress, batch())
        rates.append(worker.optimiser.param_groups[0]["lr"])
        assert (weights_of(worker) == before) == (progress == 1.0)
    assert rates == pytest.approx([1e-2, 1e-2 * (1 + math.cos(math.pi / 4)) / 2, 5e-3, 0.0])


@pytest.mark.parametrize("replay", [0.0, 0.5])
def test_only_replay_learns_from_older_batches(replay: float) -> None:
    students = set()
    for older in (1, 2):
        worker = learner(PoolSettings(capacity=500, replay=replay))
        earlier = batch(older)
        worker.pool.add(torch.from_numpy(earlier.observations), torch.from_numpy(earlier.teacher_answers))
        worker.update(0.0, batch(5))
        students.add(weights_of(worker))
    assert len(students) == (1 if replay == 0 else 2)


def test_the_pool_remembers_the_students_last_loss() -> None:
    worker = learner(batch_size=512, steps=1)
    worker.update(0.0, batch())
    losses = worker.pool.losses[:64]
    assert bool((losses >= 0).all())
    assert int(losses.isfinite().sum()) > 60


@pytest.mark.parametrize("replay", [0.0, 0.5, 1.0])
def test_a_restored_learner_goes_on_as_the_saved_one(replay: float) -> None:
    pool = PoolSettings(capacity=100, replay=replay, hard=0.3)
    saved, restored = learner(pool), learner(pool)
    for seed in range(3):
        saved.update(0.1, batch(seed))
    restored.load_state_dict(tiny.through_file(saved.state_dict()))
    for worker in (saved, restored):
        worker.update(0.5)
        worker.update(0.6, batch(9))
    assert weights_of(restored) == weights_of(saved)


def test_weights_that_were_handed_out_do_not_change_later() -> None:
    worker = learner()
    weights = worker.weights().tensors
    before = {name: array.copy() for name, array in weights.items()}
    worker.update(0.0, batch())
    assert all(np.array_equal(weights[name], before[name]) for name in before)


def test_disputed_observations_are_those_on_which_the_student_at_hand_differs() -> None:
    teacher = tiny.model(tiny.VECTOR)
    far = handed_out(new_student(teacher, STUDENT, 5), step=1)
    plain, disputed = (synthesizer(teacher, kind="direct", steps=0, disputed=n, batch_size=64) for n in (0, 4))
    agreements = [worker.synthesize(0, far)[0].agreement for worker in (plain, disputed)]
    assert agreements[1] < agreements[0]
    same = StudentWeights(2, {name: tensor.numpy() for name, tensor in teacher.network.state_dict().items()})
    _, batch = disputed.synthesize(1, same)
    assert batch.observations.shape == (64, 4)
    with pytest.raises(UserError, match=r"generator\.disputed: only a direct generator has candidates, not network"):
        GeneratorSettings(kind="network", disputed=2)


@pytest.mark.parametrize("prior", ["worlds", "rally", "scenes"])
def test_frames_are_made_and_labelled(prior: str) -> None:
    teacher = tiny.model(tiny.ATARI, actions=6)
    settings = GeneratorSettings(prior=(prior,), steps=0, batch_size=20, disputed=2)
    student = new_student(teacher, StudentSettings(architecture=tiny.SMALL_CNN), 0)
    given = DistillConfig("", generator=settings)
    worker = Synthesizer(teacher, student, [(Mixture(settings.prior, teacher, "cpu"), given)], 0, "cpu")
    weights = StudentWeights(0, {name: tensor.numpy() for name, tensor in student.network.state_dict().items()})
    info, batch = worker.synthesize(0, weights)
    assert (batch.observations.shape, batch.teacher_answers.shape, info.count) == ((20, 84, 84, 4), (20, 6), 20)


def test_actors_take_settings_of_their_own_in_turn(vector_teacher: Path) -> None:
    own = [{"generator": {"prior": ["gaussian"], "steps": 2}, "objective": {"adversarial": 3.0}}, {}]
    student = {"architecture": tiny.SMALL_NETWORK}
    common = {"prior": ["uniform"], "actors": 3, "steps": 0, "batch_size": 32}
    tree = {
        "teacher": str(vector_teacher),
        "student": student,
        "generator": common,
        "actor_settings": own,
        "local": True,
    }
    config = build_config(tree)
    workers = LocalWorkers(load_teacher(vector_teacher), config)

    def kind(synthesizer: Synthesizer) -> tuple[str, int, float]:
        (slot,) = synthesizer.slots
        prior = slot.generator.prior.priors[0]  # type: ignore[attr-defined]
        return type(prior).__name__, slot.kind.settings.steps, slot.kind.objective.adversarial

    common_adversary = config.objective.adversarial
    assert common_adversary not in (0.0, 3.0)
    first = ("Gaussian", 2, 3.0)
    assert [kind(s) for s in workers.synthesizers] == [first, ("Uniform", 0, common_adversary), first]
    answers = [workers.order(actor, 0, workers.student_weights()) for actor in range(3)]
    assert [answer.summary.count for answer in answers] == [32, 32, 32]
    generator = {**common, "actors": 2}
    few = LocalWorkers(
        load_teacher(vector_teacher), build_config({**tree, "generator": generator, "actor_settings": [*own, *own, {}]})
    )
    assert [[slot.kind.settings.steps for slot in s.slots] for s in few.synthesizers] == [[2, 2, 0], [0, 0]]
    # Vectors are standardised alike by all, by what the common prior draws.
    normalisers = {str(s.student.config.observation) for s in workers.synthesizers}
    assert normalisers == {str(workers.learner.student.config.observation)}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([{}, {"student": {"steps": 3}}], r"^actor_settings\[1\]: student\.steps: all actors share it; set it beside"),
        ([{"generator": {"actors": 3}}], r"^actor_settings\[0\]: generator\.actors: all actors share it"),
        (
            [{"generator": {"priors": ["uniform"]}}],
            r"^actor_settings\[0\]: generator\.priors: no such key; did you mean gen",
        ),
        ([{"generator": {"steps": "many"}}], r"^actor_settings\[0\]: generator\.steps: 'many' is not of type int"),
        ([{"generator": {"steps": -1}}], r"^actor_settings\[0\]: generator\.steps: -1 is impossible; give at least 0"),
        ([{"seed": 3}], r"actor_settings: .*3"),
        ("many", r"actor_settings: .*many"),
    ],
)
def test_settings_that_an_actor_cannot_have(vector_teacher: Path, own: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config({"teacher": str(vector_teacher), "generator": {"actors": 2}, "actor_settings": own})


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([{}, {"generator": {"prior": ["patches"]}}], r"^actor_settings\[1\]: generator\.prior: patches need"),
        ([{"generator": {"prior": ["nonsense"]}}], r"^actor_settings\[0\]: generator\.prior: 'nonsense' is not one of"),
        ([{}, {"generator": {"steps": 4}}], r"^actor_settings\[1\]: generator\.steps: 4 steps have nothing to improve"),
    ],
)
def test_settings_of_an_actor_that_do_not_fit_the_teacher(vector_teacher: Path, own: Any, message: str) -> None:
    tree = tiny.tree(vector_teacher, method="noise", actor_settings=own)
    with pytest.raises(UserError, match=message):
        check_actors(load_teacher(vector_teacher), build_config(tree))


def test_a_run_knows_what_its_most_knowing_actor_does() -> None:
    def level(*own: dict[str, Any]) -> str:
        generator = {"prior": ["uniform"], "actors": 3}
        teacher = "benchmarks/teachers/pong-ppo-0"
        return knowledge_level(build_config({"teacher": teacher, "generator": generator, "actor_settings": list(own)}))

    assert level({}) == "bounds"
    assert level({}, {"generator": {"blur": 1.0}}) == "generic"
    assert level({"generator": {"prior": ["scenes"]}}, {}) == "generic"
    assert level({"generator": {"prior": ["scenes"]}}, {}, {"generator": {"prior": ["rally"]}}) == "domain"
