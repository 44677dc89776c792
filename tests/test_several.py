"""Several teachers of one task: who drives, whose labels count, what choosers are paid, and that killed runs go on unchanged."""

from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.configurations import changed
from rldistill.lessons.contexts import Contexts, Joined, Pixels, StudentFeatures, Watched
from rldistill.lessons.payments import Blocks, Following, Held, OwnReturns, Payments, ReturnsThatFollow
from rldistill.lessons.selecting import make_chooser
from rldistill.lessons.selection import Choice, Chooser, Doubles
from rldistill.lessons.several import Selection, SeveralGuides, WhenChosen
from rldistill.lessons.streams import Driven, DrivingPlan
from rldistill.lessons.teaching import Panel, Teaching
from rldistill.lessons.trust import TrustMap
from rldistill.play.envs import Environments, make_task
from rldistill.play.replay import Replay
from rldistill.play.rollout import Transition
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Record
from rldistill.schedules import constant
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, build
from rldistill.types import Lesson, ScoreKind, Task, Teacher, UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.distill.selection import PanelSelector
from rldistill.verbs.distill.streams import columns_of
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.report.choices import choices_html, short_names

CARTPOLE = make_task("CartPole-v1")
QUICK = DistillConfig.of(
    student="mlp:8",
    steps=800,
    warmup=100,
    samples_per_step=4,
    batch_size=32,
    num_envs=4,
    evaluate_episodes=0,
    evaluate_every=0,
)


class Constant:
    """A teacher with the same scores everywhere, which counts what it is asked."""

    def __init__(self, scores: Sequence[float], kind: ScoreKind = "logits", task: Task = CARTPOLE) -> None:
        self.scores, self.score_kind, self.task = torch.tensor([list(scores)], dtype=torch.float32), kind, task
        self.asked = 0

    def __call__(self, observations: Tensor) -> Tensor:
        self.asked += len(observations)
        return self.scores.expand(len(observations), -1)


class Scripted:
    """A chooser that follows a list of arms, and keeps what it is paid."""

    def __init__(self, arms: Sequence[int], number: int = 2) -> None:
        self._script, self.arms = itertools.cycle(arms), number
        self.paid: list[tuple[int, float]] = []
        self.contexts: list[list[float]] = []

    @property
    def pulls(self) -> Any:
        return np.bincount([arm for arm, _ in self.paid], minlength=self.arms)

    estimates = np.zeros(2)

    def choose(self, rows: int, contexts: Doubles | None = None) -> Choice:
        return Choice(np.array([next(self._script) for _ in range(rows)]), np.ones(rows))

    def pay(self, choice: Choice, payments: Doubles, contexts: Doubles | None = None) -> None:
        self.paid += list(zip(choice.arms.tolist(), payments.tolist(), strict=True))
        self.contexts += [] if contexts is None else contexts.tolist()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Predicts(Scripted):
    """A chooser that predicts 10 for its first teacher and 20 for its second, everywhere."""

    def predict(self, contexts: Doubles) -> Doubles:
        return np.tile([10.0, 20.0], (len(contexts), 1))


def guides_of(
    teachers: Sequence[Teacher],
    chooser: Chooser,
    environments: Environments,
    *,
    when: WhenChosen | None = None,
    contexts: Contexts | None = None,
    temperature: str = "auto",
) -> SeveralGuides:
    held = Held.of(environments.num_envs)
    when = when or WhenChosen()
    payments: Payments = OwnReturns(chooser, held, when.steps)
    panel = Panel(tuple(teachers), tuple(map(str, range(len(teachers)))), environments.task)
    selection = Selection(chooser, held, payments, contexts, when)
    return SeveralGuides(panel, selection, temperature, np.random.default_rng(0))


def stream_of(guides: SeveralGuides, environments: Environments, share: float = 1.0) -> Driven:
    return Driven(
        Lesson.of(environments.task),
        environments,
        guides,
        lambda observations, masks=None: np.zeros(len(observations), dtype=np.int64),
        Replay(environments.task, environments.num_envs, 4000, guides.columns),
        DrivingPlan(constant(share), 0.0, 40, 16, 4.0),
        np.random.default_rng(0),
    )


