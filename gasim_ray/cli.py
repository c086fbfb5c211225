"""The command line: gasim demo | distill | evaluate | compare | tune | status | teacher.

A command is a function that takes its arguments and returns what it has to say; the modules it needs are imported when
it runs, so that `gasim distill` never loads an environment.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from gasim_ray.errors import UserError, exit_code

DISTILL_USAGE = """usage: gasim distill [CONFIG.yaml] [--resume] [--overwrite] [--dotted.key value ...]

Distils a teacher into a student; CONFIG.yaml may be an earlier run's folder. Ctrl-C leaves a checkpoint.

  --task NAME     the teacher and the student of a named task: {tasks}
  --groups A/B    with --task: the task whose teacher tells these groups of classes apart, such as 0,1/2,3,4
  --resume        go on from the checkpoint in --out
  --overwrite     replace what is in --out; with --resume only where there is no checkpoint
"""

#: Options that need no value, and those that take none.
SWITCHES, FLAGS = ("--local", "--synchronous", "--elastic"), ("--resume", "--overwrite")

TUNE_USAGE = """gasim tune SWEEP.yaml [--out DIR] [--overwrite] [--key value ...], or gasim tune --resume DIR

Searches the settings of a distillation. SWEEP.yaml is described in tune_configs/template.yaml; the keys below may also
be given here, those of its base with --base before them (--base.teacher teachers/mine). Once trials run, Ctrl-C
leaves what --resume goes on from.

  --out DIR       the sweep's folder, by default sweeps/SWEEP
  --overwrite     replace what is in it
  --resume DIR    go on: finished trials stay, running ones go on from their last reports
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(given[0]) if given else None
    if command is None:
        stream = sys.stdout if given[:1] in (["--help"], ["-h"]) else sys.stderr
        print("usage: gasim COMMAND ...; gasim COMMAND --help says more\n", file=stream)
        for name, function in COMMANDS.items():
            print(f"  {name:9} {(function.__doc__ or '').splitlines()[0]}", file=stream)
        return 0 if stream is sys.stdout else 2
    if os.getcwd() not in sys.path:
        # Where a user's own factory lies; last, so that no file in it takes the place of an installed module.
        sys.path.append(os.getcwd())
    if threading.current_thread() is threading.main_thread():
        # A shell starts background jobs with SIGINT ignored; `kill -INT` is to leave a checkpoint there too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return exit_code("gasim", lambda: command(given[1:]))


def distill_command(arguments: list[str]) -> None:
    """Distil a teacher into a student without environment or data."""
    from gasim_ray.config import make_parser, parse_config, read_yaml
    from gasim_ray.storage import is_address
    from gasim_ray.tasks import TASKS, distillation_of, split_task

    if "--help" in arguments or "-h" in arguments:
        print(DISTILL_USAGE.format(tasks=", ".join(TASKS)))
        print(make_parser().format_help().partition("\n\n")[2])
        return
    flags = {flag: flag in arguments for flag in FLAGS}
    settings = [a for a in arguments if a not in flags]
    file = leading_file(settings)
    folder = Path(file) if file and Path(file).is_dir() else None
    if folder:
        file = str(folder / "config.yaml")
    named, given = split_task(settings)
    if named and file and "teacher" in read_yaml(file):
        raise UserError(f"task: {named[0]}, but {file} names a teacher; leave out one of the two")
    config = parse_config(with_switches(given), file, distillation_of(*named) if named else None)
    if folder and not is_address(config.out) and not any(a.split("=")[0] == "--out" for a in given):
        config = config.at(folder)  # which may have been moved, or made without
    path = run_distillation(config, **{flag.strip("-"): on for flag, on in flags.items()})
    print(f"run: {config.out if is_address(config.out) else path}")


def leading_file(arguments: list[str]) -> str | None:
    """Take a configuration's file off the front; raises UserError for one that stands behind an option."""
    if arguments and not arguments[0].startswith("-"):
        return arguments.pop(0)
    for before, argument in pairwise(arguments):
        # Behind the name of an option that takes one it is its value.
        valued = before.startswith("-") and "=" not in before and before not in (*SWITCHES, *FLAGS)
        if argument.endswith((".yaml", ".yml")) and not valued:
            raise UserError(f"arguments: {argument} stands behind an option; give it first")
    return None


