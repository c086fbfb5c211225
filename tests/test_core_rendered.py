"""Generators that move what scenes and worlds are made of."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from gasim_ray.config import DistillConfig
from gasim_ray.core.batch import StudentWeights
from gasim_ray.core.distill import check_objective, generator_loss, new_student
from gasim_ray.core.evolved import EvolvedGenerator, Seen, chosen, mixed, score, watch
from gasim_ray.core.generator import Following, Objective
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.rendered import RenderedGenerator
from gasim_ray.core.scenes import Scenes, SceneSettings
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings, ObjectiveSettings, StudentSettings
from gasim_ray.core.synthesizer import Synthesizer
from gasim_ray.core.worlds import World, Worlds, WorldSettings
from gasim_ray.errors import UserError

FRAMES = replace(tiny.ATARI, layout="CHW", shape=(4, 84, 84))


#: Observations that a score does not look at.
UNSEEN = torch.empty(0)


def no_objective(observations: Tensor, following: Following | None = None) -> Tensor:
    """An objective without a term."""
    return torch.zeros(())


def rendered(scenes: SceneSettings | None = None, **changed: Any) -> RenderedGenerator:
    settings = GeneratorSettings(**{"kind": "rendered", "prior": ("scenes",), "batch_size": 8, "steps": 5, **changed})
    generator = RenderedGenerator(Scenes(tiny.model(FRAMES), "cpu", scenes), settings)
    generator.start(rng("cpu", 0))
    return generator


def test_things_are_moved_to_where_they_are_wanted_and_stay_whole() -> None:
    one = SceneSettings(sprites=1, static=0, noise=0.0, text=0.0, smallest=6.0, largest=6.0)
    generator = rendered(one, steps=40, batch_size=32, learning_rate=0.3)
    ramp = torch.linspace(-1, 1, 84).reshape(1, 1, 84, 1)  # bright things above, dark ones below

    def objective(x: Tensor, _: Following | None = None) -> Tensor:
        return (ramp * x / 255).mean() * 1000

    before = float(objective(generator.emit(rng("cpu"))))
    generator.improve(objective, rng("cpu"))
    stacks = generator.emit(rng("cpu"))
    assert float(objective(stacks)) < before
    tones = [len(stack.unique()) for stack in stacks]
    assert max(tones) <= 2  # a ground and one thing, with hard edges


def test_what_is_not_there_stays_away_and_what_stands_still_stands() -> None:
    generator = rendered()
    assert generator.things is not None
    gone, still = (generator.things.tone == 0).any(1), generator.things.speed == 0
    generator.improve(lambda x, _: x.square().mean(), rng("cpu"))
    assert bool((generator.things.tone[:, 0][gone] == 0).all())
    assert bool((generator.things.speed[still] == 0).all())


def test_a_rendered_generator_knows_what_comes_next() -> None:
    generator = rendered(SceneSettings(noise=0.0), steps=1, learning_rate=0.0)
    seen: list[Tensor] = []

    def objective(now: Tensor, following: Following) -> Tensor:
        seen.extend([now, following()])
        return now.mean()

    generator.improve(objective, rng("cpu"))
    now, later = seen
    assert torch.equal(now[:, 1:], later[:, :-1])
    assert not torch.equal(now[:, -1], later[:, -1])


@pytest.mark.parametrize(
    "terms",
    [{"value": 1.0, "value_bound": 0.0}, {"bellman": 1.0}, {"decided": 1.0}, {"decided": 1.0, "entropy_wanted": 0.9}],
)
def test_scenes_are_moved_to_where_a_teacher_is_at_home(terms: dict[str, float]) -> None:
    teacher, objective = valued(), ObjectiveSettings(**terms)
    generator = rendered(steps=12, batch_size=32, learning_rate=0.3)
    check_objective(teacher, generator.settings, objective)
    labels = torch.zeros(32, dtype=torch.int64)
    losses: list[float] = []

    def loss(now: Tensor, following: Following) -> Tensor:
        found = generator_loss(now, teacher, teacher, labels, objective, following)
        losses.append(float(found.detach()))
        return found

    generator.improve(loss, rng("cpu"))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("term", ["value", "bellman"])
def test_values_are_refused_of_a_teacher_that_has_none(term: str) -> None:
    settings = GeneratorSettings(kind="rendered", prior=("scenes",))
    with pytest.raises(UserError, match=rf"objective\.{term}: the teacher does not answer the value"):
        check_objective(tiny.model(FRAMES), settings, ObjectiveSettings(**{term: 1.0}))


def test_an_entropy_that_no_policy_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.entropy_wanted: 2\.0 is more .* give at most 1\.1"):
        check_objective(valued(), GeneratorSettings(), ObjectiveSettings(decided=1.0, entropy_wanted=2.0))


def test_an_entropy_is_refused_of_a_q_teacher() -> None:
    with pytest.raises(
        UserError, match=r"objective\.decided: the teacher answers with q_values, which have no entropy"
    ):
        check_objective(tiny.model(FRAMES, outputs="q_values"), GeneratorSettings(), ObjectiveSettings(decided=1.0))


def test_what_comes_next_is_refused_of_a_generator_that_does_not_know() -> None:
    with pytest.raises(UserError, match=r"objective\.bellman: a generator of kind direct does not know"):
        check_objective(valued(), GeneratorSettings(), ObjectiveSettings(bellman=1.0))


def evolved(teacher: Model, **changed: Any) -> EvolvedGenerator:
    settings = GeneratorSettings(**{"kind": "evolved", "prior": ("worlds",), "batch_size": 24, "steps": 1, **changed})
    generator = EvolvedGenerator(Worlds(teacher, "cpu", WorldSettings(kept=2)), settings)
    generator.start(rng("cpu", 0))
    return generator


def valued() -> Model:
    """A policy with a value head."""
    torch.manual_seed(0)
    config = ModelConfig(tiny.SMALL_CNN, FRAMES, 3, "logits", value=True)
    return Model(config).frozen()


@pytest.mark.parametrize("teacher", [tiny.model(FRAMES), valued()])
def test_generations_find_worlds_that_the_teacher_speaks_for(teacher: Model) -> None:
    generator = evolved(teacher)

    def mean_score() -> float:
        assert generator.worlds is not None
        return float(score(watch(generator.prior, generator.worlds, 24, rng("cpu", 9)), 1.0).mean())

    before = mean_score()
    for step in range(8):
        generator.improve(no_objective, rng("cpu", 1, step))
    assert mean_score() > before
    assert generator.emit(rng("cpu", 2)).shape == (24, 4, 84, 84)


def test_with_an_adversary_worlds_live_on_in_which_the_student_answers_otherwise() -> None:
    teacher, student = tiny.model(FRAMES), tiny.model(FRAMES, seed=1)
    terms = ObjectiveSettings(adversarial=100.0, divergence="js")

    def against(observations: Tensor, following: Following | None = None) -> Tensor:
        return generator_loss(observations, teacher, student, torch.zeros(len(observations)).long(), terms, following)

    def disagreement(objective: Objective) -> float:
        generator = evolved(teacher)
        for step in range(8):
            generator.improve(objective, rng("cpu", 1, step))
        return -float(against(generator.emit(rng("cpu", 2)))) / 100

    assert disagreement(against) > 1.2 * disagreement(no_objective)


def test_a_restored_population_goes_on_as_the_saved_one() -> None:
    first, second = evolved(tiny.model(FRAMES)), evolved(tiny.model(FRAMES))
    first.improve(no_objective, rng("cpu", 1))
    second.load_state_dict(tiny.through_file(first.state_dict()))
    assert torch.equal(first.emit(rng("cpu", 2)), second.emit(rng("cpu", 2)))


def test_the_score_speaks_for_information_and_units_in_use_and_against_impossible_values() -> None:
    sure = torch.log_softmax(torch.tensor([[[9.0, 0.0], [0.0, 9.0]], [[9.0, 0.0], [9.0, 0.0]]]), 2)
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    depends, does_not = score(Seen(UNSEEN, sure, features, None), 1.0).tolist()
    assert depends == pytest.approx(3.0 + 0.69, abs=0.02)
    assert does_not == pytest.approx(0.0, abs=0.02)
    values = torch.tensor([[0.99, 1.0], [0.99, 3.0], [0.2, 0.6]])
    policy, nothing = sure[1:].expand(3, 2, 2), torch.zeros(3, 2, 1)
    right, far, wrong = score(Seen(UNSEEN, policy, nothing, values), 1.0).tolist()
    assert (right, far) == (pytest.approx(0.0, abs=0.01), pytest.approx(-1.0 - 0.5 * 0.98**2, abs=0.01))
    assert wrong == pytest.approx(-0.5 * (0.2 - 0.99 * 0.6) ** 2, abs=0.01)
    even = torch.full((1, 2, 2), 0.5).log()
    asked = [float(score(Seen(UNSEEN, even, nothing[:1], None), 1.0, entropy)) for entropy in (0.69, 0.19)]
    assert asked == [pytest.approx(0.0, abs=0.01), pytest.approx(-0.5, abs=0.01)]


def test_worlds_are_scored_by_the_entropy_that_the_teacher_s_folder_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[object]()

    def watched(seen: Seen, bound: float, entropy: float | None) -> torch.Tensor:
        told.append(entropy)
        return score(seen, bound, entropy)

    monkeypatch.setattr("gasim_ray.core.evolved.score", watched)
    for source in ({}, {"entropy": 0.4}):
        teacher = tiny.model(FRAMES)
        teacher.config = replace(teacher.config, source=source)
        generator = evolved(teacher)
        generator.start(rng("cpu"))
        generator.improve(no_objective, rng("cpu"))
    assert told == [None, 0.4]


def test_children_have_things_of_both() -> None:
    prior = Worlds(tiny.model(FRAMES), "cpu")
    a, b = prior.draw(2, rng("cpu", 0)), prior.draw(2, rng("cpu", 1))
    taken = torch.zeros((2, a.role.shape[1] + 1), dtype=torch.bool)
    taken[0, 2] = taken[1, -1] = True
    child = mixed(a, b, taken)
    assert torch.equal(child.size[0, 2], b.size[0, 2])
    assert torch.equal(child.tone[0, :, 2], b.tone[0, :, 2])
    assert torch.equal(child.steering[1], b.steering[1])
    assert torch.equal(child.size[1], a.size[1])
    for f in fields(World):
        assert torch.equal(getattr(chosen(child, torch.tensor([0])), f.name)[0], getattr(child, f.name)[0])


@pytest.mark.parametrize(
    ("kind", "reset_every", "lives"),
    [("rendered", 0, [0, 1, 2, 3]), ("rendered", 2, [0, 0, 1, 1]), ("evolved", 2, [0, 0, 1, 1])],
)
@pytest.mark.parametrize("spec", [FRAMES, tiny.ATARI])
def test_a_worker_emits_labelled_frames_and_goes_on(kind: Any, reset_every: int, lives: list[int], spec: Any) -> None:
    teacher = tiny.model(spec)
    prior = "scenes" if kind == "rendered" else "worlds"
    settings = GeneratorSettings(kind=kind, prior=(prior,), steps=1, batch_size=20, reset_every=reset_every)
    student = new_student(teacher, StudentSettings(architecture=tiny.SMALL_CNN), 0)
    objective = ObjectiveSettings(adversarial=float(kind == "rendered"), divergence="js")
    given = DistillConfig("", generator=settings, objective=objective)
    check_objective(teacher, settings, objective)
    worker, restored = (
        Synthesizer(teacher, student, [(Mixture(settings.prior, teacher, "cpu"), given)], 0, "cpu") for _ in range(2)
    )
    weights = StudentWeights(0, {name: tensor.numpy() for name, tensor in student.network.state_dict().items()})
    assert [worker.synthesize(order, weights)[0].generation for order in range(3)] == lives[:3]
    restored.load_state_dict(tiny.through_file(worker.state_dict()))
    (info, batch), (_, again) = (each.synthesize(3, weights) for each in (worker, restored))
    assert info.generation == lives[3]
    assert (batch.observations.shape, batch.observations.dtype) == ((20, *spec.shape), "uint8")
    assert np.array_equal(batch.observations, again.observations)


@pytest.mark.parametrize(("kind", "made_of"), [("rendered", "scenes"), ("evolved", "worlds")])
def test_other_priors_keep_their_shares_beside_what_is_found(kind: str, made_of: str) -> None:
    teacher = tiny.model(FRAMES)
    objective = ObjectiveSettings(adversarial=float(kind == "rendered"), label=float(kind == "rendered"))
    settings = GeneratorSettings(kind=kind, prior=(made_of, "uniform", "patches"), steps=1, batch_size=32)  # type: ignore[arg-type]
    student = new_student(teacher, StudentSettings(architecture=tiny.SMALL_CNN), 0)
    mixture, given = Mixture(settings.prior, teacher, "cpu"), DistillConfig("", generator=settings, objective=objective)
    worker = Synthesizer(teacher, student, [(mixture, given)], 0, "cpu")
    _, batch = worker.synthesize(0, StudentWeights(-1, {}))
    assert len(batch.observations) == 32
    # Noise has as many tones as pixels, what is drawn hardly any.
    tones = [len(np.unique(observation)) for observation in batch.observations]
    assert all(n > 200 for n in tones[12:22])
    assert max(tones[:12]) < 150


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"kind": "rendered", "prior": ("uniform",)},
            r"generator\.prior: \['uniform'\]; .* rendered takes \[scenes\] f",
        ),
        ({"kind": "evolved", "prior": ("scenes",)}, r"kind evolved takes \[worlds\]"),
        ({"kind": "evolved", "prior": ("worlds",), "candidates": 2}, r"generator\.candidates: 2 does not go"),
        ({"kind": "rendered", "prior": ("scenes",), "keep_start": True}, r"generator\.keep_start: True does not go"),
        ({"kind": "network", "blur": 1.0}, r"generator\.blur: 1\.0 does not go with a generator of kind network"),
        (
            {"kind": "network", "prior": (), "contrast": 0.5},
            r"generator\.contrast: 0\.5 .* network and no prior",
        ),
        ({"kind": "evolved", "prior": ("worlds",), "steps": 0}, r"generator\.steps: 0; .* needs at least 1"),
    ],
)
def test_what_does_not_go_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GeneratorSettings(**wrong)


def test_evolved_worlds_are_refused_an_objective_and_a_teacher_without_features() -> None:
    settings = GeneratorSettings(kind="evolved", prior=("worlds",))
    with pytest.raises(UserError, match=r"objective\.label: 2\.0, but evolved generators go by"):
        check_objective(tiny.model(FRAMES), settings, ObjectiveSettings(label=2.0))
    with pytest.raises(UserError, match=r"objective\.value_bound: 5\.0, but .* worlds\.value_bound"):
        check_objective(tiny.model(FRAMES), settings, ObjectiveSettings(value_bound=5.0))
    convolutions = tiny.model(FRAMES)
    convolutions.network = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 84), torch.nn.Flatten())
    with pytest.raises(UserError, match=r"generator\.kind: evolved goes by .* no dense output layer"):
        check_objective(convolutions, settings, ObjectiveSettings())


def test_moved_things_stay_what_the_settings_say() -> None:
    scenes = SceneSettings(contrast=0.2, largest=4.0, speed=2.0, noise=0.0)
    generator = rendered(scenes, steps=20, learning_rate=1.0)
    generator.improve(lambda x, _: -x.square().mean(), rng("cpu"))
    assert generator.things is not None
    assert float(generator.things.tone.abs().max()) == pytest.approx(0.2)
    assert float(generator.things.size.max()) <= 4.0
    assert float(generator.things.speed.abs().max()) <= 2.0


def test_moved_bands_still_reach_from_border_to_border() -> None:
    # One wants every pixel bright, so that nothing becomes smaller.
    bands = SceneSettings(sprites=0, static=1, bands=1.0, text=0.0, noise=0.0, smallest=4.0, largest=4.0)
    generator = rendered(bands, steps=3, learning_rate=1.0)
    generator.improve(lambda x, _: -x.square().mean(), rng("cpu"))
    assert generator.things is not None
    there = (generator.things.tone != 0).any(1)[:, 0]
    assert bool(there.any())
    assert bool((generator.things.size[there, 0].amax(1) > 70).all())


def test_a_batch_is_whole_whatever_its_size() -> None:
    generator = evolved(tiny.model(FRAMES), batch_size=25)
    assert generator.emit(rng("cpu", 2)).shape[0] == 25