def test_samples_have_the_labels_of_the_teacher_that_is_chosen_now() -> None:
    left, right = Constant([1.0, 0.0]), Constant([0.0, 3.0])
    environments = Environments(CARTPOLE, 4, 0)
    chooser = Scripted([0])
    guides = guides_of([left, right], chooser, environments, when=WhenChosen(1))
    stream = stream_of(guides, environments)
    stream.examples()
    for batch in next(stream).values():
        assert batch.values.tolist() == [[1.0, 0.0]] * len(batch.values)
    chooser._script = itertools.cycle([1])
    for _ in range(2):
        item = next(stream)
    for batch in item.values():  # states that the first teacher labelled when they were visited, too
        assert batch.values.tolist() == [[0.0, 3.0]] * len(batch.values)
    stream.close()


@pytest.mark.parametrize("context", [(), ("pixels",), ("features", "pole_angle", "x0 < 0", "pole_angle")])
def test_the_memory_of_a_replay_is_reckoned_with_all_that_is_kept(context: tuple[str, ...]) -> None:
    config = changed(QUICK, select="linucb", context=context)
    panel = Panel((Constant([1, 0]), Constant([0, 1])), ("a", "b"), CARTPOLE)
    teaching = Teaching(Lesson.of(CARTPOLE), panel.teachers[0], "a", parse_loss("kl", "logits"), panel)
    selector = PanelSelector(config)
    environments = Environments(CARTPOLE, 2, 0, watched=selector.watched(CARTPOLE))
    network = build(Architecture("mlp:8", CARTPOLE.observation_shape, 2), 0)
    guide = selector.guide(panel, network, environments, np.random.default_rng(0))
    assert columns_of(teaching, config) == guide.columns
    environments.close()


def test_a_teacher_labels_a_state_at_most_once_and_is_not_run_where_it_is_not_chosen() -> None:
    left, right = Constant([1.0, 0.0]), Constant([0.0, 3.0])
    environments = Environments(CARTPOLE, 4, 0)
    guides = guides_of([left, right], Scripted([0]), environments, when=WhenChosen(1))
    stream = stream_of(guides, environments)
    stream.examples()
    fitted = right.asked
    assert fitted <= stream.control_steps, "temperatures are fitted to states of the warm-up"
    for _ in range(50):
        next(stream)
    assert right.asked == fitted
    assert left.asked <= stream.control_steps + fitted
    assert guides.asked.tolist() == [guides.asked.sum(), 0]
    stream.close()


def test_the_chosen_teacher_drives_the_first_rows_and_the_student_the_others() -> None:
    environments = Environments(CARTPOLE, 4, 0)
    left, right = Constant([1.0, 0.0]), Constant([0.0, 3.0])
    guides = guides_of([left, right], Scripted([1]), environments)
    actions, stored = guides.drive(environments.observations, None, environments.starts, 2)
    assert actions[:2].tolist() == [1, 1]
    assert stored["labelled"].tolist() == [[False, True], [False, True], [False, False], [False, False]]
    assert left.asked == 0
    environments.close()


def test_the_mean_of_teachers_is_that_of_their_probabilities_each_at_its_own_temperature() -> None:
    # softmax(0, ln 3) = (1/4, 3/4); values (0, 2 ln 7) at temperature 2: (1/8, 7/8); their mean (3/16, 13/16).
    first, second = Constant([0.0, math.log(3)]), Constant([0.0, 2 * math.log(7)], "q_values")
    environments = Environments(CARTPOLE, 4, 0)
    chooser = make_chooser("mean", 2, np.random.default_rng(0), None)
    guides = guides_of([first, second], chooser, environments)
    stream = stream_of(guides, environments)
    stream.examples()
    guides.temperatures[:] = 1, 2
    for batch in next(stream).values():
        expected = torch.tensor([[3 / 16, 13 / 16]]).expand(len(batch.values), -1)
        torch.testing.assert_close(batch.values.softmax(dim=1), expected)
    stream.close()


def test_each_teacher_of_values_has_a_temperature_of_its_own_and_logits_have_1() -> None:
    environments = Environments(CARTPOLE, 4, 0)

    class Leaning(Constant):
        def __call__(self, observations: Tensor) -> Tensor:
            return observations[:, 2:4] * float(self.scores[0, 0])

    small, large = Leaning([1.0, 0], "q_values"), Leaning([100.0, 0], "q_values")
    guides = guides_of([small, large, Leaning([1.0, 0])], Scripted([0], 3), environments)
    stream = stream_of(guides, environments)
    stream.examples()
    one, hundred, logits = guides.temperatures.tolist()
    assert hundred == pytest.approx(100 * one, rel=0.02)
    assert logits == 1.0
    stream.close()


