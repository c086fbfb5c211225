"""The configuration tree: what is written can be read, mistakes are named, and who wins over whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gasim_ray.config import DistillConfig, build_config, known_keys, parse_config
from gasim_ray.core.settings import (
    BudgetSettings,
    GeneratorSettings,
    ObjectiveSettings,
    PoolSettings,
    StudentSettings,
)
from gasim_ray.errors import UserError
from gasim_ray.methods import METHODS, TeacherFacts, preset
from gasim_ray.run_folder import saved_config

weight = st.floats(0, 1e6)
share = st.floats(0, 1)
whole = st.integers(1, 10**6)
count = st.integers(0, 10**6)

students = st.builds(
    StudentSettings,
    architecture=st.sampled_from([tiny.SMALL_NETWORK, tiny.SMALL_CNN, {"name": "a.b:c", "on": [None, 1e-9, "1e3"]}]),
    learning_rate=weight,
    batch_size=st.integers(1, 64),
    steps=whole,
    temperature=st.floats(1e-3, 1e3),
    logits_weight=weight,
)


def possible_generator(kind: Any, blur: float, **others: Any) -> GeneratorSettings:
    """Nothing moves along a blurred gradient but what is direct."""
    return GeneratorSettings(kind=kind, blur=blur if kind == "direct" else 0.0, **others)


generators = st.builds(
    possible_generator,
    kind=st.sampled_from(["network", "direct"]),
    prior=st.lists(st.sampled_from(["uniform", "gaussian", "geometry"]), min_size=1, max_size=3).map(tuple),
    **{name: whole for name in ("actors", "per_actor", "latent", "in_flight", "views")},
    **{name: count for name in ("steps", "shift", "reset_every", "stagnation")},
    **{name: weight for name in ("learning_rate", "blur", "cpus", "gpus")},
    batch_size=st.integers(64, 10**6),
)
terms = ("one_hot", "label", "entropy", "activation", "adversarial", "bound", "batch_norm", "total_variation")
objectives = st.builds(
    ObjectiveSettings,
    **dict.fromkeys(terms, weight),
    divergence=st.sampled_from(["kl", "js", "l1"]),
    masked=st.booleans(),
)
budgets = st.builds(
    BudgetSettings,
    seconds=st.none() | st.floats(0.1, 1e9),
    observations=st.none() | whole,
    student_steps=st.none() | whole,
)
# What YAML could take for something else than text, too.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1) | st.sampled_from(
    ["null", "1e3", "12", "on", "~", "a: b", "{}", "- x", "#", "2020-01-01"]
)


def possible(local: bool, device: str, generator: GeneratorSettings, **others: Any) -> DistillConfig:
    """A configuration that reserves no GPUs for actors where there are none, and names no GPU where Ray chooses."""
    generator = replace(generator, gpus=0.0) if local else generator
    device = device if local else device.partition(":")[0]
    return DistillConfig(local=local, device=device, generator=generator, **others)


def configs(teacher: Path) -> st.SearchStrategy[DistillConfig]:
    return st.builds(
        possible,
        teacher=st.just(str(teacher)),
        method=st.sampled_from(list(METHODS)),
        out=st.just("") | texts,
        seed=st.integers(0, 2**63),
        device=st.sampled_from(["cpu", "cuda", "cuda:3"]),
        local=st.booleans(),
        synchronous=st.booleans(),
        checkpoint_seconds=st.floats(0.1, 1e9),
        student=students,
        generator=generators,
        objective=objectives,
        pool=st.builds(PoolSettings, capacity=whole, replay=share, hard=share),
        budget=budgets,
    )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_configuration_is_read_back_as_it_was_written(
    data: st.DataObject, vector_teacher: Path, tmp_path: Path
) -> None:
    config = data.draw(configs(vector_teacher))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert saved_config(tmp_path) == config


def test_every_field_has_a_dotted_key() -> None:
    sections = {"student", "generator", "scenes", "worlds", "objective", "pool", "budget"}
    keys = {f.name for f in fields(DistillConfig)} - sections
    for section in fields(DistillConfig):
        if section.name in sections:
            keys |= {f"{section.name}.{f.name}" for f in fields(section.default_factory)}  # type: ignore[arg-type]
    assert set(known_keys()) >= keys


@pytest.fixture
def read(vector_teacher: Path, config_file: Callable[..., Path]) -> Callable[..., DistillConfig]:
    """Reads a YAML tree beneath dotted arguments."""

    def parse(tree: dict[str, Any], *arguments: str) -> DistillConfig:
        return parse_config(list(arguments), str(config_file({"teacher": str(vector_teacher), **tree})))

    return parse


@pytest.mark.parametrize("method", list(METHODS))
def test_the_method_sets_what_nobody_else_sets(method: str, read: Callable[..., DistillConfig]) -> None:
    config = read({"method": method})
    presets = preset(method, TeacherFacts(tiny.VECTOR, batch_norm=False, dense_layers=2))
    for section in ("student", "generator", "objective", "pool"):
        found = getattr(config, section)
        default = type(found)()
        for field in fields(found):
            wanted = presets.get(section, {}).get(field.name, getattr(default, field.name))
            wanted = tuple(wanted) if isinstance(wanted, list) and field.name == "prior" else wanted
            assert getattr(found, field.name) == wanted, f"{section}.{field.name}"


def test_the_file_wins_over_the_method_and_the_command_line_over_the_file(
    read: Callable[..., DistillConfig],
) -> None:
    named = read({"method": "gas"})
    filed = read({"method": "gas", "generator": {"steps": 17, "latent": 9}})
    both = read({"method": "gas", "generator": {"steps": 17, "latent": 9}}, "--generator.steps", "18", "--seed=4")
    assert named.generator.steps not in (17, 18)
    assert filed.generator == replace(named.generator, steps=17, latent=9)
    assert both.generator == replace(filed.generator, steps=18)
    assert (filed.seed, both.seed) == (0, 4)


def test_a_method_given_on_the_command_line_replaces_the_files(read: Callable[..., DistillConfig]) -> None:
    config = read({"method": "gas"}, "--method=noise")
    assert config == read({"method": "noise"})
    assert config.generator.steps == 0


def test_a_method_does_not_take_the_place_of_one_whose_settings_would_stay(
    read: Callable[..., DistillConfig],
) -> None:
    with pytest.raises(UserError, match=r"^method: 'noise' over a configuration of 'gas' whose \S+ would stay"):
        read(yaml.safe_load(read({"method": "gas"}).to_yaml()), "--method=noise")
    own = read({"method": "gas", "generator": {"actors": 7}, "budget": {"seconds": 5}}, "--method=noise")
    assert (own.generator.actors, own.budget.seconds) == (7, 5)


def test_a_presets_pool_of_large_pictures_is_of_fewer() -> None:
    facts = TeacherFacts(replace(tiny.GREY, shape=(3, 224, 224)), batch_norm=False, dense_layers=2)
    assert preset("gasim", facts)["pool"]["capacity"] == 2**32 // (3 * 224 * 224)
    assert preset("gasim", TeacherFacts(tiny.GREY, batch_norm=False, dense_layers=2))["pool"]["capacity"] == 200_000


def test_the_preset_follows_what_the_teacher_reads(vector_teacher: Path, image_teacher: Path) -> None:
    vector, image = (build_config({"teacher": str(folder)}) for folder in (vector_teacher, image_teacher))
    assert "geometry" in vector.generator.prior
    assert "geometry" not in image.generator.prior
    # Clusters are sought in what a hidden dense layer reads.
    assert vector.generator.clusters == 0 < image.generator.clusters
    assert "clusters" not in preset("gasim", TeacherFacts(tiny.GREY, batch_norm=False, dense_layers=1))["generator"]


def test_architectures_are_given_whole(read: Callable[..., DistillConfig]) -> None:
    config = read({}, '--student.architecture={"name": "mlp", "hidden": [7]}')
    assert config.student.architecture == {"name": "mlp", "hidden": [7]}


def test_an_architecture_named_by_a_dotted_key_has_no_settings_of_another(read: Callable[..., DistillConfig]) -> None:
    config = read({}, "--student.architecture.name=lenet5", "--student.architecture.width=0.5")
    assert config.student.architecture == {"name": "lenet5", "width": 0.5}


def test_a_setting_that_is_gone_and_was_off_is_passed_over(vector_teacher: Path) -> None:
    tree = {"teacher": str(vector_teacher), "generator": {"families": False, "steps": 2}}
    assert build_config(tree).generator.steps == 2
    with pytest.raises(UserError, match=r"^generator\.families: no such key"):
        build_config({**tree, "generator": {"families": True}})


@pytest.mark.parametrize(
    ("tree", "arguments", "said"),
    [
        ({"generatr": {"steps": 3}}, [], "^generatr: no such key; did you mean generator"),
        ({"generator": {"step": 3}}, [], r"^generator\.step: no such key; did you mean generator\.steps\?"),
        ({}, ["--budget.second", "3"], r"^budget\.second: no such key; did you mean budget\.seconds\?"),
        ({}, ["--generator.learningrate=1"], r"generator\.learningrate: no such key; did you mean generator\.learning"),
        ({"sead": 3}, [], "^sead: no such key; did you mean seed"),
        ({1: 2}, [], "^1: no such key"),
        ({"seed": None}, [], "^seed: is empty; give a value or leave it out"),
        ({"student": {"learning_rate": None}}, [], r"^student\.learning_rate: is empty"),
        ({"actor_settings": None}, [], "^actor_settings: is empty"),
        ({"elastic": True, "local": True}, [], "^elastic: goes with neither local nor synchronous"),
        ({"student": {"node_label": "head"}}, [], r"^student\.node_label: 'head' is no label; give it as key=value"),
        ({"zzzzzzzzz": 3}, [], "^zzzzzzzzz: no such key; see gasim distill --help"),
        ({"method": "gsim"}, [], "^method: 'gsim' is not known; did you mean 'gasim'"),
        ({"generator": {"steps": "many"}}, [], r"generator\.steps.*many"),
        ({"generator": {"steps": 1.5}}, [], r"generator\.steps.*1\.5"),
        ({"generator": 3}, [], "^generator: 3 is no mapping"),
        ({"generator": {"kind": "netwrk"}}, [], r"generator\.kind.*netwrk"),
        ({"local": "perhaps"}, [], "local.*perhaps"),
        ({}, ["--seed", "x"], "seed.*x"),
        ({}, ["--seed"], "seed"),
        ({}, ["stray"], "stray"),
        ({"generator": {"batch_size": 0}}, [], r"^generator\.batch_size: 0 is impossible; give at least 1$"),
        ({"pool": {"replay": 1.5}}, [], r"^pool\.replay: 1\.5 is impossible; give at most 1$"),
        ({"budget": {"seconds": -1}}, [], r"^budget\.seconds: -1"),
        ({"student": {"learning_rate": float("nan")}}, [], r"^student\.learning_rate: nan is impossible"),
        ({"seed": -1}, [], r"seed: -1 is impossible; give at least 0$"),
        ({"device": "gpu"}, [], "^device: 'gpu' is not one of cpu, cuda"),
        ({"device": "cuda:1"}, [], r"^device: 'cuda:1' goes with local; .* use cuda$"),
        ({"generator": {"prior": []}}, [], r"^generator\.prior: empty"),
        (
            {"pool": {"replay": 0.5}, "student": {"batch_size": 600}},
            [],
            r"^student\.batch_size: 600 is more than generator\.batch_size",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(
    read: Callable[..., DistillConfig], tree: dict[str, Any], arguments: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(tree, *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("teacher: [", "cannot be read"), ("- teacher", "holds no mapping"), ("", "no mapping")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        parse_config([], str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_without_a_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="teacher"):
        parse_config([])


def test_the_run_folder_names_teacher_method_and_seed(read: Callable[..., DistillConfig]) -> None:
    config = read({"method": "gas", "seed": 3})
    assert config.run_folder() == Path("runs/vector-gas-3")
    assert config.at(Path("elsewhere")).run_folder() == Path("elsewhere")


def test_the_written_file_shows_every_setting(read: Callable[..., DistillConfig]) -> None:
    written = yaml.safe_load(read({"method": "dafl"}).to_yaml())
    flat = {
        f"{k}.{i}" if isinstance(v, dict) else k
        for k, v in written.items()
        for i in (v if isinstance(v, dict) else [0])
    }
    assert flat == {key for key in known_keys() if key.count(".") or not isinstance(written.get(key), dict)}
