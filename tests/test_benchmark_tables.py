"""Tables and figures of recorded results, of a suite small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_suite import declare, started

from benchmarks import cells, choices, figures, game_tables, tables
from benchmarks.cells import REAL, current_results, load_suite
from benchmarks.game_tables import game_rows, short_rows
from benchmarks.methods import entry, method_pages
from benchmarks.tables import mode_rows
from gasim_ray.config import build_config
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.methods import METHODS

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    kept, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, name: kept.append(figure) or save(figure, name))
    return kept


def points(axes: Any) -> list[list[list[float]]]:
    """The points of each line."""
    return [line.get_xydata().tolist() for line in axes.lines]


def test_a_figure_joins_the_seeds_of_a_method(suite: dict[str, Any], saved: list[Any]) -> None:
    line = {"method": "noise", "knowledge": "bounds", "metric": "accuracy", "teacher_score": 0.9, "wall_seconds": 3.0}
    first = {**line, "curve": [[1.0, 0.2], [2.0, 0.4]], "student_score": 0.5}
    second = {**line, "curve": [[1.2, 0.4], [2.2, 0.6]], "student_score": 0.7}
    seconds, scores = figures.mean_curve([first, second])
    assert seconds == pytest.approx([1.1, 2.1, 3.0])
    assert scores == pytest.approx([30.0, 50.0, 60.0])
    assert (cells.ROOT.parent / figures.draw("small", "cartpole", [first, second])).stat().st_size > 1000
    seconds_and_scores, teacher = points(saved[0].axes[0])
    assert np.array(seconds_and_scores) == pytest.approx(np.array([[1.1, 30.0], [2.1, 50.0], [3.0, 60.0]]))
    assert [level for _, level in teacher] == pytest.approx([90.0, 90.0])


def test_a_figure_shows_how_kl_fell_in_the_first_seed_of_each_method(suite: dict[str, Any], saved: list[Any]) -> None:
    ended = {"wall_seconds": 3.0, "synthetic_observations": 300, "agreement": 0.7, "teacher_score": 20.0}
    first = {"method": "noise", "knowledge": "bounds", "growth": [[1.0, 100.0, 0.5, 0.2], [2.0, 200.0, 0.6, 0.1]]}
    first |= {**ended, "kl": 0.05, "student_score": 3.0}
    second = {"method": "gasim", "knowledge": "generic", "growth": [[1.0, 150.0, 0.5, 0.02]]}
    second |= {**ended, "kl": 0.01, "student_score": 14.0, "growth_scores": [[150.0, 12.0]]}
    path = cells.ROOT.parent / figures.draw_growth("small", "cartpole", [first, second, {"method": "noise"}], "growth")
    assert path.name == "small-cartpole-growth.png"
    assert path.stat().st_size > 1000
    kl, agreement, returns = (points(axes) for axes in saved[0].axes)
    # What ends nearest comes first.
    assert kl == [[[150.0, 0.02], [300.0, 0.01]], [[100.0, 0.2], [200.0, 0.1], [300.0, 0.05]]]
    assert agreement == [[[150.0, 50.0], [300.0, 70.0]], [[100.0, 50.0], [200.0, 60.0], [300.0, 70.0]]]
    assert returns[0] == [[150.0, 12.0], [300.0, 14.0]]
    assert [level for _, level in returns[-1]] == [20.0, 20.0]


def test_a_game_s_table_shows_how_far_students_are_from_random(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare({**suite, "tasks": {**suite["tasks"], "later": suite["tasks"]["cartpole"]}, "methods": {"noise": [0, 1]}})
    shared = {
        "teacher_score": 20.0, "controls": {"random": -20.0, "untrained": -21.0},
        "teacher_parameters": 1000, "student_parameters": 120,
        "knowledge": "generic", "kl": 0.012345, "agreement": 0.987, "synthetic_observations": 4000,
        "environment_steps": 0,
    }  # fmt: skip
    sticky = {"teacher": 10.0, "random": -20.0, "untrained": -20.0}
    cells_ = load_suite("small")
    results = {
        cell.name: {**shared, "method": cell.method, "student_score": score, "sticky": {**sticky, "student": -5.0}}
        for cell, score in zip([c for c in cells_ if c.task == "cartpole"], (0.0, 10.0), strict=True)
    }
    assert game_rows(cells_, results)[2:] == [
        "| cartpole | teacher | 1,000 |  | 20.0 | 1.00 | 10.0 | 1.00 |  |  |  |",
        "| cartpole | random actions |  |  | -20.0 | 0.00 | -20.0 | 0.00 |  |  |  |",
        "| cartpole | untrained | 12.0 % |  | -21.0 | -0.03 | -20.0 | 0.00 |  |  |  |",
        "| cartpole | `noise` | 12.0 % | generic | 5.0 ± 7.1 (2) | 0.62 ± 0.18 (2) | -5.0 ± 0.0 (2) | 0.50 ± 0.00 (2) "
        "| 0.0123 | 98.7 % | 4,000 |",
        "| later | `noise` |  |  | not measured |  |  |  |  |  |  |",
    ]
    newest = {name: {**line, "constant_kl": 0.45678} for name, line in results.items()}
    assert game_rows(cells_, newest)[5] == (
        "| cartpole | teacher's mean policy, whatever is seen |  |  |  |  |  |  | 0.457 |  |  |"
    )
    monkeypatch.setattr(game_tables, "SHORT", ("noise", "gasim"))
    assert short_rows(cells_, results)[2:] == [
        "| teacher, return |  | 10.0 | not measured |",
        "| random actions, return |  | -20.0 | not measured |",
        "| `noise` | 12 % | 0.50 ± 0.00 (2) | not measured |",
        "| `gasim` |  |  |  |",
    ]


def recorded(suite: str, method: str, seed: int, score: float) -> None:
    cell = next(c for c in load_suite(suite) if (c.method, c.seed) == (method, seed))
    line = {
        "suite": suite, "task": cell.task, "method": method, "seed": seed, "definition": cell.definition,
        "metric": "return", "teacher_score": 500.0, "student_score": score, "controls": {"untrained": 9.5},
        "agreement": 0.98, "student_parameters": 58, "teacher_parameters": 5800, "wall_seconds": 12.3,
        "date": "2026-01-02", "knowledge": "bounds", "hardware": "2 cores of something",
    }  # fmt: skip
    cells.append_result(suite, line)


README = "# Title\n\n<!-- table:small -->\nold\n<!-- end -->\n\nAfter.\n"


def test_tables_are_made_from_results_and_checked(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = cells.ROOT / "README.md"
    readme.write_text(README)
    for seed, score in ((0, 480.0), (1, 500.0)):
        recorded("small", "gasim", seed, score)
    assert started(monkeypatch, tables, "--check") == 1
    assert "out of date" in capsys.readouterr().out
    assert readme.read_text() == README
    assert started(monkeypatch, tables) == 0
    assert started(monkeypatch, tables, "--check") == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- table:small -->\n")
    assert text.endswith("<!-- end -->\n\nAfter.\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        ["", "knowledge", "cartpole"],
        ["---", "---", "---"],
        ["teacher", "", "500"],
        ["untrained", "", "9.5"],
        ["`noise`", "", "not measured"],
        ["`gasim`", "bounds", "490.0 ± 14.1 (98 %, 2)"],
        ["real observations", "", "not measured"],
        ["parameters", "", "58 of 5,800 (1.0 %)"],
        ["seconds (with start and end)", "", "12"],
    ]
    readme.write_text(text.replace("490.0", "500.0"))
    assert started(monkeypatch, tables, "--check") == 1
    readme.write_text(text)
    recorded("small", "noise", 0, 100.0)
    assert started(monkeypatch, tables, "--check") == 1


def test_a_short_table_shows_what_most_tasks_have(suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    one = suite["tasks"]["cartpole"]
    suite["tasks"] |= {"second": one, "third": one, "fourth": {**one, "methods": {"gasim": [0], "gas": [0]}}}
    declare(suite)
    readme = cells.ROOT / "README.md"
    readme.write_text("<!-- table:small -->\n<!-- end -->\n<!-- table:small:short -->\n<!-- end -->\n")
    assert started(monkeypatch, tables) == 0
    whole, short = readme.read_text().split("<!-- table:small:short -->")
    assert ("`gas`" in whole, "`gas`" in short) == (True, False)
    assert "`gasim`" in short


def test_distances_are_told_as_multiples_of_the_first_choice_s(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "TASKS", ("pairs", "other"))
    monkeypatch.setattr(choices, "cells_of", lambda task: {})
    monkeypatch.setattr(choices, "definitions", lambda found: {"gasim": "1"})
    figures = ({"a": 2.0, "b": 4.0}, {"a": 1.0, "b": 6.0}, {"a": 4.0, "b": 4.0})
    # The newest line counts that is of today's settings.
    for usual, definition in ((9.0, "1"), (2.0, "1"), (9.0, "2")):
        distances = dict(zip(choices.CHOICES, ({"a": usual, "b": 4.0}, *figures[1:]), strict=True))
        line = {"task": "pairs", "distances": distances, "definitions": {"gasim": definition}}
        cells.append_result("choices", line)
    assert choices.choice_rows()[2:] == [
        "| pairs | 1.00 (1.50: b) | 1.50 (2.00: a) |",
        "| other | not measured | not measured |",
    ]


def test_real_pictures_of_every_mode_lie_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "ORDERS", 1)
    monkeypatch.setattr(choices, "PICTURES", 8)
    sample = load_dataset("mnist-sample")  # which comes along
    monkeypatch.setattr(choices, "load_dataset", lambda name: sample)
    config = build_config(
        {"teacher": str(REPOSITORY / "benchmarks/teachers/mnist-parity"), "generator": {"candidates": 2}}
    )
    found = choices.mode_distances(config)
    assert list(found) == [str(digit) for digit in range(10)]
    assert all(distance > 0 for distance in found.values())


def test_every_method_has_a_page_with_its_settings_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    pages = method_pages(lambda lines: f"of {len(lines)}")
    headings = [line.removeprefix("## ") for line in pages.splitlines() if line.startswith("## ")]
    assert headings == list(METHODS)
    dafl = pages.partition("## dafl\n")[2].partition("\n## ")[0]
    assert "Chen et al., ICCV 2019" in dafl
    assert "- images: `generator.kind` network" in dafl
    counted = [line for line in current_results("images").values() if line["method"] == "gasim"]
    on_mnist = len([line for line in counted if line["task"] == "mnist"])
    gasim = pages.partition("## gasim\n")[2]
    assert (f"- mnist of {on_mnist} [generic]\n" in gasim) == (on_mnist > 0)
    assert "- coloured images: `generator.kind` direct" in gasim


def test_a_page_says_how_a_score_came_about() -> None:
    def told(suite: str, task: str, method: str, **line: Any) -> str:
        cell = next(c for c in load_suite(suite) if (c.task, c.method) == (task, method))
        return entry(cell, [{"knowledge": "bounds", **line}], "80.0")

    width = "[bounds]; with `generator.width` 32"
    assert told("images", "mnist", "dafl", student_score=0.9) == (
        f"mnist 80.0 {width}; published: 98.20, difference -8.2"
    )
    assert told("images", "mnist-pairs", "dafl") == f"mnist-pairs 80.0 {width}"
    uniform = "with `generator.prior` ['uniform']"
    assert told("atari", "pong", "noise-7") == f"pong as `noise-7` 80.0 [bounds]; {uniform}"
    assert "not the original pixels" in told("cifar-small", "cifar10-small", "gasim")


PAIRS = {"task": "pairs", "knowledge": "bounds"}
MODE_LINES = [
    {**PAIRS, "method": "gas", "worst_class_score": 0.5, "mode_shares": {"0": 0.9, "1": 0.1}, "mode_recall": 1.0},
    {**PAIRS, "method": "gas", "worst_class_score": 0.7, "mode_shares": {"0": 0.95, "1": 0.05}, "mode_recall": 0.5},
    {"task": "pairs", "knowledge": "data", "method": REAL, "worst_class_score": 0.99},
]


def test_hidden_modes_have_a_row_for_each_method_of_a_merged_task() -> None:
    plain = {"task": "plain", "knowledge": "bounds", "method": "gas", "worst_class_score": 0.1}
    assert mode_rows([*MODE_LINES, plain])[2:] == [
        "| pairs | `gas` | bounds | 60.0 ± 14.1 (2) | 75 % | 7.5 % | 92.5 % |",
        "| pairs | real observations | data | 99.0 (1) |  |  |  |",
    ]


def test_a_figure_shows_the_pool_s_spread_over_hidden_modes(suite: dict[str, Any], saved: list[Any]) -> None:
    assert figures.named(MODE_LINES[0]) == "gas (bounds)"
    assert (cells.ROOT.parent / figures.draw_modes("pairs", MODE_LINES)).stat().st_size > 1000
    worst, shares = saved[0].axes
    assert [bar.get_width() for bar in worst.patches] == pytest.approx([60.0, 99.0])
    assert [text.get_text() for text in shares.texts] == ["92", "8"]


def test_the_newest_line_of_a_cell_counts(suite: dict[str, Any]) -> None:
    recorded("small", "noise", 0, 100.0)
    recorded("small", "noise", 0, 200.0)
    assert {name: line["student_score"] for name, line in current_results("small").items()} == {
        "cartpole-noise-0": 200.0
    }


def test_a_line_of_another_name_counts_while_the_settings_are_the_same(suite: dict[str, Any]) -> None:
    settings = {"method": "gasim", "pool": {"hard": 0.9}}
    declare({**suite, "methods": {"trial": [0, 1]}, "variants": {"trial": settings}})
    recorded("small", "trial", 0, 100.0)
    recorded("small", "trial", 1, 101.0)
    adopted = {
        **suite,
        "methods": {"gasim": [0, 1]},
        "variants": {"gasim": settings},
        "recorded_as": {"gasim": "trial"},
    }
    declare(adopted)
    recorded("small", "gasim", 0, 200.0)
    assert {name: (line["method"], line["student_score"]) for name, line in current_results("small").items()} == {
        "cartpole-gasim-0": ("gasim", 200.0),
        "cartpole-gasim-1": ("gasim", 101.0),
    }
    declare({**adopted, "variants": {"gasim": {"method": "gasim", "pool": {"hard": 0.8}}}})
    assert not current_results("small")