def test_an_oracle_labels_each_state_by_the_region_that_it_was_visited_in() -> None:
    left, right = Constant([1.0, 0.0]), Constant([0.0, 3.0])
    environments = Environments(CARTPOLE, 4, 0, watched=("pole_angle",))
    contexts = Watched(lambda: environments.watched, {"right": lambda numbers: (numbers[:, 0] > 0).astype(np.float64)})
    chooser = make_chooser("oracle", 2, np.random.default_rng(0), 1)
    guides = guides_of([left, right], chooser, environments, contexts=contexts, when=WhenChosen(1))
    stream = stream_of(guides, environments)
    stream.examples()
    labels = set()
    for _ in range(20):
        for batch in next(stream).values():
            inside = batch.observations[:, 2] > 0
            torch.testing.assert_close(batch.values[inside], right.scores.expand(int(inside.sum()), -1))
            torch.testing.assert_close(batch.values[~inside], left.scores.expand(int((~inside).sum()), -1))
            labels |= set(inside.tolist())
    assert labels == {True, False}
    stream.close()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_contexts_of_features_are_the_students_last_hidden_layer(bfloat16: bool) -> None:
    network = build(Architecture("mlp:8,5", CARTPOLE.observation_shape, 2), 0)
    network.bfloat16 = bfloat16
    observations = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    features = StudentFeatures(network).of(observations)
    assert features.shape == (6, 5)
    head = network.layers[-1]
    with torch.no_grad():
        torch.testing.assert_close(head(torch.from_numpy(features).float()), network(torch.from_numpy(observations)))


def test_features_beside_a_named_number_are_those_of_the_student_now_and_the_number_is_that_of_the_visit() -> None:
    network = build(Architecture("mlp:8,5", CARTPOLE.observation_shape, 2), 0)
    environments = Environments(CARTPOLE, 4, 0, watched=("pole_angle",))
    named = Watched(lambda: environments.watched, {"angle": lambda numbers: numbers[:, 0].astype(np.float64)})
    features, asked = StudentFeatures(network), []

    class Asked(Scripted):
        needs_policies = False

        def trust(self, rows: int, contexts: Doubles | None, policies: Doubles | None) -> Doubles:
            assert contexts is not None
            asked.append(contexts)
            return np.tile([1.0, 0.0], (rows, 1))

    contexts = Joined([features, named])
    guides = guides_of([Constant([1, 0]), Constant([0, 1])], Asked([0]), environments, contexts=contexts)
    stream = stream_of(guides, environments)
    stream.examples()
    with torch.no_grad():
        network.layers[1].weight.mul_(3.0)
    batch = next(iter(next(stream).values()))
    np.testing.assert_allclose(asked[-1][:, :5], features.of(batch.observations.numpy()), rtol=1e-6)
    np.testing.assert_allclose(asked[-1][:, 5], batch.observations[:, 2].numpy())
    stream.close()


def test_teachers_of_continuous_actions_are_not_mixed_where_they_count_the_same() -> None:
    """Before any payment a chooser trusts all alike. Labels are then those of one teacher, drawn for each state."""
    pendulum = make_task("Pendulum-v1")
    teachers = [Constant([value], "actions", pendulum) for value in (1.5, -0.5)]
    environments = Environments(pendulum, 4, 0)
    chooser = make_chooser("ridge", 2, np.random.default_rng(0), 3)
    guides = guides_of(teachers, chooser, environments, contexts=Pixels(pendulum))
    batch = guides.label(torch.zeros(64, 3), None)
    assert set(batch.flatten().tolist()) == {1.5, -0.5}
    assert guides.asked.sum() == 64
    environments.close()


