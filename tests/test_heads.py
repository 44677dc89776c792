"""Networks of several heads: what they share, what they do not, and what one head is by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rldistill.play.envs import make_task
from rldistill.policies import MultiTaskPolicy, card_checksum, load_heads, load_policy, save_policy
from rldistill.students.fitting import GradientFitting
from rldistill.students.heads import Head, MultiTaskNetwork, build_heads
from rldistill.students.losses import parse_loss
from rldistill.students.networks import Architecture, build, fit_initialization, parameter_count
from rldistill.students.objectives import Match, Matching
from rldistill.students.optim import Optimization
from rldistill.types import Lesson, UserError, labelled

FRAMES = (4, 84, 84)
GRIDS = {
    "MinAtar/Breakout-v1": Head((4, 10, 10), 3, "q_values"),
    "MinAtar/SpaceInvaders-v1": Head((6, 10, 10), 4, "logits"),
    "MinAtar/Seaquest-v1": Head((10, 10, 10), 6, "logits"),
}
TASKS = {name: make_task(name) for name in GRIDS}


def frames(**actions: int) -> dict[str, Head]:
    return {name: Head(FRAMES, number, "logits") for name, number in actions.items()}


def grids() -> MultiTaskNetwork:
    return build_heads("cnn:8:16+5", GRIDS, 3)


def observations(head: Head, number: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 2, (number, *head.observation_shape), generator=generator).float()


@pytest.mark.parametrize(
    ("name", "widths", "parameters"),
    [("multi3", (3, 3, 6), 1_882_668), ("multi10", (18, 6, 4, 9, 9, 3, 6, 6, 18, 6), 6_756_721)],
)
def test_students_of_several_games_have_the_papers_parameters(
    name: str, widths: tuple[int, ...], parameters: int
) -> None:
    """Rusu et al. 2015, arXiv 1511.06295, table A2."""
    network = build_heads(name, frames(**{f"game{n}": width for n, width in enumerate(widths)}), 0)
    assert parameter_count(network) == parameters


def test_heads_share_the_torso_and_nothing_else() -> None:
    network = build_heads("mlp:6,5+3", {"a": Head((4,), 2, "logits"), "b": Head((4,), 3, "logits")}, 0)
    before = [tensor.clone() for tensor in network.view("b").parameters()]
    network.view("a")(torch.ones(1, 4)).sum().backward()
    with torch.no_grad():
        for parameter in network.view("a").parameters():
            parameter.add_(1.0)
    changed = [not torch.equal(old, new) for old, new in zip(before, network.view("b").parameters(), strict=True)]
    assert changed == [True] * 4 + [False] * 4
    assert all(parameter.grad is None for parameter in list(network.view("b").parameters())[4:])


def test_a_head_of_several_is_that_network_alone() -> None:
    """A torso of mlp:6 with a head of 5 units is an mlp:6,5."""
    network = build_heads("mlp:6+5", {"a": Head((4,), 2, "logits"), "b": Head((4,), 3, "logits")}, 0)
    alone = build(Architecture("mlp:6,5", (4,), 3), 0)
    alone.load_state_dict(network.view("b").state_dict())
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone(x), network.view("b")(x))


@pytest.mark.parametrize("name", ["cnn:8:16+5", "mlp:16+5"])
@pytest.mark.parametrize("task", list(GRIDS))
def test_a_head_that_was_split_off_gives_the_same_scores(task: str, name: str) -> None:
    network = build_heads(name, GRIDS, 3)
    network.view(task).standardize(torch.tensor([0.3]), torch.tensor([2.0]))
    alone = network.split(task)
    x = observations(GRIDS[task])
    torch.testing.assert_close(alone(x), network.view(task)(x))
    assert alone.architecture.observation_shape == GRIDS[task].observation_shape
    channels = GRIDS[task].observation_shape[0]
    expected = channels * 100 if name.startswith("mlp") else channels
    assert next(alone.parameters()).shape[1] == expected, "no weights for what it never sees"


def test_padding_does_not_depend_on_the_standardization() -> None:
    """Zeros stand behind the standardized channels, so the weights of the others have no influence."""
    network = grids()
    view = network.view("MinAtar/Breakout-v1")
    view.standardize(torch.tensor([0.3]), torch.tensor([2.0]))
    x = observations(GRIDS["MinAtar/Breakout-v1"])
    before = view(x)
    with torch.no_grad():
        next(network.torso.parameters())[:, 4:] = 100.0
    assert torch.equal(view(x), before)


def test_several_heads_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    network = grids()
    network.view("MinAtar/Seaquest-v1").standardize(torch.tensor([0.1]), torch.tensor([3.0]))
    save_policy(tmp_path / "p", network, TASKS, {"scores": {"MinAtar/Seaquest-v1": {"mean": 3.0}}})
    policy = load_heads(tmp_path / "p")
    assert isinstance(policy, MultiTaskPolicy)
    assert dict(policy.tasks) == TASKS
    assert policy.heads == GRIDS
    assert policy.sha256 == MultiTaskPolicy(network, TASKS).sha256
    for task, head in GRIDS.items():
        x = observations(head)
        with torch.no_grad():
            assert torch.equal(policy.network.view(task)(x), network.view(task)(x))
        view = policy.view(task)
        assert (view.task, view.score_kind) == (TASKS[task], head.score_kind)
        torch.testing.assert_close(view(x), network.view(task)(x).detach())
    assert policy.view("MinAtar/Seaquest-v1").provenance["score"] == {"mean": 3.0}
    assert "score" not in policy.view("MinAtar/Breakout-v1").provenance


def test_one_of_several_heads_is_loaded_by_its_task_alone(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", grids(), TASKS, {})
    assert load_policy(tmp_path / "p", "MinAtar/Seaquest-v1").task.env == "MinAtar/Seaquest-v1"
    for task, words in ((None, "plays 3 tasks"), ("MinAtar/Freeway-v1", "no head for 'MinAtar/Freeway-v1'")):
        with pytest.raises(UserError, match=words) as refusal:
            load_policy(tmp_path / "p", task)
        assert all(name in str(refusal.value) for name in TASKS)
    save_policy(tmp_path / "one", build(Architecture("cnn:4:4", (4, 10, 10), 3), 0), TASKS["MinAtar/Breakout-v1"], {})
    with pytest.raises(UserError, match="it plays MinAtar/Breakout-v1"):
        load_policy(tmp_path / "one", "MinAtar/Freeway-v1")


def test_two_heads_of_one_name_are_refused(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", grids(), TASKS, {})
    card = json.loads((tmp_path / "p" / "policy.json").read_text())
    card["heads"][1] = card["heads"][0]
    (tmp_path / "p" / "policy.json").write_text(json.dumps(card | {"card_sha256": card_checksum(card)}))
    with pytest.raises(UserError, match="two of one name"):
        load_heads(tmp_path / "p")


@pytest.mark.parametrize(
    ("other", "words"), [(Head((4,), 2, "logits"), "not both"), (Head((4, 84, 84), 2, "logits"), "of one size")]
)
def test_observations_that_no_torso_reads_together_are_refused(other: Head, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_heads("cnn:8:16", {"grid": GRIDS["MinAtar/Breakout-v1"], "other": other}, 0)


def test_initial_units_have_mean_0_and_variance_1_over_the_observations_of_all_tasks() -> None:
    network = build_heads("mlp:6+5", {"a": Head((4,), 2, "logits"), "b": Head((3,), 3, "logits")}, 0)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 4, generator=generator) * 3 + 1, torch.randn(300, 3, generator=generator)
    fit_initialization([network.view("a"), network.view("b")], [a, b], 1)
    with torch.no_grad():
        first = network.torso[1]
        units = first(torch.cat([a, torch.nn.functional.pad(b, (0, 1))]))
        head = network.view("b").layers[3](network.torso(torch.nn.functional.pad(b, (0, 1))))
    torch.testing.assert_close(units.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(units.std(dim=0), torch.ones(6))
    torch.testing.assert_close(head.std(dim=0), torch.ones(5))


def test_lessons_that_share_a_head_have_one_standardization_of_both() -> None:
    """0 to 9 and 10 to 19: mean 9.5, whatever the order."""
    task = make_task("CartPole-v1")
    lessons = [Lesson("a", task, "head"), Lesson("b", task, "head")]
    network = build(Architecture("mlp:3", (4,), 2), 0, "logits")
    objectives = {lesson: Match(parse_loss("kl"), task, "q_values", Matching()) for lesson in lessons}
    fitting = GradientFitting(network, objectives, Optimization(), 10, 0)
    numbers = torch.arange(20.0)[:, None].expand(20, 4)
    fitting.fit(
        {
            lesson: labelled(part, torch.randn(10, 2, generator=torch.Generator().manual_seed(0)))
            for lesson, part in zip(lessons, numbers.split(10), strict=True)
        }
    )
    torch.testing.assert_close(network.shift, torch.full((4,), 9.5))


def test_card_says_how_many_channels_of_a_task_are_padded(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", grids(), TASKS, {})
    heads = json.loads((tmp_path / "p" / "policy.json").read_text())["heads"]
    assert [head.get("padding") for head in heads] == [6, 4, None]
