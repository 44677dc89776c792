"""Actions that the environment does not allow: nobody takes them, labels and losses leave them out."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch

from masked import IDS, MOVES, SIDE, Square, Unmasked, Walker
from rldistill.configurations import changed
from rldistill.datasets import load_replay, open_dataset
from rldistill.datasets.merging import merge
from rldistill.formats.c.numbers import c_policy
from rldistill.formats.c.rendering import render
from rldistill.lessons.dqn import DQN, DQNSettings, q_targets
from rldistill.lessons.exploration import EZGreedy
from rldistill.lessons.guides import OneGuide
from rldistill.lessons.labels import OneTeacher
from rldistill.lessons.learning import Learning
from rldistill.lessons.pqn import PQN, PQNSettings
from rldistill.lessons.streams import Composed, Stream
from rldistill.play.actions import are_allowed, chosen, drawn, mix_in_random, uniform_actions
from rldistill.play.envs import Environments, gives_action_masks, make_task
from rldistill.play.games import play
from rldistill.play.rollout import rollout, uniform
from rldistill.policies import SavedPolicy, load_policy
from rldistill.progress import Silent
from rldistill.students.losses import DISCRETE, js, kl, kl_hinton, kl_reverse, mse, mse_prob, nll, parse_loss
from rldistill.students.networks import Architecture, Network, build
from rldistill.students.targets import advantage_spread, auto_temperature, mean_entropy, transform
from rldistill.teachers import ForeignTeacher, load_teacher
from rldistill.types import Batch, Lesson, Task, UserError, labelled
from rldistill.verbs.convert import convert
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.spectator import spectate
from rldistill.verbs.train import TrainConfig, train
from test_teachers_sb3 import actor_critic, make_zip

THREE = Task("three", 3, (2,), "float32")
PAIR = Task("pair", 5, (2,), "float32", action_sizes=(2, 3))
SMALL = DistillConfig.of(
    steps=1_600,
    student="mlp:32",
    num_envs=8,
    warmup=160,
    batch_size=64,
    samples_per_step=8,
    learning_rate=3e-3,
    evaluate_episodes=10,
    evaluate_every=0,
    checkpoint_seconds=3600,
)


@pytest.fixture(scope="module", autouse=True)
def squares() -> Iterator[None]:
    for name, entry in IDS.items():
        gymnasium.register(name, lambda entry=entry, **options: entry(**options))
    yield
    for name in IDS:
        del gymnasium.registry[name]


# --- formulas


def test_losses_over_the_allowed_actions_are_those_worked_out_by_hand() -> None:
    """Of three actions the second is not allowed. Teacher (ln 3, -, 0): 3/4 and 1/4. Student equal: 1/2 and 1/2."""
    masks = torch.tensor([[True, False, True]])
    teacher, student = torch.tensor([[math.log(3), 99.0, 0.0]]), torch.tensor([[1.0, -7.0, 1.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl(student, teacher, 1.0, masks).tolist() == pytest.approx([divergence])
    # A temperature of 1/2 squares the odds: 9/10 and 1/10.
    cold = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert kl(student, teacher, 0.5, masks).tolist() == pytest.approx([cold])
    assert kl_hinton(student, teacher, 0.5, masks).tolist() == pytest.approx([cold / 4])
    assert kl_reverse(student, teacher, 1.0, masks).tolist() == pytest.approx(
        [0.5 * math.log(2 / 3) + 0.5 * math.log(2)]
    )
    # The mean of both is 5/8 and 3/8.
    from_teacher = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    from_student = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert js(student, teacher, 1.0, masks).tolist() == pytest.approx([(from_teacher + from_student) / 2])
    assert nll(student, teacher, 1.0, masks).tolist() == pytest.approx([math.log(2)])
    assert mse(student, teacher, 1.0, masks).tolist() == pytest.approx([(1 - math.log(3)) ** 2 + 1])
    assert mse_prob(student, teacher, 1.0, masks).tolist() == pytest.approx([2 * 0.25**2])


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_the_score_of_a_masked_action_has_no_influence_on_a_loss_or_its_gradient(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, True]])
    student, teacher = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    results = []
    for score in (0.0, 40.0, -1e30):
        ours = student.masked_fill(~masks, score).requires_grad_()
        losses = DISCRETE[name](ours, teacher.masked_fill(~masks, -score), 0.7, masks)
        losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        assert ours.grad is not None
        assert bool((ours.grad[~masks] == 0).all())
        results.append((losses.detach(), ours.grad))
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(gradient, results[0][1])
    plain = DISCRETE[name](student, teacher, 0.7)
    assert torch.equal(DISCRETE[name](student, teacher, 0.7, torch.ones(3, 4, dtype=torch.bool)), plain)


def test_of_several_actions_at_once_each_has_its_own_mask() -> None:
    masks = torch.tensor([[False, True, True, False, True]])
    teacher, student = torch.tensor([[5.0, 0.0, math.log(3), 9.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 3.0, 1.0]])
    loss = parse_loss("kl", "logits", (2, 3))(student, teacher, 1.0, masks)
    assert loss.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    assert chosen(teacher, "logits", PAIR, masks).tolist() == [[1, 0]]


def test_targets_are_over_the_allowed_actions() -> None:
    masks = torch.tensor([[True, False, True], [True, True, True]])
    values = torch.tensor([[1.0, 100.0, 3.0], [0.0, 3.0, 6.0]])
    advantages = transform(values, "advantage", 1.0, (), masks)
    assert advantages[masks].tolist() == [-1.0, 1.0, -3.0, 0.0, 3.0]
    assert advantage_spread(values, (), masks) == pytest.approx(math.sqrt(20 / 5))
    equal = torch.tensor([[2.0, -50.0, 2.0], [1.0, 1.0, 1.0]])
    assert mean_entropy(equal, 1.0, masks) == pytest.approx((math.log(2) + math.log(3)) / 2)
    other = values.masked_fill(~masks, -1e6)
    assert auto_temperature(values, "q_values", masks) == auto_temperature(other, "q_values", masks)
    temperature = auto_temperature(values, "q_values", masks)
    assert mean_entropy(values, temperature, masks) == pytest.approx(0.35 * (math.log(2) + math.log(3)) / 2, rel=0.01)


def test_a_bootstrap_takes_the_best_of_the_allowed_actions() -> None:
    masks = torch.tensor([[True, False, True], [False, True, False]])
    values, selector = (
        torch.tensor([[1.0, 9.0, 2.0], [3.0, 4.0, 5.0]]),
        torch.tensor([[7.0, 8.0, 6.0], [3.0, 1.0, 2.0]]),
    )
    targets = q_targets(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), values, selector, masks)
    assert targets.tolist() == [1 + 0.5 * 1.0, 1 + 0.5 * 4.0]


# --- choices


def test_choices_are_among_the_allowed_actions_alone() -> None:
    masks = np.repeat([[True, False, True], [False, True, False]], 3_000, axis=0)
    scores = torch.tensor([[0.0, 9.0, 1.0]]).repeat(6_000, 1)
    generator = np.random.default_rng(0)
    random = uniform_actions(THREE, 6_000, generator, masks)
    assert np.bincount(random[:3_000], minlength=3) / 3_000 == pytest.approx([0.5, 0, 0.5], abs=0.04)
    assert set(random[3_000:]) == {1}
    best = chosen(scores, "logits", THREE, masks).numpy()
    assert (best == np.repeat([2, 1], 3_000)).all()
    sampled = drawn(scores, "logits", THREE, generator, masks)
    odds = 1 / (1 + math.e)
    assert np.bincount(sampled[:3_000], minlength=3) / 3_000 == pytest.approx([odds, 0, 1 - odds], abs=0.04)
    mixed = mix_in_random(best, THREE, 0.5, generator, masks)
    assert np.bincount(mixed[:3_000], minlength=3) / 3_000 == pytest.approx([0.25, 0, 0.75], abs=0.04)
    assert (mixed[3_000:] == 1).all()


def test_as_many_numbers_are_drawn_whatever_is_allowed() -> None:
    few, many = np.random.default_rng(0), np.random.default_rng(0)
    uniform_actions(PAIR, 4, few, np.tile([True, False, False, True, False], (4, 1)))
    uniform_actions(PAIR, 4, many, np.ones((4, 5), dtype=np.bool_))
    assert few.random() == many.random()


def test_a_random_action_that_lasts_is_drawn_anew_where_it_is_not_allowed_any_more() -> None:
    ez, generator = EZGreedy(PAIR, 64, 30, np.random.default_rng(0)), np.random.default_rng(1)
    greedy = np.zeros((64, 2), dtype=np.int64)
    held = anew = 0
    before = greedy
    for _ in range(100):
        masks = generator.random((64, 5)) < 0.7
        masks[:, 0] = masks[:, 2] = True  # of which the greedy actions are
        actions = ez(greedy, 0.3, masks)
        assert are_allowed(actions, PAIR, masks).all()
        held += int((actions == before).all(axis=1).sum())
        anew += int((~are_allowed(before, PAIR, masks)).sum())
        before = actions
    assert held > 1_000
    assert anew > 500


# --- what environments say


@pytest.mark.parametrize("env", ["Square-v0", "SquareMethod-v0", "Axes-v0", "Pairs-v0"])
def test_random_play_keeps_to_the_mask_and_goes_on_after_a_playback(env: str) -> None:
    environments = Environments(make_task(env), 3, 0)
    generator = np.random.default_rng(0)
    assert environments.task.action_masks
    steps = rollout(environments, uniform(environments.task, generator))
    taken = [next(steps) for _ in range(60)]
    assert all(
        step.masks is not None and are_allowed(step.actions, environments.task, step.masks).all() for step in taken
    )
    assert any((~step.masks).any() for step in taken if step.masks is not None)
    state, following = environments.state_dict(), [next(steps).actions for _ in range(1)]
    again = Environments(make_task(env), 3, 0)
    again.load_state_dict(state)
    masks, expected = again.masks, Environments(make_task(env), 3, 0)
    expected.load_state_dict(state)
    np.testing.assert_array_equal(masks, expected.masks)
    again.step(following[0])  # the same place, for the move is allowed


def test_environments_without_masks_have_none(tmp_path: Path) -> None:
    environments = Environments(make_task("SquareUnmasked-v0"), 2, 0)
    assert environments.masks is None
    assert "action_masks" not in environments.task.as_dict()
    steps = rollout(environments, lambda observations, *more: _alone(observations, more))
    assert next(steps).masks is None
    assert Task.from_dict({**environments.task.as_dict(), "action_masks": True}).action_masks
    with pytest.raises(UserError, match="action_masks"):
        Task.from_dict({**environments.task.as_dict(), "action_masks": "yes"})
    arm = Task("arm", 1, (4,), "float32", action_low=(-1.0,), action_high=(1.0,), action_masks=True)
    with pytest.raises(UserError, match="no masks"):
        Task.from_dict(arm.as_dict())


def _alone(observations: Any, more: Any) -> Any:
    assert not more, "a policy of a task without masks is given observations alone"
    return np.zeros(len(observations), dtype=np.int64)


def test_an_action_that_is_masked_is_refused_before_it_is_taken() -> None:
    environments = Environments(make_task("Square-v0"), 1, 0)
    assert environments.masks is not None
    while environments.masks.all():
        environments.step(np.array([0]))
    with pytest.raises(ValueError, match="masked"):
        environments.step((~environments.masks).argmax(axis=1))


@pytest.mark.parametrize(
    ("masks", "wrong"),
    [
        ([[1, 1, 1]], "shape"),
        ([[1, 1, 1, 1, 1]], "shape"),
        ([np.ones((2, 2))], "shape"),
        ([[1, 1, 2, 0]], "holds 2"),
        ([[0.0, -math.inf, 0.0, 0.0]], "holds -inf"),
        ([["a", "b", "c", "d"]], "type list"),
        ([7], "type int"),
        ([{"left": True}], "type dict"),
        ([[0, 0, 0, 0]], "no action"),
        ([None, [1, 1, 1, 1]], "none at its first reset"),
    ],
)
def test_a_mask_that_is_none_is_refused_in_one_line(masks: list[Any], wrong: str) -> None:
    given = iter(masks)

    class Odd(Square):
        def info(self) -> dict[str, Any]:
            return {"action_mask": next(given)}

    gymnasium.register("Odd-v0", lambda **options: Odd(**options))
    try:
        task = make_task("Odd-v0")
        with pytest.raises(UserError, match=wrong) as caught:
            _begin(task)
        assert "\n" not in str(caught.value)
        assert "Odd-v0" in str(caught.value)
    finally:
        del gymnasium.registry["Odd-v0"]


def _begin(task: Task) -> None:
    """A reset, and a step that stays on the square."""
    environments = Environments(task, 1, 0)
    environments.step(np.array([0 if environments.observations[0, 1] < SIDE - 1 else 2]))


def test_a_mask_may_be_left_out_and_allow_nothing_once_the_episode_is_over() -> None:
    class Sparse(Square):
        def step(self, action: Any) -> Any:
            observation, reward, arrived, late, _ = super().step(action)
            inside = (self.place > 0).all() and (self.place < SIDE - 1).all()
            mask = np.zeros(4) if arrived or late else None if inside else self.allowed()
            return observation, reward, arrived, late, {"action_mask": mask}

    gymnasium.register("Sparse-v0", lambda **options: Sparse(**options))
    try:
        environments = Environments(make_task("Sparse-v0"), 2, 0)
        games = play(environments.task, lambda generator: uniform(environments.task, generator), 10, 0)
        assert len(games.returns) == 10
    finally:
        del gymnasium.registry["Sparse-v0"]


def test_a_policy_made_with_masks_says_where_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    task = replace(make_task("SquareUnmasked-v0"), action_masks=True)
    for _ in range(2):
        environments = Environments(task, 1, 0)
    assert not environments.task.action_masks
    assert [("SquareUnmasked-v0" in text, "gives none" in text) for text in caplog.messages] == [(True, True)]
    assert gives_action_masks(make_task("Square-v0"))
    assert not gives_action_masks(task)


# --- from environment to student


@pytest.fixture(scope="module")
def walker(squares: None) -> Walker:
    return Walker(make_task("Square-v0"))


@pytest.mark.slow
def test_a_student_of_a_masked_task_reaches_its_teacher_and_makes_no_illegal_move(
    tmp_path: Path, walker: Walker
) -> None:
    """The teacher scores illegal moves highest. Square raises an error at any."""
    best = float(play(walker.task, lambda generator: _greedy(walker), 20, 5).returns.mean())
    for driver in ("teacher", "student"):
        config = changed(SMALL, driver=driver, explore="boltzmann" if driver == "student" else "greedy")
        student = distill(walker, tmp_path / driver, config)
        assert student.task.action_masks
        games = play(student.task, lambda generator, student=student: _greedy(student), 20, 5)  # type: ignore[misc]  # a default holds the student
        assert games.returns.mean() > best - 0.1
    scores = evaluate([load_policy(tmp_path / "teacher"), student], EvaluateConfig(episodes=6, epsilon=0.5))
    assert scores[1].agreement > 0.8
    moments = spectate(student, student.task, epsilon=0.5, seed=0, other=student)
    steps = [next(moments) for _ in range(30)]
    moments.close()
    assert any(np.isneginf(moment.values).any() for moment in steps)


def _greedy(policy: Any) -> Any:
    from rldistill.play.rollout import EpsilonGreedy

    return EpsilonGreedy(policy, policy.task, 0.0, np.random.default_rng(0))


def test_several_actions_at_once_are_distilled_under_a_mask_for_each(tmp_path: Path) -> None:
    student = distill(Walker(make_task("Pairs-v0")), tmp_path / "s", changed(SMALL, steps=600, driver="mixture"))
    assert student.task.action_masks
    assert evaluate([student], EvaluateConfig(episodes=4, epsilon=0.5))[0].mean > -1


def test_a_teacher_may_rule_actions_out_by_itself_as_the_mask_does(tmp_path: Path, walker: Walker) -> None:
    """Minus infinity in place of high scores: nothing changes, for neither has any influence."""
    own = Walker(walker.task, outside=-math.inf)
    config = changed(SMALL, steps=400, evaluate_episodes=1)
    students = [distill(teacher, tmp_path / name, config) for teacher, name in ((walker, "a"), (own, "b"))]
    assert students[0].sha256 == students[1].sha256
    datasets = [record(t, tmp_path / n, RecordConfig(steps=80, num_envs=2)) for t, n in ((walker, "c"), (own, "d"))]
    rows, others = (dataset.read(0) for dataset in datasets)
    np.testing.assert_array_equal(rows.values[rows.masks], others.values[rows.masks])
    with pytest.raises(UserError, match="infinity"):
        record(Walker(make_task("SquareUnmasked-v0"), outside=-math.inf), tmp_path / "e", RecordConfig(steps=80))


def test_a_composite_allows_what_one_of_its_two_states_allows(walker: Walker) -> None:
    states = torch.tensor([[0.0, 0, 2, 2], [1, 1, 2, 2], [2, 2, 0, 0], [0, 2, 1, 1]])
    masks = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]], dtype=torch.bool)

    class Visited:
        def __next__(self) -> dict[Lesson, Batch]:
            return {Lesson.of(walker.task): labelled(states.clone(), walker(states), masks.clone())}

    first, second, third, fourth = masks
    both = [first | third, second | fourth]
    for share, expected in ((0.5, [*both, third, fourth]), (1.0, [*both, *both])):
        made = next(
            Composed(
                cast(Stream, Visited()), OneGuide(OneTeacher(walker), walker.task), share, np.random.default_rng(0)
            )
        )[Lesson.of(walker.task)]
        assert made.masks is not None
        assert made.masks.tolist() == [mask.tolist() for mask in expected]


def test_a_dataset_keeps_the_masks_through_every_form(tmp_path: Path, walker: Walker) -> None:
    dataset = record(walker, tmp_path / "d", RecordConfig(steps=600, num_envs=4, epsilon=0.5))
    other = record(walker, tmp_path / "e", RecordConfig(steps=200, num_envs=4, epsilon=0.5, seed=1))
    assert dataset.task.action_masks
    rows = dataset.read(0)
    assert rows.masks is not None
    places = rows.frames[:, None, :2] + np.array(((0, 1), (1, 0), (0, -1), (-1, 0)))
    np.testing.assert_array_equal(rows.masks, ((places >= 0) & (places < SIDE)).all(axis=2))
    merged = merge([dataset.path, other.path], tmp_path / "m")
    convert(merged.path, tmp_path / "p", to="parquet")
    convert(tmp_path / "p", tmp_path / "back", to="rldistill")
    ours, theirs = load_replay(merged)[0], load_replay(open_dataset(tmp_path / "back"))[0]
    at = np.arange(800), np.zeros(800, dtype=np.int64)
    np.testing.assert_array_equal(ours.column("masks", *at), theirs.column("masks", *at))
    config = changed(SMALL, dataset=str(dataset.path), updates=150, evaluate_episodes=2)
    student = distill(walker, tmp_path / "student", config)
    assert student.task.action_masks


def test_a_dataset_from_before_its_environment_gave_masks_is_read_and_not_added_to(tmp_path: Path) -> None:
    gymnasium.register("Older-v0", lambda **options: Unmasked(**options))
    try:
        walker = Walker(make_task("Older-v0"))
        plain = record(walker, tmp_path / "plain", RecordConfig(steps=200, num_envs=4))
        assert plain.read(0).masks is None
        del gymnasium.registry["Older-v0"]
        gymnasium.register("Older-v0", lambda **options: Square(**options))
        student = distill(
            walker, tmp_path / "s", changed(SMALL, dataset=str(plain.path), updates=20, evaluate_episodes=2)
        )
        assert len(play(student.task, lambda generator: _greedy(student), 2, 0).returns) == 2
        with pytest.raises(UserError, match="action_masks"):
            record(walker, plain.path, RecordConfig(steps=40, num_envs=4), append=True)
        assert open_dataset(plain.path).control_steps == 200
    finally:
        del gymnasium.registry["Older-v0"]


def test_minari_keeps_the_masks(tmp_path: Path, walker: Walker) -> None:
    pytest.importorskip("minari")
    dataset = record(walker, tmp_path / "d", RecordConfig(steps=120, num_envs=2, epsilon=0.5))
    convert(dataset.path, tmp_path / "square-v0", to="minari")
    convert(tmp_path / "square-v0", tmp_path / "back", to="rldistill")
    there, back = dataset.read(0), open_dataset(tmp_path / "back").read(0)
    assert there.masks is not None
    assert back.masks is not None
    keys = [
        sorted(zip(map(bytes, rows.frames), map(bytes, np.asarray(rows.masks)), strict=True)) for rows in (there, back)
    ]
    assert keys[0] == keys[1]


LEARNERS = {
    "dqn": TrainConfig.of(
        algo="dqn",
        steps=2_000,
        num_envs=4,
        network="mlp:32",
        final_episodes=5,
        epsilon_repeats=3,
        learning_rate=3e-3,
        warmup=200,
        replay_ratio=16.0,
        target_every=20,
    ),
    "pqn": TrainConfig.of(
        algo="pqn",
        steps=8_000,
        num_envs=8,
        network="mlp:32",
        final_episodes=5,
        epsilon_repeats=3,
        learning_rate=3e-3,
    ),
}


@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.slow
def test_deep_q_learning_makes_no_illegal_move_and_finds_the_way(tmp_path: Path, walker: Walker, algo: str) -> None:
    policy = train("Square-v0", tmp_path / "run", LEARNERS[algo])
    assert policy.task.action_masks
    best = play(policy.task, lambda generator: _greedy(walker), 20, 3).returns.mean()
    assert play(policy.task, lambda generator: _greedy(policy), 20, 3).returns.mean() > best - 0.5


@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.slow
def test_what_a_learner_visits_is_recorded_with_its_masks(tmp_path: Path, algo: str) -> None:
    config = changed(LEARNERS[algo], steps=1_024, final_episodes=0, record=str(tmp_path / "data"))
    policy = train("Square-v0", tmp_path / "run", config)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.task == policy.task
    replay, times = load_replay(dataset)
    rows = np.zeros_like(times)
    masks, actions = (replay.column(name, times, rows) for name in ("masks", "actions"))
    assert are_allowed(actions, policy.task, masks).all()
    assert not masks.all()
    values = torch.from_numpy(replay.column("values", times, rows))
    torch.testing.assert_close(values, policy(torch.from_numpy(replay.observations(times, rows))))


class _Killed(Silent):
    """Kills its own process once so many control steps are done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, done: int, **figures: float) -> None:
        if done >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.slow