def test_contexts_of_pixels_are_the_newest_frame_in_144_cells_and_small_grids_as_they_are() -> None:
    pong = make_task("PongNoFrameskip-v4")
    frames = np.zeros((2, 4, 84, 84), dtype=np.uint8)
    frames[:, :3] = 255  # older frames do not count
    frames[1, 3, :7, :7] = 100
    cells = Pixels(pong).of(frames)
    assert cells.shape == (2, 144)
    assert cells[0].tolist() == [0.0] * 144
    assert cells[1].tolist() == [100.0] + [0.0] * 143
    grid = make_task("MinAtar/Breakout-v1")
    ones = np.ones((1, *grid.observation_shape), dtype=np.uint8)
    assert Pixels(grid).of(ones).tolist() == [[1.0] * ones.size]
    both = Joined([Pixels(grid), Pixels(grid)])
    assert both.size == 2 * ones.size
    assert both.of(ones).shape == (1, both.size)


def transition(
    rewards: Sequence[float], ended: Sequence[bool] | None = None, returns: Sequence[float] | None = None
) -> Transition:
    """What `Payments.followed` reads of a control step of some rows."""
    number = len(rewards)
    nothing = np.zeros(number, dtype=np.bool_)
    return Transition(
        np.zeros((number, 4), dtype=np.float32),
        nothing,
        np.zeros(number, dtype=np.int64),
        np.array(rewards, dtype=np.float32),
        nothing if ended is None else np.array(ended),
        nothing,
        nothing,
        np.zeros((number, 4), dtype=np.float32),
        np.full(number, np.nan, dtype=np.float32) if returns is None else np.array(returns, dtype=np.float32),
    )


def played(payments: Payments, held: Held, steps: Sequence[Transition], driven: int, contexts: Any = None) -> None:
    """Plays control steps by hand; games that end are followed by a new choice of the same arm."""
    for place, step in enumerate(steps):
        payments.acted(None if contexts is None else contexts[place])
        payments.followed(step, driven)
        held.ages[...] += 1
        held.ages[step.terminated] = 0


def held_of(arms: Sequence[int]) -> Held:
    held = Held.of(len(arms))
    held.arms[:], held.ages[:] = arms, 0
    return held


def test_a_teacher_is_paid_the_return_of_the_games_that_it_drove_alone() -> None:
    chooser, held = Scripted([0]), held_of([0, 1, 1])
    payments = OwnReturns(chooser, held, 0)
    steps = [
        transition([1, 2, 4]),
        transition([1, 2, 4], [True, False, True]),
        transition([5, 2, 4], [False, True, True]),
    ]
    played(payments, held, steps, driven=2)
    assert chooser.paid == [(0, 2.0), (1, 6.0)], "the third row is the student's"


def test_a_teacher_that_is_chosen_for_n_steps_is_paid_their_mean_reward_and_a_game_that_ends_counts_0_after_it() -> (
    None
):
    chooser, held = Scripted([0]), held_of([0, 1])
    payments = OwnReturns(chooser, held, 4)
    payments.acted(None)
    for step in range(4):
        payments.followed(transition([1, 8], [False, step == 0]), 2)
        assert payments.over.tolist() == [step == 3, step == 3], "the second row's game ended, and it chose again"
        held.ages[...] += 1
        if step == 0:
            held.ages[1] = 0
            assert chooser.paid == [(1, 2.0)]
            held.ages[1] = 1
    assert chooser.paid[:2] == [(1, 2.0), (0, 1.0)]


def naive_returns(
    rewards: Sequence[float], ended: Sequence[bool], steps: int, discount: float, value: float
) -> list[float]:
    """Of each time, the discounted rewards of the next n steps and the value of what is reached, an independent loop."""
    returns = []
    for start in range(len(rewards)):
        total, weight, over = 0.0, 1.0, False
        for place in range(start, min(start + steps, len(rewards))):
            total, weight = total + weight * rewards[place], weight * discount
            if ended[place]:
                over = True
                break
        if not over and start + steps >= len(rewards):
            continue  # not paid yet
        returns.append(total + (0.0 if over else weight * value))
    return returns


@pytest.mark.parametrize(("hold", "value"), [(1, 20.0), (0, 10.0)], ids=["the largest", "that of the held teacher"])
def test_states_are_paid_the_discounted_rewards_of_n_steps_and_the_prediction_for_what_follows(
    hold: int, value: float
) -> None:
    generator = np.random.default_rng(0)
    rewards, ended = generator.normal(size=60), generator.random(60) < 0.1
    chooser, held = Predicts([0]), held_of([0])
    payments = ReturnsThatFollow(chooser, held, 1, Following(5, 0.9, hold, every=1))
    contexts = np.arange(60.0).reshape(60, 1, 1)
    played(payments, held, [transition([r], [e]) for r, e in zip(rewards, ended, strict=True)], 1, contexts)
    paid = dict(zip([int(context[0]) for context in chooser.contexts], [paid for _, paid in chooser.paid], strict=True))
    expected = naive_returns(rewards.astype(np.float32).tolist(), ended.tolist(), 5, 0.9, value)
    assert sorted(paid) == list(range(len(paid)))
    assert [paid[time] for time in sorted(paid)][: len(expected)] == pytest.approx(expected[: len(paid)], rel=1e-6)
    assert len(paid) >= 54