def with_switches(arguments: list[str]) -> list[str]:
    """`--local`, `--synchronous` and `--elastic` alone mean true."""
    given: list[str] = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1 : index + 2]
        alone = not following or following[0].startswith("--")
        given.append(f"{argument}=true" if argument in SWITCHES and alone else argument)
    return given


def run_distillation(config: Any, resume: bool = False, overwrite: bool = False) -> Path:
    """Distil with progress on standard error."""
    from gasim_ray.report.display import Display
    from gasim_ray.run import distill

    with Display(Console(stderr=True)) as display:
        return distill(config, display, resume, overwrite)


def evaluate_command(arguments: list[str]) -> None:
    """Measure a run's student, its teacher and its controls."""
    parser = comparison_parser("gasim evaluate", "Measures a run's student, its teacher and its controls.")
    parser.add_argument("run", help="folder or address of the run")
    given = parser.parse_args(arguments)
    print_evaluations([given.run], given)


def compare_command(arguments: list[str]) -> None:
    """Measure several runs and show them in one table."""
    parser = comparison_parser("gasim compare", "Measures several runs and shows them in one table.")
    parser.add_argument("runs", nargs="+", help="folders or addresses of the runs")
    given = parser.parse_args(arguments)
    print_evaluations(given.runs, given)


def evaluation_parser(name: str, description: str) -> argparse.ArgumentParser:
    """What all that measure share."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--env", help="Gymnasium id; by default what the teacher was trained on")
    parser.add_argument("--dataset", help="data set, for a classifier; likewise")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--groups", help="classes to merge, such as 0,1/2,3,4; by default those that the teacher says")
    parser.add_argument("--episodes", type=int, default=100, help="episodes for each model (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the episodes' initial states (default 0)")
    return parser


def comparison_parser(name: str, description: str) -> argparse.ArgumentParser:
    """What `evaluate` and `compare` share."""
    parser = evaluation_parser(name, description)
    parser.add_argument("--no-controls", action="store_true", help="leave out controls that are not yet made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too; - for standard output")
    parser.add_argument("--video", type=Path, metavar="FILE", help="show teacher and students play, as .gif or .webp")
    return parser


def print_evaluations(places: Sequence[str], given: argparse.Namespace) -> None:
    """Evaluate runs as the arguments say; table on the terminal, JSON where asked for."""
    from gasim_ray.storage import local_copy

    with ExitStack() as held:
        evaluate_runs(places, [held.enter_context(local_copy(place)) for place in places], given)


def evaluate_runs(places: Sequence[str], runs: Sequence[Path], given: argparse.Namespace) -> None:
    """See `print_evaluations`; the folders of the runs that are in these places."""
    from gasim_ray.actors.ray_workers import connect
    from gasim_ray.core.model import load_model
    from gasim_ray.evaluation.compare import evaluate_run
    from gasim_ray.evaluation.runs import control_distiller, names_of, task_for
    from gasim_ray.evaluation.table import evaluation_table
    from gasim_ray.evaluation.video import check_video, save_video
    from gasim_ray.run_folder import RunFolder, saved_config

    measured = (given.env, given.dataset, given.data, given.episodes, given.seed, given.groups)
    tasks = [task_for(Path(saved_config(run).teacher), *measured) for run in runs]
    for run in runs:  # before an earlier one is measured for minutes
        RunFolder(run).read_summary()
        load_model(RunFolder(run).student)
    if given.video:
        check_video(given.video, runs, tasks)
        make_room(given.video.parent, "video")
    if given.json:
        make_room(given.json.parent, "json")
        if given.json.is_dir():
            raise UserError(f"json: {given.json} is a folder; give a file")
    connect()
    named = names_of(places, runs)
    evaluations = [
        replace(evaluate_run(run, task, None if given.no_controls else control_distiller(run)), run=name)
        for (name, run), task in zip(named, tasks, strict=True)
    ]
    figures = json.dumps([evaluation.to_json() for evaluation in evaluations], indent=1)
    if str(given.json) == "-":
        print(figures)
    else:
        Console().print(evaluation_table(evaluations))
    if given.json and str(given.json) != "-":
        given.json.write_text(figures + "\n")
    if given.video:
        save_video(given.video, dict(named), tasks[0])


def make_room(folder: Path, option: str) -> None:
    """Make the folder that an option's file is to be written to; raises UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be made ({error.strerror}); give another file") from error