def test_training_killed_with_masks_ends_in_the_same_weights(tmp_path: Path, algo: str) -> None:
    config = changed(LEARNERS[algo], steps=1_200, replay_ratio=None, final_episodes=1, checkpoint_seconds=0)
    whole = train("Square-v0", tmp_path / "whole", config)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=("Square-v0", tmp_path / "killed", config), kwargs={"progress": _Killed(700)}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert train("Square-v0", tmp_path / "killed", config, resume=True).sha256 == whole.sha256


class _Ambushed:
    """A teacher in whose process a call kills, whatever the machine's speed."""

    def __init__(self, teacher: Walker, calls: int) -> None:
        self.teacher, self.left = teacher, calls
        self.task, self.score_kind = teacher.task, teacher.score_kind

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.teacher(observations)


@pytest.mark.slow
def test_distillation_killed_with_masks_ends_in_the_same_weights(tmp_path: Path, walker: Walker) -> None:
    config = changed(SMALL, steps=600, driver="mixture", evaluate_episodes=1, checkpoint_seconds=0.0)
    whole = distill(walker, tmp_path / "whole", config)
    process = multiprocessing.get_context("fork").Process(
        target=distill, args=(_Ambushed(walker, 600 // SMALL.driving.num_envs), tmp_path / "killed", config)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint" / "state").exists()
    assert distill(walker, tmp_path / "killed", config, resume=True).sha256 == whole.sha256


def test_predict_takes_masks_as_sb3_contrib_gives_them(tmp_path: Path, walker: Walker) -> None:
    student = distill(walker, tmp_path / "s", changed(SMALL, steps=400, evaluate_episodes=1))
    corner = np.array([0.0, 0.0, 4.0, 4.0], dtype=np.float32)
    for masks in ([0, 0, 0, 1], [False, True, False, False]):
        assert student.predict(corner, action_masks=masks)[0] == int(np.argmax(masks))
        assert student.predict(corner, action_masks=np.array(masks), deterministic=False)[0] == int(np.argmax(masks))
    both = student.predict(np.stack([corner, corner]), action_masks=np.eye(4, dtype=np.int8)[[3, 0]])[0]
    assert both.tolist() == [3, 0]
    for wrong, what in ((np.ones(3), "shape"), (np.zeros(4), "no action"), (np.ones((2, 4)), "shape")):
        with pytest.raises(UserError, match=what):
            student.predict(corner, action_masks=wrong)


def _walked(observations: Any, actions: Any) -> tuple[Any, Any, Any]:
    """After each action: whether the target is reached, the place, and which moves are allowed there."""
    places = observations[:, :2] + np.array(MOVES)[actions]
    around = places[:, None] + np.array(MOVES)
    return (places == observations[:, 2:]).all(axis=1), places, ((around >= 0) & (around < SIDE)).all(axis=2)


VALUES = np.array([5.0, 3.0, 4.0, 2.0], dtype=np.float32)


def _constant(task: Task) -> Network:
    """A network that gives `VALUES` whatever it is shown."""
    network = build(Architecture("mlp:4", task.observation_shape, 4), 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.layers[-1].bias.copy_(torch.from_numpy(VALUES))
    return network


LEARNING = Learning(
    steps=1_000,
    learning_rate=1e-3,
    discount=0.5,
    epsilon_end=0.1,
    epsilon_steps=10,
    epsilon_repeats=1,
    clip_rewards=False,
    lives_as_episodes=False,
    seed=0,
)


def test_pqn_bootstraps_from_allowed_actions_also_where_an_episode_is_cut() -> None:
    environments = Environments(make_task("Square-v0"), 8, 0)
    pqn = PQN(_constant(environments.task), environments, LEARNING, PQNSettings(rollout_length=100, trace=0.0))
    observations, actions, targets, _ = (np.asarray(part) for part in pqn._collect())
    arrived, _, allowed = _walked(observations, actions)
    best = np.where(allowed, VALUES, -np.inf).max(axis=1)
    assert len(set(best)) > 1
    np.testing.assert_allclose(targets, np.where(arrived, 1.0, -0.1 + 0.5 * best), rtol=1e-6)


def test_dqn_keeps_the_masks_of_what_it_bootstraps_from() -> None:
    environments = Environments(make_task("Square-v0"), 4, 0)
    settings = DQNSettings(capacity=2_000, warmup=0, n_step=1, minibatch=256, slack=100)
    dqn = DQN(_constant(environments.task), environments, LEARNING, settings)
    for _ in range(100):
        dqn.play()
    drawn = dqn.draw()
    assert drawn.masks is not None
    around = drawn.bootstrap[:, None, :2].numpy() + np.array(MOVES)
    np.testing.assert_array_equal(drawn.masks, ((around >= 0) & (around < SIDE)).all(axis=2))


def test_a_maskable_ppo_plays_where_there_are_masks_and_says_where_there_are_none(tmp_path: Path) -> None:
    draw = actor_critic(4, 8, outputs=4)
    path = make_zip(tmp_path / "x.zip", "MaskablePPO", draw.tensors, Square.observation_space, Square.action_space)
    teacher = load_teacher(path, env="Square-v0")
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.name == "MaskablePPO"
    assert teacher.task.action_masks
    assert not any("masks" in note for note in teacher.notes)
    assert len(evaluate([teacher], EvaluateConfig(episodes=4))[0].returns) == 4
    other = load_teacher(path, env="SquareUnmasked-v0")
    assert isinstance(other, ForeignTeacher)
    assert not other.task.action_masks
    assert any("masks" in note and "SquareUnmasked-v0" in note for note in other.notes)
    assert len(evaluate([other], EvaluateConfig(episodes=2))[0].returns) == 2


@pytest.mark.slow
def test_who_deploys_a_policy_is_told_to_leave_masked_actions_out(tmp_path: Path) -> None:
    task = replace(make_task("Square-v0"), action_masks=True)
    network = build(Architecture("mlp:4", task.observation_shape, 4), 0)
    for masks in (False, True):
        played = replace(task, action_masks=masks)
        policy = c_policy(network, played, prefix="square", header="square.h", calibration=None, facts={})
        assert ("allowed scores" in render(policy)[1]) == masks
    done = export(
        SavedPolicy(network.eval(), task), tmp_path / "square.pt", "torchscript", ExportConfig(states=50, episodes=1)
    )
    assert any("allowed" in note for note in done.notes)
    assert load_teacher(tmp_path / "square.pt").task.action_masks
