"""Every public function with arguments of a wrong type: one line that says what is expected."""

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rldistill
from rldistill.arguments import checked_arguments
from rldistill.datasets import convert, head, info, merge
from rldistill.types import UserError

FUNCTIONS = {
    name: getattr(rldistill, name) for name in rldistill.__all__ if inspect.isfunction(getattr(rldistill, name))
} | {function.__name__: function for function in (convert, head, info, merge)}
# None is an argument where it stands for a default.
WRONG: list[Any] = [
    7,
    2.5,
    float("nan"),
    b"bytes",
    object(),
    [object()],
    {"a": 1},
    {1, 2},
    int,
    np.zeros(3),
    lambda: 0,
    "a\0b",
]


def fitting(parameter: inspect.Parameter) -> Any:
    """Something of the parameter's type, so that another argument is the one that is wrong."""
    hint = str(parameter.annotation)
    for kind, value in (("Network", None), ("Task", None), ("Mapping", {}), ("Format", "c"), ("Target", "parquet")):
        if kind in hint:
            return value
    return ["/nowhere", "/nothing"] if hint.startswith("Sequence") else "/nowhere"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_arguments_of_a_wrong_type_are_refused_in_a_line(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    needed = {key: fitting(value) for key, value in parameters.items() if value.default is inspect.Parameter.empty}
    needed = {key: value for key, value in needed.items() if parameters[key].kind is not inspect.Parameter.VAR_KEYWORD}
    for key, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        for value in [*WRONG, None]:
            if value is None and "None" in str(parameter.annotation):
                continue
            with pytest.raises(UserError) as refused:
                function(**{**needed, key: value})
            assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(UserError):
        function(**needed, nonsense=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (rldistill.EvaluateConfig, {"env": 3}),
        (rldistill.EvaluateConfig, {"episodes": "30"}),
        (rldistill.DistillConfig, {"driver": "Student"}),
        (rldistill.DistillConfig, {"dataset": 7}),
        (rldistill.DistillConfig, {"tensorboard": "no"}),
        (rldistill.TeacherOptions, {"teacher_scores": "values"}),
        (rldistill.TeacherOptions, {"teacher_network": ["mlp:64"]}),
        (rldistill.TrainConfig, {"algo": "DQN"}),
        (rldistill.RecordConfig, {"steps": None}),
    ],
)
def test_fields_of_a_wrong_type_are_refused_by_their_flag(config: Any, wrong: dict[str, Any], tmp_path: Path) -> None:
    (field,) = wrong

    @checked_arguments
    def verb(config: Any) -> None: ...

    with pytest.raises(UserError, match=f"--{field.replace('_', '-')}|{field}"):
        verb(getattr(config, "of", config)(**wrong))


def test_what_is_expected_is_said() -> None:
    with pytest.raises(UserError, match="EvaluateConfig or None.*'30 episodes'"):
        rldistill.evaluate("/nowhere", "30 episodes")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a text or a path"):
        rldistill.load_teacher(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="missing a required argument: 'out'"):
        rldistill.distill("/nowhere")  # type: ignore[call-arg]


class Place:
    def __fspath__(self) -> str:
        return "/nowhere"


@pytest.mark.parametrize("path", ["/nowhere", Path("/nowhere"), Place()])
def test_every_kind_of_path_is_a_path(path: Any) -> None:
    assert isinstance(path, str | os.PathLike)
    with pytest.raises(UserError, match="no policy folder at /nowhere"):
        rldistill.load_teacher(path)