def block(payment: Any, rows: int = 2, steps: int = 4) -> tuple[Blocks, Scripted]:
    chooser = Scripted([0])
    return Blocks(chooser, held_of([1] * rows), steps, payment), chooser


@pytest.mark.parametrize(("hold", "value"), [(1, 20.0), (0, 10.0)], ids=["the largest", "that of the held teacher"])
def test_a_game_that_is_cut_is_paid_as_if_it_went_on(hold: int, value: float) -> None:
    """It is truncated after 3 control steps: the prediction for the third state stands for what follows it."""
    chooser, held = Predicts([0]), held_of([0, 0])
    payments = ReturnsThatFollow(chooser, held, 1, Following(5, 0.5, hold, every=1))
    steps = [transition([1.0, 1.0]) for _ in range(3)]
    steps[2] = steps[2]._replace(truncated=np.array([True, True]), terminated=np.array([False, True]))
    played(payments, held, steps, 2, np.arange(3.0).reshape(3, 1, 1).repeat(2, axis=1))
    cut, over = [1 + 0.5 * (1 + 0.5 * value), 1 + 0.5 * value], [1.75, 1.5, 1.0]
    assert [paid for _, paid in chooser.paid] == [*cut, *over]
    assert chooser.contexts == [[0.0], [1.0], [0.0], [1.0], [2.0]]


@pytest.mark.parametrize("spec", ["ridge", "linucb", "network", "maps"])
def test_payments_do_not_grow_without_end_where_contexts_come_to_vary(spec: str) -> None:
    """Each control step is rewarded with 1 at a discount of 0.9, so no state is worth more than 10."""
    generator = np.random.default_rng(0)
    chooser, held = make_chooser(spec, 2, generator, 6), Held.of(4)
    payments = ReturnsThatFollow(chooser, held, 6, Following(5, 0.9, 1, every=1))
    for step in range(150):
        contexts = generator.normal(size=(4, 6)) * (1e-4 if step < 20 else 1.0)
        held.arms[:], held.probabilities[:] = chooser.choose(4, contexts)
        payments.acted(contexts)
        payments.followed(transition([1.0] * 4), 4)
    assert (chooser.estimates >= 1.0).all()
    assert (chooser.estimates <= 12.0).all()


def test_a_game_that_is_cut_at_once_is_not_paid_and_later_ones_are() -> None:
    chooser, held = Predicts([0]), held_of([0])
    payments = ReturnsThatFollow(chooser, held, 1, Following(3, 0.5, 1, every=1))
    steps = [transition([1.0])._replace(truncated=np.array([True])), transition([3.0], [True])]
    played(payments, held, steps, 1, np.arange(2.0).reshape(2, 1, 1))
    assert chooser.paid == [(0, 3.0)]


def test_a_block_pays_the_mean_reward_of_the_steps_that_the_teacher_drove() -> None:
    payments, chooser = block("teacher")
    played(payments, payments.held, [transition([1, 50]), transition([2, 50])], driven=1)
    assert chooser.paid == [(1, 1.5)]
    assert payments.over.all()


def test_a_block_pays_the_students_games_and_waits_for_one_to_end() -> None:
    payments, chooser = block("student")
    played(payments, payments.held, [transition([0, 0])] * 4, driven=1)
    assert chooser.paid == []
    ended = transition([0, 0], [True, True], [7.0, 3.0])
    played(payments, payments.held, [ended], driven=1)
    assert chooser.paid == [(1, 3.0)], "the first row was the teacher's"


def test_progress_is_the_change_of_the_students_return_and_the_first_block_has_none() -> None:
    payments, chooser = block("progress")
    for score in (3.0, 5.0, 4.0):
        steps = [transition([0, 0]), transition([0, 0], [False, True], [math.nan, score])]
        played(payments, payments.held, steps, driven=1)
    assert [paid for _, paid in chooser.paid] == [2.0, -1.0]


