"""Teachers that are objects of Python, and policies whose scores or labels are not what they seem."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill import (
    DistillConfig,
    EvaluateConfig,
    RecordConfig,
    TeacherOptions,
    WatchConfig,
    distill,
    evaluate,
    make_task,
    record,
    save_policy,
    watch,
)  # fmt: skip
from rldistill.datasets import info, merge
from rldistill.policies import load_policy
from rldistill.runs.scores import read_scores, score_table
from rldistill.students.networks import Architecture, build
from rldistill.types import ScoreKind, Task, UserError

CARTPOLE = make_task("CartPole-v1")
SHORT = DistillConfig.of(student="mlp:8", steps=400, warmup=100, num_envs=4, evaluate_every=0, evaluate_episodes=1)


class Plain:
    """Pushes to the side to which the pole leans and turns. No more than a `Teacher` needs."""

    task: Task = CARTPOLE
    score_kind: ScoreKind = "logits"

    def __call__(self, observations: Tensor) -> Any:
        lean = observations[:, 2] + observations[:, 3]
        return torch.stack([-lean, lean], dim=1)


class Writing(Plain):
    """Normalizes its input in place, as many do, and gives the same memory at each call."""

    def __call__(self, observations: Tensor) -> Any:
        scores = super().__call__(observations)
        observations.mul_(0).add_(7)
        self.last = getattr(self, "last", torch.empty(0)).resize_(scores.shape).copy_(scores)
        return self.last


class Arrays(Plain):
    def __call__(self, observations: Tensor) -> Any:
        return np.asarray(super().__call__(observations), dtype=np.float64)


class Words(Plain):
    def __call__(self, observations: Tensor) -> Any:
        return "left"


@pytest.mark.parametrize("kind", [Writing, Arrays])
@pytest.mark.slow
def test_a_teacher_that_writes_to_its_input_makes_the_same_student_and_the_same_dataset(
    kind: Any, tmp_path: Path
) -> None:
    weights, shards = [], []
    for name, teacher in (("clean", Plain()), ("other", kind())):
        student = distill(teacher, tmp_path / name, SHORT)
        weights.append(student.network.state_dict())
        made = record(teacher, tmp_path / f"{name}-data", RecordConfig(steps=300, num_envs=3))
        shards.append([shard.sha256 for shard in made.shards])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_teachers_of_python_are_evaluated_and_watched(tmp_path: Path) -> None:
    config = EvaluateConfig(episodes=3, num_envs=3)
    clean, writing = (evaluate([teacher], config)[0] for teacher in (Plain(), Writing()))
    assert clean.returns == writing.returns
    assert clean.mean > 100
    scores = evaluate([Plain(), Writing()], config, json=tmp_path / "s.json")
    assert scores[1].agreement == 1
    assert read_scores(tmp_path / "s.json")[1].returns == writing.returns
    row = score_table(scores)[1]
    assert (row["network"], row["parameters"], row["share"], row["KiB"]) == ("Writing", "-", "-", "-")
    pytest.importorskip("pygame")
    done = watch([Plain(), Writing()], WatchConfig(max_steps=3), out=tmp_path / "w.gif")
    assert [one.steps for one in done] == [3, 3]


@pytest.mark.parametrize("verb", ["distill", "record", "evaluate"])
def test_what_is_no_array_of_scores_is_refused(verb: str, tmp_path: Path) -> None:
    calls: dict[str, Any] = {
        "distill": lambda teacher: distill(teacher, tmp_path / "out", SHORT),
        "record": lambda teacher: record(teacher, tmp_path / "out", RecordConfig(steps=10)),
        "evaluate": lambda teacher: evaluate([teacher], EvaluateConfig(episodes=1)),
    }
    with pytest.raises(UserError, match="gives a str: its scores are a tensor"):
        calls[verb](Words())
    Words.task = "CartPole-v1"  # type: ignore[assignment]
    with pytest.raises(UserError, match="task is a Task"):
        calls[verb](Words())
    Words.task = CARTPOLE
    assert not (tmp_path / "out").exists()


def large(path: Path, scale: float) -> Path:
    network = build(Architecture("mlp:8,8", (4,), 2), 0, "q_values")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(scale)
    save_policy(path, network, CARTPOLE, {})
    return path


def test_finite_weights_whose_scores_are_not_finite_are_not_played(tmp_path: Path) -> None:
    policy = large(tmp_path / "p", 3e38)
    for call in (
        lambda: evaluate([policy], EvaluateConfig(episodes=1)),
        lambda: watch(policy, WatchConfig(max_steps=3), out=tmp_path / "w.gif"),
        lambda: load_policy(policy).predict(np.ones(4, np.float32)),
        lambda: load_policy(policy).predict(np.ones(4, np.float32), deterministic=False),
        lambda: distill(policy, tmp_path / "out", SHORT),
    ):
        with pytest.raises(UserError, match="NaN or infinity"):
            call()
    assert evaluate([large(tmp_path / "q", 1.0)], EvaluateConfig(episodes=1))[0].mean > 0


def test_a_dataset_that_another_teacher_labelled_is_refused_or_accepted_aloud(tmp_path: Path) -> None:
    one, two = large(tmp_path / "one", 0.5), large(tmp_path / "two", 0.25)
    record(one, tmp_path / "data", RecordConfig(steps=300, num_envs=3))
    config = DistillConfig.of(
        student="mlp:8", dataset=str(tmp_path / "data"), updates=5, evaluate_every=0, evaluate_episodes=1
    )
    with pytest.raises(UserError, match="another teacher labelled .*accept-mismatch"):
        distill(two, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    distill(two, tmp_path / "out", config, options=TeacherOptions(accept_mismatch=True))
    distill(two, tmp_path / "out", config, resume=True)  # begun with it
    distill(one, tmp_path / "own", config)
    # Whoever merges the labels of several teachers says that they may be mixed.
    record(two, tmp_path / "more", RecordConfig(steps=300, num_envs=3, seed=1))
    merge([tmp_path / "data", tmp_path / "more"], tmp_path / "both", mixed_teachers=True)
    both = DistillConfig.of(
        student="mlp:8", dataset=str(tmp_path / "both"), updates=5, evaluate_every=0, evaluate_episodes=1
    )
    distill(two, tmp_path / "mixed", both)
    with pytest.raises(UserError, match="another teacher labelled"):
        distill(large(tmp_path / "three", 0.1), tmp_path / "third", both)


def test_a_dataset_without_a_checksum_of_its_teacher_is_read(tmp_path: Path) -> None:
    record(Plain(), tmp_path / "data", RecordConfig(steps=300, num_envs=3))
    assert info(tmp_path / "data").teachers[0]["kind"] == "Plain"
    config = DistillConfig.of(
        student="mlp:8", dataset=str(tmp_path / "data"), updates=5, evaluate_every=0, evaluate_episodes=1
    )
    assert distill(Plain(), tmp_path / "out", config).score_kind == "logits"
    with pytest.raises(UserError, match="another teacher labelled the dataset .*Plain"):
        distill(Arrays(), tmp_path / "other", config)
