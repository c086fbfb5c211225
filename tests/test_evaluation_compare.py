"""Evaluating a run: rows, controls and their cache, the summary, the table; on CartPole and on the MNIST sample."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

from gasim_ray.config import build_config
from gasim_ray.core.choice import Chosen, Disputed
from gasim_ray.core.model import Model, ModelConfig, load_model, save_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation import compare
from gasim_ray.evaluation.compare import STUDENT, evaluate_models, evaluate_run
from gasim_ray.evaluation.controls import CONTROL_KINDS, untrained
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.evaluation.runs import distil_control, names_of, task_for
from gasim_ray.evaluation.table import evaluation_table
from gasim_ray.evaluation.tasks import TEACHER, DatasetTask, EnvironmentTask
from gasim_ray.run_folder import RunFolder

TASK = EnvironmentTask("CartPole-v1", episodes=4, local=True)


def balancer(sign=1.0):
    """A linear policy of CartPole: with the sign, it pushes to where the pole leans; against it, away from there."""
    spec, actions = environment_spec("CartPole-v1")
    model = Model(ModelConfig({"name": "mlp", "hidden": []}, spec, actions, "logits"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.network.layers[0].weight[1] = sign * torch.tensor([0.0, 0.0, 1.0, 0.0])
    return model


@pytest.fixture
def run(tmp_path):
    """A finished run whose student plays as its teacher does."""
    folder = tmp_path / "a-run"
    save_model(balancer(), tmp_path / "teacher")
    save_model(balancer(), folder / "student")
    (folder / "config.yaml").write_text(f"teacher: {tmp_path / 'teacher'}\nseed: 5\n")
    (folder / "summary.json").write_text(json.dumps({"task": "cartpole", "seed": 5, "teacher_score": None}))
    return folder


class Distiller:
    """Stands in for a distillation: notes what it was asked for, and answers with the opposite of the teacher."""

    def __init__(self):
        self.asked = []

    def __call__(self, observations):
        self.asked.append(observations)
        return balancer(-1.0)


def test_models_are_compared_on_their_own_scale():
    blunt, sharp = balancer(), balancer(10.0)
    for model in (blunt, sharp):
        model.config = replace(model.config, output_scale=10.0)
    evaluation, _ = evaluate_models("a run", {TEACHER: balancer(), STUDENT: blunt, "sharp": sharp}, TASK)
    rows = {row.name: row for row in evaluation.rows}
    assert rows[STUDENT].agreement == rows["sharp"].agreement == 1
    assert rows[STUDENT].kl > 1e-4
    assert rows["sharp"].kl == pytest.approx(0, abs=1e-6)


def test_rows_of_a_run(run):
    evaluation = evaluate_run(run, TASK, Distiller())
    rows = {row.name: row for row in evaluation.rows}
    assert list(rows) == ["teacher", "student", *CONTROL_KINDS]
    assert rows["student"].score == rows["teacher"].score
    assert (rows["student"].agreement, rows["student"].kl) == (1, 0)
    assert rows["real_observations"].agreement == 0
    assert rows["real_observations"].kl > 0
    assert rows["real_observations"].score.interval.mean < rows["teacher"].score.interval.mean
    assert rows["teacher"].parameters == 10
    assert evaluation.observations == 4 * rows["teacher"].score.interval.mean
    assert json.loads(json.dumps(evaluation.to_json()))["rows"][1]["name"] == "student"


def test_controls_are_asked_for_what_they_learn_from(run):
    distil = Distiller()
    evaluate_run(run, TASK, distil)
    nothing, real = distil.asked
    assert nothing is None
    assert real.shape[1:] == (4,)
    measured = TASK.measure({"teacher": balancer()})[1]
    assert not {tuple(row) for row in real} & {tuple(row) for row in measured}


def test_controls_are_made_once(run):
    first, second = Distiller(), Distiller()
    before = evaluate_run(run, TASK, first)
    after = evaluate_run(run, TASK, second)
    assert (len(first.asked), len(second.asked)) == (2, 0)
    assert after.scores() == before.scores()
    assert load_model(run / "controls" / "untrained").config.source["control"] == "untrained"


def test_controls_of_another_student_are_made_again(run):
    evaluate_run(run, TASK, Distiller())
    save_model(balancer(0.5), run / "student")
    again = Distiller()
    evaluate_run(run, TASK, again)
    assert len(again.asked) == 2


def test_a_control_of_fewer_episodes_is_made_again_and_one_that_a_kill_cut_off_too(run):
    evaluate_run(run, TASK, Distiller())
    more = Distiller()
    evaluate_run(run, replace(TASK, episodes=5), more)
    assert [observations is None for observations in more.asked] == [False]
    (run / "controls" / "random_observations" / "config.json").unlink()
    again = Distiller()
    evaluate_run(run, replace(TASK, episodes=5), again)
    assert again.asked == [None]


def test_an_interrupted_control_is_made_again(run):
    def interrupted(observations):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, TASK, interrupted)
    begun = run / "controls" / ".real_observations.new"
    begun.mkdir()
    (begun / "config.json").write_text("{")
    distil = Distiller()
    evaluate_run(run, TASK, distil)
    assert len(distil.asked) == 2


def test_without_a_distiller_only_the_cheap_control_is_measured(run):
    assert [row.name for row in evaluate_run(run, TASK, None).rows] == ["teacher", "student", "untrained"]


def test_untrained_is_the_students_architecture_each_time_the_same():
    student = balancer().config
    state = torch.random.get_rng_state()
    first, second = untrained(student), untrained(student)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config.architecture == student.architecture
    assert torch.equal(torch.random.get_rng_state(), state)


def test_summary_keeps_what_it_had(run):
    evaluation = evaluate_run(run, TASK, Distiller())
    summary = json.loads((run / "summary.json").read_text())
    scores = evaluation.scores()
    assert (summary["task"], summary["seed"], summary["metric"]) == ("cartpole", 5, "return")
    assert (summary["teacher_score"], summary["student_score"]) == (scores["teacher"], scores["student"])
    assert summary["controls"] == {kind: scores[kind] for kind in CONTROL_KINDS}
    assert not list(run.glob("*.partial"))


def test_a_summary_that_cannot_be_written_keeps_the_old_one(run):
    before = (run / "summary.json").read_text()
    with pytest.raises(TypeError):
        RunFolder(run).write_summary({"metric": object()})
    assert (run / "summary.json").read_text() == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", None, "no run there"),
        ("config.yaml", "teacher: [", "cannot be read as a configuration"),
        ("config.yaml", "seed: 5", "arguments are required: teacher"),
        ("config.yaml", "teacher: /no/such/folder", "no model there"),
        ("summary.json", None, "no summary.json"),
        ("summary.json", "{", "not readable as JSON"),
        ("student/model.safetensors", "x", "missing or truncated"),
        ("student/config.json", None, "no model there"),
    ],
)
def test_a_damaged_run_is_refused(run, file, content, said):
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(UserError, match=said):
        evaluate_run(run, TASK, None)


def test_teacher_student_and_environment_must_fit(run, tmp_path):
    with pytest.raises(UserError, match=r"Acrobot-v1 shows observations of \[6\], the teacher reads \[4\]"):
        evaluate_run(run, EnvironmentTask("Acrobot-v1", 4, local=True), None)
    save_model(Model(replace(balancer().config, actions=3)), tmp_path / "teacher")
    with pytest.raises(UserError, match=r"student.actions: 2 where the teacher has 3"):
        evaluate_run(run, TASK, None)


def test_too_few_episodes_are_refused_before_any_is_played():
    with pytest.raises(UserError, match="episodes: 1 is too few"):
        EnvironmentTask("CartPole-v1", episodes=1)


def rendered(*evaluations):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table(evaluations))
    return console.export_text()


def test_table_shows_every_row(run):
    evaluation = evaluate_run(run, TASK, Distiller())
    text = rendered(evaluation)
    for part in ("CartPole-v1", "teacher", "student", "random obs.", "agree %", "100.0", "ms/256"):
        assert part in text
    assert "worst" not in text
    assert "…" not in text
    both = rendered(evaluation, replace(evaluation, run="another"))
    assert "a-run" in both
    assert "another" in both


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-sample")


@pytest.fixture(scope="module")
def classifier(digits):
    """Nearest centroid as one linear layer, in float32."""
    model = Model(ModelConfig({"name": "mlp", "hidden": []}, digits.spec, 10, "logits"))
    images = digits.spec.normalise(torch.from_numpy(digits.train_images)).flatten(1)
    centroids = torch.stack([images[torch.from_numpy(digits.train_labels == c)].mean(0) for c in range(10)])
    with torch.no_grad():
        model.network.layers[0].weight.copy_(centroids)
        model.network.layers[0].bias.copy_(-(centroids**2).sum(1) / 2)
    return model


def test_the_worst_are_those_where_the_student_leaves_the_teacher(digits, classifier, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "save_worst", lambda *given: drawn.append(given))
    compare.show_worst(tmp_path / "w.png", classifier, untrained(classifier.config), digits.test_images)
    ((path, observations, teacher, student, kl, spec),) = drawn
    assert (path.name, len(observations), spec) == ("w.png", 500, digits.spec)
    assert sorted(image.tobytes() for image in observations) == sorted(i.tobytes() for i in digits.test_images)
    fresh, images = untrained(classifier.config), torch.from_numpy(observations)
    with torch.no_grad():
        theirs, mine = (torch.log_softmax(model(images), 1) for model in (classifier, fresh))
    assert teacher == pytest.approx(theirs.exp().numpy(), abs=1e-5)
    assert student == pytest.approx(mine.exp().numpy(), abs=1e-5)
    assert kl == pytest.approx((theirs.exp() * (theirs - mine)).sum(1).numpy(), abs=1e-3)


def test_classifiers_are_measured_on_the_test_images(digits, classifier):
    fresh = untrained(classifier.config)
    evaluation, images = evaluate_models("x", {"teacher": classifier, "student": fresh}, DatasetTask(digits))
    assert (images == digits.test_images).all()
    teacher, student = evaluation.rows
    with torch.no_grad():
        predicted = classifier(torch.from_numpy(digits.test_images)).argmax(1).numpy()
        other = fresh(torch.from_numpy(digits.test_images)).argmax(1).numpy()
    by_class = [(predicted == digits.test_labels)[digits.test_labels == c].mean() for c in range(10)]
    assert teacher.score.interval.mean == (predicted == digits.test_labels).mean()
    assert teacher.score.interval.mean > 0.75
    assert teacher.score.worst_class == str(int(np.argmin(by_class)))
    assert teacher.score.worst_class_accuracy == min(by_class)
    assert student.agreement == pytest.approx((predicted == other).mean())
    assert (evaluation.metric, evaluation.observations) == ("accuracy", 500)
    text = rendered(evaluation)
    assert f"{100 * teacher.score.interval.mean:.2f}" in text
    assert "worst" in text
    long = [replace(row.score, worst_class="T-shirt/top") for row in evaluation.rows]
    rows = tuple(replace(r, parameters=11_173_962, score=s) for r, s in zip(evaluation.rows, long, strict=True))
    assert "…" not in rendered(replace(evaluation, rows=rows))


def test_classifier_control_learns_from_the_training_images(digits, classifier):
    assert DatasetTask(digits).training_observations(classifier) is digits.train_images


def test_the_controls_of_a_method_without_a_prior_can_be_distilled(tmp_path):
    save_model(tiny.model(tiny.VECTOR), tmp_path / "teacher")
    config = build_config(tiny.tree(tmp_path / "teacher", method="gas", generator={"prior": []}))
    assert config.generator.prior == ()
    threads = torch.get_num_threads()
    student = distil_control(config, load_model(tmp_path / "teacher").frozen(), None)
    fresh = untrained(student.config)
    assert not any(torch.equal(a, b) for a, b in zip(student.parameters(), fresh.parameters(), strict=True))
    assert torch.get_num_threads() == threads


def test_controls_are_drawn_afresh_whatever_the_run_chose_by(tmp_path, monkeypatch):
    save_model(tiny.model(tiny.VECTOR), tmp_path / "teacher")
    chosen = {"disputed": 3, "candidates": 2, "alignment": 4.0, "clusters": 2}
    tree = tiny.tree(tmp_path / "teacher", elastic=True, generator={**chosen, "gpus": 0.5})
    config = build_config(tree)
    for choosing in (Disputed, Chosen):
        monkeypatch.setattr(choosing, "sample", None)
    distil_control(config, load_model(tmp_path / "teacher").frozen(), None)


def test_a_control_is_not_distilled_on_another_device_than_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_model(tiny.model(tiny.VECTOR), tmp_path / "teacher")
    config = build_config(tiny.tree(tmp_path / "teacher", device="cuda"))
    with pytest.raises(UserError, match=r"^device: the run learned on cuda, which is not here, .*with --no-controls"):
        distil_control(config, load_model(tmp_path / "teacher").frozen(), None)


def test_a_teacher_of_merged_classes_that_does_not_say_so_is_measured_with_groups(tmp_path, classifier):
    config = replace(classifier.config, actions=2)
    save_model(Model(config), tmp_path / "teacher")
    with pytest.raises(UserError, match="10 classes, the teacher has 2"):
        task_for(tmp_path / "teacher", None, "mnist-sample", None, 2, 0)
    task = task_for(tmp_path / "teacher", None, "mnist-sample", None, 2, 0, "0,1,2,3,4/5,6,7,8,9")
    assert task.dataset.class_names == ("0+1+2+3+4", "5+6+7+8+9")
    save_model(
        Model(replace(config, source={"dataset": "mnist-sample", "groups": "0/1,2,3,4,5,6,7,8,9"})),
        tmp_path / "teacher",
    )
    assert task_for(tmp_path / "teacher", None, None, None, 2, 0).dataset.class_names[0] == "0"


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    places = ["a/pong", "b/pong", "c/breakout", "d/teacher"]
    names = [name for name, _ in names_of(places, [tmp_path / place for place in places])]
    assert names == ["a/pong", "b/pong", "breakout", "d/teacher"]
    # The copies of what lies at addresses are in folders of other names.
    there = ["s3://bucket/one/", "file:///shared/two"]
    assert [name for name, _ in names_of(there, [tmp_path / "gasim-x", tmp_path / "gasim-y"])] == ["one", "two"]


def test_data_set_and_classifier_must_fit(digits, classifier):
    task = DatasetTask(digits)
    task.check(classifier.config, "teacher")
    with pytest.raises(
        UserError, match=r"mnist-sample holds images of \[1, 28, 28\] CHW, the student reads \[4\] vector"
    ):
        task.check(balancer().config, "student")
    for shape, layout in (((3, 28, 28), "CHW"), ((28, 28, 1), "HWC")):
        other = replace(classifier.config.observation, shape=shape, layout=layout)
        with pytest.raises(
            UserError, match=rf"\[1, 28, 28\] CHW, the teacher reads {re.escape(str(list(shape)))} {layout}"
        ):
            task.check(replace(classifier.config, observation=other), "teacher")
    unit = replace(classifier.config.observation, dtype="float32", high=(1.0,))
    with pytest.raises(UserError, match="mnist-sample holds values from 0 to 255, the teacher reads 0 to 1; state"):
        task.check(replace(classifier.config, observation=unit), "teacher")
    with pytest.raises(UserError, match="mnist-sample has 10 classes, the teacher has 5"):
        task.check(replace(classifier.config, actions=5), "teacher")
