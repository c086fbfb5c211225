"""PyTorch modules as teachers, and teacher folders that are not what they should be."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from gasim_ray.core.model import load_model
from gasim_ray.errors import UserError
from gasim_ray.teachers import ImportOptions, import_teacher, load_teacher
from gasim_ray.teachers.folder import replaced_folder, surviving_folder

FACTORY = "gasim_ray.models.mlp:MLP"
OBSERVATION = {"shape": [4], "dtype": "float32", "layout": "vector", "low": [-2.0], "high": [2.0], "mean": [0.5]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def options(folder: Path, state: dict[str, torch.Tensor] | None = None, **changed: Any) -> ImportOptions:
    """Options of an import whose files are written into the folder."""
    torch.save(state_dict() if state is None else state, folder / "weights.pt")
    (folder / "observation.yaml").write_text(yaml.safe_dump(OBSERVATION))
    given: dict[str, Any] = {
        "weights": folder / "weights.pt",
        "observation": folder / "observation.yaml",
        "actions": 3,
        "arguments": {"hidden": [8]},
    }
    return ImportOptions(**(given | changed))


def state_dict() -> dict[str, torch.Tensor]:
    return {f"layers.{k}": v for k, v in network().state_dict().items()}


def test_the_module_and_its_normaliser(tmp_path: Path) -> None:
    import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path))
    observations = torch.randn(20, 4)
    teacher = load_teacher(tmp_path / "teacher")
    torch.testing.assert_close(teacher(observations), network()(observations - 0.5))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_safetensors_and_json(tmp_path: Path) -> None:
    given = options(tmp_path)
    save_file(state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "observation.json").write_text(json.dumps(OBSERVATION))
    files = {"weights": tmp_path / "weights.safetensors", "observation": tmp_path / "observation.json"}
    teacher = import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, outputs="q_values", **files))
    assert (teacher.config.outputs, teacher.config.actions) == ("q_values", given.actions)


@pytest.mark.parametrize("name", ["weights", "observation", "actions"])
def test_a_missing_option_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: missing"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, **{name: None}))


def test_missing_and_extra_keys_are_named(tmp_path: Path) -> None:
    state = state_dict()
    state["head.weight"] = state.pop("layers.2.weight")
    with pytest.raises(UserError, match=r"missing layers.2.weight; unexpected head.weight"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, state))
    assert not (tmp_path / "teacher").exists()


def test_another_number_of_actions_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layers.2.weight is \[3, 8\] where the architecture has \[5, 8\]"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, actions=5))


class RunsCode:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was opened')",))


def test_a_pickle_of_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    given = options(tmp_path)
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(UserError, match="more than tensors"):
        import_teacher(FACTORY, tmp_path / "teacher", given)


def test_weights_that_are_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a state dict"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, {"model": state_dict()}))  # type: ignore[dict-item]


def test_truncated_weights(tmp_path: Path) -> None:
    given = options(tmp_path)
    (tmp_path / "weights.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:500])
    with pytest.raises(UserError, match=r"weights: .*weights\.pt"):
        import_teacher(FACTORY, tmp_path / "teacher", given)


@pytest.mark.parametrize(
    ("text", "word"),
    [("shape: [4", "cannot be read"), ("- 4", "holds a list"), (yaml.safe_dump(OBSERVATION | {"shap": 1}), "shap")],
)
def test_an_observation_file_that_is_wrong(tmp_path: Path, text: str, word: str) -> None:
    given = options(tmp_path)
    (tmp_path / "observation.yaml").write_text(text)
    with pytest.raises(UserError, match=word):
        import_teacher(FACTORY, tmp_path / "teacher", given)


def test_a_factory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gasim_ray\.models\.mlp:Mlp"):
        import_teacher("gasim_ray.models.mlp:Mlp", tmp_path / "teacher", options(tmp_path))


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path))
    before = (tmp_path / "teacher" / "config.json").read_bytes()
    with pytest.raises(UserError, match="exists"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, actions=5))
    with pytest.raises(UserError, match="layers"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, actions=5), overwrite=True)
    assert (tmp_path / "teacher" / "config.json").read_bytes() == before
    import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path, outputs="q_values"), overwrite=True)
    (tmp_path / "teacher" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of a teacher"):
        import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path), overwrite=True)
    assert load_teacher(tmp_path / "teacher").config.outputs == "q_values"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    import_teacher(FACTORY, tmp_path / "teacher", options(tmp_path))
    return tmp_path / "teacher"


def test_a_missing_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model there"):
        load_teacher(tmp_path / "nothing")


def test_a_truncated_teacher(teacher: Path) -> None:
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        load_teacher(teacher)


def test_a_teacher_of_another_version(teacher: Path) -> None:
    config = json.loads((teacher / "config.json").read_text()) | {"format": 99}
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="99 is not the version"):
        load_teacher(teacher)


@pytest.mark.parametrize(
    "strange", [{"actions": 4}, {"actions": {"type": "discrete", "n": "x"}}, {"observation": []}, 3]
)
def test_a_teacher_whose_fields_are_strange(teacher: Path, strange: Any) -> None:
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | strange if isinstance(strange, dict) else strange))
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        load_teacher(teacher)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_answers_nan(teacher: Path) -> None:
    weights = {k: torch.full_like(v, float("nan")) for k, v in load_model(teacher).network.state_dict().items()}
    save_file(weights, teacher / "model.safetensors")
    with pytest.raises(UserError, match="NaN"):
        load_teacher(teacher)


def fill_the_disk(folder: Path) -> None:
    (folder / "file").write_text("half of the thi")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for text in ("first", "second"):
        with replaced_folder(target) as folder:
            (folder / "file").write_text(text)
    with pytest.raises(UserError, match="No space"), replaced_folder(target) as folder:
        fill_the_disk(folder)
    assert (target / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with replaced_folder(target) as folder:
        (folder / "file").write_text("first")
    target.rename(tmp_path / ".folder.old")
    assert (surviving_folder(target) / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