def test_the_fall_of_the_loss_is_that_from_the_first_half_of_the_updates_to_the_second() -> None:
    payments, chooser = block("loss")
    payments.acted(None)
    for loss in (4.0, 2.0, 1.0, 1.0):
        payments.learnt(loss)
    for _ in range(2):
        payments.followed(transition([0, 0]), 1)
    assert chooser.paid == [(1, 2.0)]


def balancing(scale: float = 1.0) -> SavedPolicy:
    """A CartPole teacher made by hand: it pushes to the side to which the pole leans and turns; below a scale of 0 to the other."""
    network = build(Architecture("mlp:2", CARTPOLE.observation_shape, CARTPOLE.num_actions), 0)
    side = torch.tensor([0.0, 0.0, 1.0, 0.5]) * scale
    with torch.no_grad():
        network.layers[1].weight.copy_(torch.stack([-side, side]))
        network.layers[1].bias.zero_()
        network.layers[3].weight.copy_(torch.eye(2))
        network.layers[3].bias.zero_()
    return SavedPolicy(network.eval().requires_grad_(False), CARTPOLE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    for name, scale in (("good", 1.0), ("bad", -1.0)):
        save_policy(root / name, balancing(scale).network, CARTPOLE, {"made_by": "hand"})
    return root


def records_of(run: Path) -> list[Record]:
    return RunFolder(run).records()[0]


def pair(root: Path) -> list[str]:
    return [str(root / "bad"), str(root / "good")]


def test_a_bandit_learns_from_the_better_teacher_and_its_student_balances(tmp_path: Path, root: Path) -> None:
    config = changed(QUICK, select="ucb1", steps=4000, samples_per_step=8, evaluate_episodes=10)
    student = distill(pair(root), tmp_path / "run", config)
    assert isinstance(student, SavedPolicy)
    assert student.provenance["score"]["mean"] > 300, "the bad teacher falls after 10 control steps"
    metrics = records_of(tmp_path / "run")
    last = [record for record in metrics if record.event == "choices"][-1].as_json()
    assert last["payments"][1] > 10 * last["payments"][0]
    assert last["samples"][1] > 5 * last["samples"][0]
    named = [record.as_json() for record in metrics if record.event == "teacher"]
    assert [record["teacher"] for record in named] == pair(root)
    assert named[1]["mean"] > 20 * named[0]["mean"]
    assert student.provenance["teacher"] == pair(root)


def test_a_page_shows_what_each_teacher_counted_and_compares_with_the_best(tmp_path: Path, root: Path) -> None:
    config = changed(QUICK, select="ridge", context=("pole_angle",), evaluate_episodes=4, payment_steps=20)
    distill(pair(root), tmp_path / "run", config)
    text = report(tmp_path / "run", config=ReportConfig(episodes=2, seconds=0)).read_text()
    assert "share of labels" in text
    assert "pole_angle" in text
    assert f"It is compared with {root / 'good'}" in text


CHOICES = {"event": "choices", "control_steps": 8, "pulls": [1.0, 2.0], "payments": [0.5, None], "samples": [3.0, 1.0]}
ALONG = {"event": "trust", "name": "x0", "places": [0.0, 1.0], "shares": [1.0, 0.0, 0.5, 0.5]}
PICTURE = {"event": "trust", "name": "picture", "places": [1.0, 1.0, 2.0], "shares": [1.0, 2.0, None, None]}


@pytest.mark.parametrize("whole", [CHOICES, ALONG, PICTURE], ids=["choices", "along", "picture"])
@pytest.mark.parametrize("damage", [None, [], [1.0], [math.inf], [-1.0] * 3, [1.0] * 5])
def test_damaged_lines_of_choices_are_left_out_of_a_page(whole: dict[str, Any], damage: Any) -> None:
    lines = [CHOICES, ALONG, PICTURE]
    rest = choices_html([line for line in lines if line is not whole], axis="control steps")
    for name in ("control_steps", "pulls", "payments", "samples", "places", "shares"):
        if name in whole and (damage is None or name != "control_steps"):
            line = {key: value for key, value in whole.items() if key != name}
            damaged = line if damage is None else line | {name: damage}
            page = choices_html([damaged if one is whole else one for one in lines], axis="control steps")
            assert page.count("<svg") == rest.count("<svg")


def test_trust_along_a_number_is_the_mean_weight_of_the_states_there() -> None:
    trusted = TrustMap(["angle"], 2)
    assert trusted.shares() == []
    angles = np.repeat([-1.0, 1.0], 50)
    weights = np.stack([angles < 0, angles > 0], axis=1).astype(np.float64)
    weights[0] = [0.5, 0.5]
    trusted.add(angles[:, None], weights)
    (along,) = trusted.shares()
    assert along.name == "angle"
    assert along.places == [-1.0, 1.0]
    assert along.shares == [pytest.approx([0.99, 0.01]), [0.0, 1.0]]
    assert trusted.pictures().ravel() == pytest.approx([(0.5 * -1 + 49 * -1) / 49.5, (0.5 * -1 + 50) / 50.5])


def test_a_map_of_trust_forgets_all_but_the_last_samples() -> None:
    trusted = TrustMap(["angle"], 2)
    for angle, arm in ((-1.0, 0), (1.0, 1)):
        for _ in range(10):
            trusted.add(np.full((256, 1), angle), np.tile(np.eye(2)[arm], (256, 1)))
    (along,) = trusted.shares()
    assert (along.places, along.shares) == ([1.0], [[0.0, 1.0]])


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/b/c", "a/b/d"], ["c", "d"]),
        (["a/b/c", "noisy:1s:a/b/c", "noisy:2s:a/b/c"], ["c", "noisy:1s:c", "noisy:2s:c"]),
        (["a/one/policy", "a/two/policy"], ["one/policy", "two/policy"]),
        (["x", "x"], ["x", "x"]),
    ],
)
def test_teachers_are_called_by_the_last_parts_of_their_paths_that_differ(sources: list[str], names: list[str]) -> None:
    assert short_names(sources) == names


