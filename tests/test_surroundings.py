"""What a caller in Python has set around a call: PyTorch's modes, and options of a wrong kind."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rldistill
from rldistill.configurations import changed
from rldistill.datasets import info, merge
from rldistill.machine import usual_torch
from rldistill.teachers import load_policy, load_teacher
from rldistill.types import UserError, check_booleans
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.train import TrainConfig, train

TRAIN = TrainConfig.of(steps=400, algo="dqn", network="mlp:8", warmup=100, replay=400, final_episodes=1, num_envs=2)
DISTILL = DistillConfig.of(steps=300, student="mlp:8", warmup=64, evaluate_episodes=1, evaluate_every=0, num_envs=2)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "double precision": lambda: default_dtype(torch.float64),
    "half precision": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device": lambda: torch.device("meta"),
}


def made(folder: Path) -> dict[str, Any]:
    """What each verb makes of the same seed."""
    folder.mkdir()
    train("CartPole-v1", folder / "teacher", TRAIN)
    distill(folder / "teacher", folder / "student", DISTILL)
    dataset = record(folder / "teacher", folder / "data", RecordConfig(steps=40, num_envs=2))
    scores = evaluate([folder / "teacher", folder / "student"], EvaluateConfig(episodes=2, num_envs=2))
    exported = export(
        folder / "student", folder / "student.pt", "torchscript", ExportConfig(states=50, calibration=8, episodes=0)
    )
    names = [folder / name / "policy" / "weights.safetensors" for name in ("teacher", "student")]
    return {
        "weights": [name.read_bytes() for name in names],
        "shards": [shard.sha256 for shard in dataset.shards],
        "returns": [score.returns for score in scores],
        "agreement": exported.compared.agreement,
    }


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(tmp_path_factory.mktemp("usual") / "here")


@pytest.mark.parametrize(
    "around",
    [
        name if name in ("no gradients", "double precision") else pytest.param(name, marks=pytest.mark.slow)
        for name in SURROUNDINGS
    ],
)
def test_what_is_set_around_a_call_changes_nothing_in_it_and_is_there_afterwards(
    tmp_path: Path, usual: dict[str, Any], around: str
) -> None:
    with SURROUNDINGS[around]():
        before = torch.zeros(1).dtype, torch.zeros(1).device, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        assert made(tmp_path / "here") == usual
        policies = [
            load_policy(tmp_path / "here" / "student"),
            load_teacher(tmp_path / "here" / "student.pt", env="CartPole-v1"),
        ]
        after = torch.zeros(1).dtype, torch.zeros(1).device, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    assert after == before
    for policy in policies:
        parameters = [*policy.network.parameters(), *policy.network.buffers()]
        assert {value.dtype for value in parameters if value.is_floating_point()} <= {torch.float32}
        assert not any(value.is_inference() or value.is_meta for value in parameters)


def test_the_usual_is_left_again_when_it_fails() -> None:
    def fail() -> None:
        with usual_torch():
            assert torch.zeros(1).dtype == torch.float32
            raise KeyError

    with default_dtype(torch.float64), torch.no_grad():
        with pytest.raises(KeyError):
            fail()
        assert torch.zeros(1).dtype == torch.float64
        assert not torch.is_grad_enabled()


def booleans() -> list[tuple[type, str]]:
    """Every field of every public configuration that is to be True or False."""
    fields = []
    kinds = [getattr(rldistill, name) for name in rldistill.__all__ if name.endswith(("Config", "Options"))]
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        fields += [(kind, field) for field, hint in hints.items() if bool in {hint, *typing.get_args(hint)}]
        kinds += [hint for hint in hints.values() if dataclasses.is_dataclass(hint)]  # the parts of a nested one
    return fields


@pytest.mark.parametrize(("kind", "field"), booleans(), ids=lambda item: getattr(item, "__name__", item))
@pytest.mark.parametrize("value", ["no", "", 0, 1.0, [], np.int64(1)], ids=repr)
def test_an_option_that_is_true_or_false_is_nothing_else(kind: type, field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} is True or False, not"):
        check_booleans(kind(**{field: value}))
    check_booleans(kind(**{field: np.bool_(True)}))
    check_booleans(kind())


def test_verbs_look_at_their_booleans_before_they_begin(tmp_path: Path) -> None:
    no: Any = "no"
    calls: list[Callable[[], object]] = [
        lambda: rldistill.TeacherOptions(trust_pickle=no),
        lambda: train("CartPole-v1", tmp_path / "a", TRAIN, resume=no),
        lambda: train("CartPole-v1", tmp_path / "a", changed(TRAIN, tensorboard=no)),
        lambda: distill("nothing", tmp_path / "a", DISTILL, resume=no),
        lambda: distill("nothing", tmp_path / "a", changed(DISTILL, steady=no)),
        lambda: record("nothing", tmp_path / "a", append=no),
        lambda: rldistill.push("nothing", "me/it", dry_run=no),
        lambda: rldistill.push("nothing", "me/it", force=no),
        lambda: rldistill.push("nothing", "me/it", rldistill.PushConfig(private=no)),
        lambda: export("nothing", tmp_path / "a", "onnx", force=no),
        lambda: rldistill.watch("nothing", out=tmp_path / "a.gif", force=no),
        lambda: rldistill.report("nothing", config=rldistill.ReportConfig(trust_pickle=no)),
        lambda: merge(["a", "b"], tmp_path / "a", mixed_teachers=no),
        lambda: info("nothing", verify=no),
    ]
    for call in calls:
        with pytest.raises(UserError, match="is True or False, not 'no'"):
            call()
    assert not list(tmp_path.iterdir())