def teacher_command(arguments: list[str]) -> None:
    """Train a teacher, import one from another program, or measure one."""
    from gasim_ray.training.command import import_command, train_command

    actions = {"train": train_command, "import": import_command, "evaluate": evaluate_teacher_command}
    if not arguments or arguments[0] not in actions:
        named = ", ".join(f"`gasim teacher {action}`" for action in actions)
        raise UserError(f"teacher: say one of {named}; each has --help")
    actions[arguments[0]](arguments[1:])


def evaluate_teacher_command(arguments: list[str]) -> None:
    """Measure a teacher alone: whether what was imported does what it did."""
    parser = evaluation_parser("gasim teacher evaluate", "Measures a teacher, before anything is distilled from it.")
    parser.add_argument("teacher", type=Path, help="folder of the teacher")
    given = parser.parse_args(arguments)
    from gasim_ray.actors.ray_workers import connect
    from gasim_ray.evaluation.atari import is_atari
    from gasim_ray.evaluation.compare import CHANCE, chance, evaluate_models
    from gasim_ray.evaluation.runs import task_for
    from gasim_ray.evaluation.table import evaluation_table
    from gasim_ray.evaluation.tasks import TEACHER
    from gasim_ray.teachers import load_teacher

    measured = (given.env, given.dataset, given.data, given.episodes, given.seed, given.groups)
    task, teacher = task_for(given.teacher, *measured), load_teacher(given.teacher)
    connect()
    models = {TEACHER: teacher} | ({CHANCE: chance(teacher.config)} if is_atari(task.name) else {})
    evaluation, _ = evaluate_models(given.teacher.resolve().name, models, task)
    Console().print(evaluation_table([evaluation]))


def tune_command(arguments: list[str]) -> None:
    """Search the settings of a distillation with Ray Tune."""
    from gasim_ray.storage import local_folder
    from gasim_ray.tuning.sweep import make_parser, parse_sweep

    parser = argparse.ArgumentParser(prog="gasim tune", usage=TUNE_USAGE, add_help=False)
    parser.add_argument("--out", type=local_folder)
    parser.add_argument("--resume", type=Path, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true")
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: {TUNE_USAGE}")
        print(make_parser().format_help().partition("\n\n")[2])
        return
    file = leading_file(arguments)
    given, rest = parser.parse_known_args(arguments)
    if given.resume is not None:
        if file or rest or given.out or given.overwrite:
            raise UserError("resume: give --resume DIR alone; the sweep in it says everything else")
        from gasim_ray.tuning.run import resume_sweep

        print(f"sweep: {resume_sweep(given.resume)}")
        return
    if file is None:
        raise UserError("tune: say which sweep: gasim tune tune_configs/SWEEP.yaml; --help says more")
    sweep = parse_sweep(Path(file), rest)
    from gasim_ray.tuning.run import run_sweep

    print(f"sweep: {run_sweep(sweep, given.out or Path('sweeps') / Path(file).stem, given.overwrite)}")


def demo_command(arguments: list[str]) -> None:
    """Distil the shipped Acrobot policy with two actors and compare student, teacher and controls."""
    from gasim_ray.config import build_config

    parser = argparse.ArgumentParser(prog="gasim demo", description=demo_command.__doc__)
    parser.add_argument("--out", default="runs/demo", help="folder of the run, replaced if it exists")
    given = parser.parse_args(arguments)
    config = build_config({"teacher": str(DEMO_TEACHER), "out": given.out, "budget": {"seconds": DEMO_SECONDS}})
    path = run_distillation(config, overwrite=True)
    evaluate_command([str(path), "--episodes", str(DEMO_EPISODES)])
    print(f"run: {path}")


def status_command(arguments: list[str]) -> None:
    """Show where the runs on a cluster stand."""
    parser = argparse.ArgumentParser(prog="gasim status", description="Shows where the runs on a cluster stand.")
    parser.add_argument("address", nargs="?", help="HEAD:6379; by default the cluster that this machine belongs to")
    given = parser.parse_args(arguments)
    from gasim_ray.actors.status import connect_to, read_status, status_lines

    connect_to(given.address)
    runs = read_status()
    print("\n".join(status_lines(runs) if runs else ["no run is under way"]))


#: What `gasim demo` distils: an RLlib DQN policy for Acrobot-v1, trained and imported by this program.
DEMO_TEACHER = Path(__file__).parent / "assets" / "acrobot-dqn"
DEMO_SECONDS = 15.0
DEMO_EPISODES = 50

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_command,
    "distill": distill_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "tune": tune_command,
    "status": status_command,
    "teacher": teacher_command,
}