SELECTIONS: list[dict[str, Any]] = [
    dict(select="uniform"),
    dict(select="mean"),
    dict(select="agreement"),
    dict(select="ucb1", payment="student"),
    dict(select="exp3", payment="progress", select_every="block:80"),
    dict(select="thompson", payment="loss", driver="teacher"),
    dict(select="sliding-ucb", select_every="20"),
    dict(select="linucb"),
    dict(select="ridge", context=("pole_angle", "pole_angle < 0"), payment_steps=20),
    dict(select="mamba", context=("pixels",), payment_steps=20),
    dict(select="iwc", context=("features", "x0"), payment_steps=20),
    dict(select="oracle", context=("pole_angle > 0",)),
    dict(select="best-first:games=2", driver="teacher"),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SELECTIONS, ids=lambda settings: settings["select"])
def test_a_run_goes_on_from_any_checkpoint_with_the_same_result(
    tmp_path: Path, root: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rldistill.verbs.distill.work import Distillation

    config = changed(QUICK, **settings, checkpoint_seconds=0.0)
    whole = distill(pair(root), tmp_path / "whole", config)
    items, advance = itertools.count(), Distillation.advance

    def interrupted(work: Distillation) -> Any:
        if next(items) == 40:
            raise KeyboardInterrupt
        return advance(work)

    monkeypatch.setattr(Distillation, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(pair(root), tmp_path / "killed", config)
    monkeypatch.setattr(Distillation, "advance", advance)
    resumed = distill(pair(root), tmp_path / "killed", config, resume=True)
    assert isinstance(whole, SavedPolicy)
    assert isinstance(resumed, SavedPolicy)
    assert resumed.sha256 == whole.sha256
    lines = [records_of(tmp_path / name)[-1].as_json() for name in ("whole", "killed")]
    for line in lines:
        line.pop("seconds", None)
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_run_killed_at_random_ends_with_the_same_weights(tmp_path: Path, root: Path) -> None:
    flags = [
        "--select",
        "ridge",
        "--student",
        "mlp:8",
        "--steps",
        "3000",
        "--samples-per-step",
        "4",
        "--checkpoint-seconds",
    ]
    flags += ["0.05", "--evaluate-episodes", "0", "--seed", "3"]
    command = [sys.executable, "-m", "rldistill", "distill", "--teacher", *pair(root), *flags, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    generator = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed"), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (tmp_path / "killed" / "checkpoint").exists():
            time.sleep(0.02)
        time.sleep(generator.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed"), "--resume"], check=True, capture_output=True)
    assert load_policy(tmp_path / "killed").sha256 == load_policy(tmp_path / "whole").sha256


def test_each_of_several_tasks_has_a_chooser_of_its_own(tmp_path: Path, root: Path) -> None:
    acrobot = make_task("Acrobot-v1")
    network = build(Architecture("mlp:4", acrobot.observation_shape, acrobot.num_actions), 0)
    save_policy(root / "acrobot", network, acrobot, {"made_by": "hand"})
    config = changed(QUICK, select="ucb1", student="mlp:8+4", steps=400)
    student = distill([*pair(root), str(root / "acrobot")], tmp_path / "run", config)
    assert student.provenance["teacher"] == [pair(root), str(root / "acrobot")]
    lessons = {record.lesson for record in records_of(tmp_path / "run") if record.event == "choices"}
    assert lessons == {"CartPole-v1"}
    config = RunFolder(tmp_path / "run").config()
    assert [task["env"] for task in config["task"]] == ["CartPole-v1", "Acrobot-v1"]


WRONG: list[tuple[dict[str, Any], str]] = [
    (dict(select="ucb2"), "unknown chooser 'ucb2'"),
    (dict(select="ucb1:d=1"), "no option 'd'"),
    (dict(select="ucb1", context=("features",)), "--context is for choosers that go state by state"),
    (dict(select="ucb1", select_every="often"), "--select-every is control-step"),
    (dict(select="ucb1", select_every="0"), "--select-every is control-step"),
    (dict(select="ucb1", payment="student", select_every="episode"), "--select-every block"),
    (dict(select="ucb1", payment="gold"), "--payment is one of"),
    (dict(select="ucb1", driver="student", payment="teacher"), "--driver student leaves no row"),
    (dict(select="ucb1", driver="teacher", payment="student"), "--driver teacher leaves no games"),
    (dict(select="ucb1", teacher_share=0.0), "leaves no row to a teacher"),
    (dict(select="ridge", num_envs=1), "leaves no row to a teacher"),
    (dict(select="ucb1", payment="progress", teacher_share=1.0), "leaves no row to the student"),
    (dict(select="ridge", payment="loss"), "state by state"),
    (dict(select="ridge", select_every="block"), "state by state"),
    (dict(select="ridge", context=("ball_y",)), "no 'ball_y' to watch"),
    (dict(select="ridge", context=("pole_angle <",)), "is no expression"),
    (dict(select="ridge", context=("pole_angle",), augment=0.5), "--augment 0.5"),
    (dict(select="oracle", context=("x0", "x1")), "one column"),
    (dict(select="ucb1", loss="mse"), "--loss mse"),
    (dict(select="ucb1", targets="advantage"), "--targets advantage"),
    (dict(select="ucb1", payment_discount=1.5), "--payment-discount"),
    (dict(select="ucb1", payment_steps=0), "--payment-steps"),
    (dict(select="ridge", payment_steps=2_000_000_000), "--payment-steps"),
    (dict(select="ucb1", payment_steps=20), "--payment-steps is for choosers that go state by state"),
    (dict(select="mean", payment_discount=0.9), "--payment-discount is for choosers that go state by state"),
    (dict(payment_discount=0.9), "add --select"),
    (dict(payment="student"), "add --select"),
    (dict(select_every="episode"), "add --select"),
    (dict(context=("features",)), "add --select"),
    ({}, "both teach CartPole-v1"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_selection_is_refused_before_anything_is_made(
    tmp_path: Path, root: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        distill(pair(root), tmp_path / "run", changed(QUICK, **changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_one_teacher_leaves_nothing_to_choose(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--select chooses among several"):
        distill(str(root / "good"), tmp_path / "run", changed(QUICK, select="ucb1"))


def test_teachers_of_one_task_with_other_actions_or_options_are_refused(tmp_path: Path, root: Path) -> None:
    longer = make_task("CartPole-v1", max_episode_steps=100)
    save_policy(root / "longer", balancing().network, longer, {"made_by": "hand"})
    with pytest.raises(UserError, match="with other options"):
        distill([str(root / "good"), str(root / "longer")], tmp_path / "run", changed(QUICK, select="ucb1"))
