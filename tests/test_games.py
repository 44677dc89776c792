"""Games for scores: which of them are distinct, how long one may last, and that a policy is safe before they are played."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces

from rldistill.configurations import changed
from rldistill.play.envs import LONGEST_GAME, Environments, make_task
from rldistill.play.games import play, play_scored
from rldistill.play.rollout import uniform
from rldistill.policies import SavedPolicy, load_policy, save_policy
from rldistill.progress import Silent, Talking
from rldistill.runs.folder import RunFolder, read_metrics
from rldistill.runs.loop import Pace
from rldistill.runs.scores import Score, read_scores, remarks, score_table
from rldistill.stats import summarize
from rldistill.students.networks import Architecture, build
from rldistill.types import Actions, Observations, Policy, Task, UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.inspect import InspectConfig, inspect
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.train import TrainConfig, train

Observation = npt.NDArray[np.float32]


class Corridor(gymnasium.Env[Observation, np.int64]):
    """As many steps as its start says, one point each; whatever is done, nothing changes. The start is one of `starts`."""

    observation_space = spaces.Box(0, 100, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, starts: int = 3, hidden: bool = False, endless: bool = False) -> None:
        self.starts, self.hidden, self.endless = starts, hidden, endless

    def _observe(self) -> Observation:
        return np.array([self.start, 0 if self.endless else self.age], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.start, self.age = int(self.np_random.integers(self.starts)), 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.age += 1
        length = 4 if self.hidden else self.start + 1
        return self._observe(), 1.0, not self.endless and self.age == length, False, {}


class Port(Corridor):
    """As a robot or a port: there is never a second one at a time."""

    taken = False

    def __init__(self) -> None:
        super().__init__()
        if Port.taken:
            raise OSError(98, "Address already in use")
        Port.taken = True

    def close(self) -> None:
        Port.taken = False


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    made = {
        "Corridor-v0": lambda **options: Corridor(**options),
        "Alone-v0": lambda: Corridor(starts=1),
        "Fixed-v0": lambda: Corridor(starts=10**6, hidden=True),
        "Endless-v0": lambda: Corridor(endless=True),
        "Port-v0": Port,
    }
    for name, constructor in made.items():
        gymnasium.register(name, constructor)
    yield
    for name in made:
        del gymnasium.registry[name]


def always(action: int) -> Any:
    def make(generator: np.random.Generator) -> Policy:
        def act(observations: Observations) -> Actions:
            return np.full(len(observations), action, dtype=np.int64)

        return act

    return make


def policy_of(env: str, path: Path | None = None) -> SavedPolicy:
    task = make_task(env)
    network = build(Architecture("mlp:2", task.observation_shape, task.num_actions), 0)
    if path is None:
        return SavedPolicy(network.eval().requires_grad_(False), task)
    save_policy(path, network, task, {})
    return load_policy(path)


# Distinct games


def test_games_from_three_starts_are_three() -> None:
    games = play(make_task("Corridor-v0"), always(0), 30, 0)
    assert set(games.returns) == {1.0, 2.0, 3.0}
    assert games.distinct == 3
    for one, first in zip(games.returns, games.fingerprints, strict=True):
        assert {other for other, game in zip(games.returns, games.fingerprints, strict=True) if game == first} == {one}


def test_the_same_score_by_other_actions_is_another_game() -> None:
    """One start and one step: a game is one of two actions, and all of them score the same."""
    games = play(make_task("Alone-v0"), lambda generator: uniform(make_task("Alone-v0"), generator), 30, 0)
    assert set(games.returns) == {1.0}
    assert games.distinct == 2


@pytest.mark.slow
def test_games_of_a_stack_of_frames_are_those_whose_observations_differ() -> None:
    task = make_task("PongNoFrameskip-v4", max_frames=40, noop_max=3)
    observed: list[Observations] = []
    games = play(task, always(0), 8, 0, num_envs=8, on_step=lambda step: observed.append(step.observations))
    # All games last until the limit of frames, so that a row's first steps are its first game's.
    sequences = {b"".join(step[row].tobytes() for step in observed[:9]) for row in range(8)}
    assert 1 < games.distinct == len(sequences) <= 4, "0, 1, 2 or 3 no-ops"


def test_an_interval_resamples_distinct_games_by_their_weight() -> None:
    returns, games = [10.0, 10.0, 10.0, 20.0, 30.0], ["a", "a", "a", "b", "c"]
    summary = summarize(returns, seed=0, games=games)
    assert summary.mean == 16
    generator = np.random.default_rng(5)
    values, weights = np.array([10.0, 20.0, 30.0]), np.array([3, 1, 1])
    means = [np.average(values[drawn], weights=weights[drawn]) for drawn in generator.integers(3, size=(20_000, 3))]
    low, high = np.quantile(means, [0.025, 0.975])
    assert (summary.ci_low, summary.ci_high) == pytest.approx((low, high), abs=0.3)
    as_if_independent = summarize(returns, seed=0)
    assert summary.ci_high - summary.ci_low > as_if_independent.ci_high - as_if_independent.ci_low


def test_distinct_games_of_one_score_have_an_interval_and_one_game_has_none() -> None:
    fixed, alone = evaluate([policy_of("Fixed-v0")]), evaluate([policy_of("Alone-v0")], EvaluateConfig(epsilon=0.0))
    assert (fixed[0].mean, fixed[0].ci_low, fixed[0].ci_high, fixed[0].distinct) == (4, 4, 4, 30)
    assert (alone[0].mean, alone[0].distinct) == (1, 1)
    assert np.isnan([alone[0].ci_low, alone[0].ci_high]).all()
    assert score_table(alone)[0]["mean [95 % CI]"] == "1.0"
    assert any("no interval" in line for line in remarks(alone))


def test_table_and_file_have_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    scores = evaluate([policy_of("Corridor-v0")], EvaluateConfig(epsilon=0.0), json=path)
    assert score_table(scores)[0]["games"] == "30 (3 distinct)"
    data = json.loads(path.read_text())
    assert (data[0]["episodes"], data[0]["distinct"]) == (30, 3)
    assert read_scores(path) == scores
    alone = evaluate([policy_of("Alone-v0")], EvaluateConfig(epsilon=0.0), json=path)
    assert json.loads(path.read_text())[0]["ci_low"] is None
    assert np.isnan(read_scores(path)[0].ci_low)
    del data[0]["distinct"]  # as files of before have it
    assert Score.from_dict(data[0]).distinct is None
    assert score_table([Score.from_dict(data[0])])[0]["games"] == "30"
    assert alone[0].random_measured


def test_who_is_not_above_random_play_is_named(tmp_path: Path) -> None:
    """In the corridor every policy is as good as chance."""
    scores = evaluate([policy_of("Corridor-v0", tmp_path / "p")], EvaluateConfig(epsilon=0.0))
    lines = remarks(scores)
    assert lines[0].startswith(f"random play scores {scores[0].random_score:.1f}")
    assert any("not above random play" in line and str(tmp_path / "p") in line for line in lines)
    better = replace(scores[0], mean=50.0, ci_low=40.0, ci_high=60.0)
    assert not any("not above random play" in line for line in remarks([better]))
    lines = inspect(tmp_path / "p", InspectConfig(play=5, epsilon=0.0))
    assert "not above random play" in lines["plays"]
    assert "distinct" in lines["plays"]
    assert float(lines["random play"].split()[0]) <= 3


# The longest game


@pytest.mark.parametrize("limit", [1, 5])
def test_a_game_is_truncated_by_the_longest_one_and_not_terminated(limit: int) -> None:
    environments = Environments(make_task("Endless-v0", max_episode_steps=limit), 3, 0)
    for count in range(1, 4 * limit + 1):
        step = environments.step(np.zeros(3, dtype=np.int64))
        assert not step.terminated.any()
        assert step.truncated.all() == (count % limit == 0) == step.truncated.any()
        assert (step.returns == limit).all() or count % limit
    assert environments.cut == 12


def test_an_environment_that_ends_in_time_is_untouched() -> None:
    task = make_task("Corridor-v0")
    assert Environments(task, 1, 0).longest_game == LONGEST_GAME
    assert Environments(make_task("CartPole-v1"), 1, 0).longest_game == 0, "its own limit is 500"
    assert "max_episode_steps" not in task.as_dict(), "as files of before have it"
    plain, limited = (Environments(replace(task, max_episode_steps=limit), 2, 3) for limit in (0, 3))
    for _ in range(20):
        ours, theirs = (each.step(np.zeros(2, dtype=np.int64)) for each in (plain, limited))
        assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(ours, theirs, strict=True))
    assert limited.cut == 0


@pytest.mark.slow
def test_atari_keeps_its_own_limit_unless_another_is_asked_for() -> None:
    task = make_task("ALE/Pong-v5")
    assert Environments(task, 1, 0).longest_game == 0
    shorter = make_task("ALE/Pong-v5", max_episode_steps=20)
    assert (shorter.max_episode_steps, shorter.random_score, task.random_score) == (20, None, -20.7)
    assert Task.from_dict(shorter.as_dict()) == shorter
    environments = Environments(shorter, 1, 0)
    ends = [bool(environments.step(np.zeros(1, dtype=np.int64)).truncated[0]) for _ in range(40)]
    environments.close()
    assert [count for count, ended in enumerate(ends, 1) if ended] == [20, 40]


def test_environments_in_the_middle_of_an_endless_game_go_on_where_they_were() -> None:
    task = make_task("Endless-v0", max_episode_steps=9)
    first, second = Environments(task, 2, 1), Environments(task, 2, 1)
    ends = []
    for environments in (first, second):
        ended = []
        for count in range(30):
            if environments is second and count % 7 == 4:
                state = environments.state_dict()
                environments = Environments(task, 2, 1)
                environments.load_state_dict(state)
            ended.append(environments.step(np.zeros(2, dtype=np.int64)).truncated.tolist())
        ends.append(ended)
    assert ends[0] == ends[1]


class Lines(Silent):
    """Keeps what is said and shown; presses Ctrl-C in a stage, from so many units of it on."""

    def __init__(self, stage: str = "", at: int = 0) -> None:
        self.stage, self.at, self.now = stage, at, ""
        self.lines: list[str] = []
        self.figures: list[dict[str, float]] = []

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.now = what

    def update(self, done: int, **figures: float) -> None:
        self.figures.append(figures)
        if self.stage and self.stage in self.now and done >= self.at:
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.lines.append(line)


QUICK = TrainConfig.of(steps=400, num_envs=4, replay=400, final_episodes=3, max_episode_steps=30)
STUDENT = DistillConfig.of(
    student="mlp:4",
    steps=300,
    num_envs=2,
    warmup=40,
    batch_size=16,
    samples_per_step=2,
    evaluate_every=100,
    evaluate_episodes=2,
    max_episode_steps=30,
)


def weights(run: Path) -> bytes:
    return (run / "policy" / "weights.safetensors").read_bytes()


def test_endless_games_are_trained_in_and_distilled_under_the_same_limit_and_said(tmp_path: Path) -> None:
    lines = Lines()
    teacher = train("Endless-v0", tmp_path / "teacher", QUICK, progress=lines)
    assert teacher.provenance["score"]["returns"] == [30.0] * 3
    assert any(
        "a game was cut after 30 control steps" in line and "--max-episode-steps" in line for line in lines.lines
    )
    student = distill(tmp_path / "teacher", tmp_path / "student", changed(STUDENT, max_episode_steps=None))
    assert student.task == teacher.task, "the teacher's limit is the student's"
    data = record(tmp_path / "teacher", tmp_path / "data", RecordConfig(steps=100, num_envs=2))
    assert data.task.max_episode_steps == 30
    score = evaluate([tmp_path / "teacher"], EvaluateConfig(episodes=2, max_episode_steps=12))[0]
    assert score.returns == [12.0, 12.0]


def test_a_stopped_run_of_endless_games_ends_in_the_same_weights(tmp_path: Path) -> None:
    teacher = policy_of("Endless-v0", tmp_path / "teacher").path
    assert teacher is not None
    distill(teacher, tmp_path / "whole", STUDENT)
    with pytest.raises(KeyboardInterrupt):
        distill(
            teacher, tmp_path / "cut", changed(STUDENT, checkpoint_seconds=0), progress=Lines("score of the student")
        )
    # What changes no weights may change.
    distill(teacher, tmp_path / "cut", changed(STUDENT, evaluate_episodes=1, evaluate_every=0), resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert load_policy(tmp_path / "cut").provenance["score"]["episodes"] == 1
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["evaluate_episodes"] == 1


def test_steps_show_that_a_long_game_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rldistill.play.games._PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(Talking, "PLAIN_SECONDS", 0.0)
    with Talking() as progress:
        progress.start("games", 2, "games")
        play(make_task("Endless-v0", max_episode_steps=2_000), always(0), 2, 0, on_progress=progress.update)
    assert "0 of 2 games" in capsys.readouterr().err.split("steps 3,000")[0]


# One environment


@pytest.mark.slow
def test_with_one_environment_there_is_never_a_second(tmp_path: Path) -> None:
    train("Port-v0", tmp_path / "teacher", changed(QUICK, num_envs=1, max_episode_steps=None))
    assert load_policy(tmp_path / "teacher").provenance["score"]["episodes"] == 3
    config = changed(STUDENT, num_envs=1, max_episode_steps=None)
    foreign = replace(load_policy(tmp_path / "teacher"), provenance={})  # its score is measured
    distill(foreign, tmp_path / "student", config)
    assert load_policy(tmp_path / "student").provenance["score"]["episodes"] == 2
    assert len([row for row in read_metrics(tmp_path / "student") if row.get("event") == "evaluation"]) == 3
    record(tmp_path / "teacher", tmp_path / "data", RecordConfig(steps=50, num_envs=1))
    evaluate([tmp_path / "teacher", tmp_path / "student"], EvaluateConfig(episodes=2, num_envs=1))
    inspect(tmp_path / "student", InspectConfig(play=2, num_envs=1))
    assert not Port.taken


def test_a_second_environment_that_cannot_be_made_names_the_way_to_do_with_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 4 were made: .*--num-envs 1"):
        train("Port-v0", tmp_path / "teacher", changed(QUICK, max_episode_steps=None))
    assert not Port.taken


def test_environments_that_are_released_go_on_where_they_were(tmp_path: Path) -> None:
    """An evaluation in the middle changes nothing of what follows it."""
    teacher = policy_of("Endless-v0", tmp_path / "teacher")
    for name, every in (("often", 50), ("never", 0)):
        config = changed(STUDENT, num_envs=1, evaluate_every=every, steps=200)
        distill(replace(teacher, path=None), tmp_path / name, config)
    assert weights(tmp_path / "often") == weights(tmp_path / "never")


# Policies before scores


@pytest.mark.parametrize("verb", ["train", "distill"])
@pytest.mark.slow
def test_a_policy_is_safe_before_its_final_games_and_resuming_plays_them_alone(tmp_path: Path, verb: str) -> None:
    teacher = policy_of("Corridor-v0", tmp_path / "teacher").path
    assert teacher is not None

    def run(name: str, games: int, progress: Lines | None = None, *, resume: bool = False) -> SavedPolicy:
        if verb == "train":
            config = changed(QUICK, final_episodes=games)
            return train("Corridor-v0", tmp_path / name, config, resume=resume, progress=progress)
        settings = changed(STUDENT, evaluate_episodes=games, evaluate_every=0)
        return distill(teacher, tmp_path / name, settings, resume=resume, progress=progress)

    stage = "final score" if verb == "train" else "score of the student"
    with pytest.raises(KeyboardInterrupt):
        run("run", 3, Lines(stage))
    policy = load_policy(tmp_path / "run")
    assert "score" not in policy.provenance
    before = weights(tmp_path / "run")
    assert RunFolder(tmp_path / "run").status == "finished"
    lines = Lines()
    done = run("run", 2, lines, resume=True)
    assert weights(tmp_path / "run") == before
    assert done.provenance["score"]["episodes"] == 2
    assert any("its score is missing" in line for line in lines.lines)
    assert not any("loss" in figures for figures in lines.figures), "nothing is learnt again"
    assert not (tmp_path / "run" / "checkpoint").exists()
    whole = run("whole", 2)
    assert RunFolder(tmp_path / "run").status == "scored"
    assert (weights(tmp_path / "whole"), whole.provenance["score"]) == (before, done.provenance["score"])
    events = [[row.get("event") for row in read_metrics(tmp_path / name)] for name in ("run", "whole")]
    assert events[0] == events[1]
    again = Lines()
    run("run", 5, again, resume=True)
    assert any("finished already" in line for line in again.lines)


@pytest.mark.slow
def test_without_games_there_is_no_score_and_everything_copes(tmp_path: Path) -> None:
    lines = Lines()
    teacher = train("Corridor-v0", tmp_path / "teacher", changed(QUICK, final_episodes=0), progress=lines)
    student = distill(tmp_path / "teacher", tmp_path / "student", changed(STUDENT, evaluate_episodes=0), progress=lines)
    assert "score" not in teacher.provenance
    assert "score" not in student.provenance
    assert sum("no score" in line for line in lines.lines) == 2
    assert "nan" not in " ".join(lines.lines)
    for run in ("teacher", "student"):
        page = report(tmp_path / run, config=ReportConfig(episodes=2, seconds=0)).read_text()
        assert not re.search(r"\bnan\b", page)
    # The games may follow later.
    scored = train("Corridor-v0", tmp_path / "teacher", changed(QUICK, final_episodes=2), resume=True)
    assert scored.provenance["score"]["episodes"] == 2


def test_no_score_is_shown_before_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = policy_of("Corridor-v0", tmp_path / "teacher").path
    assert teacher is not None
    monkeypatch.setattr("rldistill.verbs.distill.Pace", partial(Pace, showing=0.0))
    lines = Lines()
    distill(teacher, tmp_path / "run", changed(STUDENT, evaluate_every=0), progress=lines)
    assert any("loss" in figures for figures in lines.figures)
    assert not any(np.isnan(value) for figures in lines.figures for value in figures.values())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


# Runs of older versions


@pytest.mark.slow
def test_an_option_that_a_folder_lacks_has_its_default(tmp_path: Path) -> None:
    lines = Lines("train", 200)
    with pytest.raises(KeyboardInterrupt):
        train(
            "Corridor-v0",
            tmp_path / "run",
            changed(QUICK, max_episode_steps=None, checkpoint_seconds=0),
            progress=lines,
        )
    path = tmp_path / "run" / "config.json"
    before = json.loads(path.read_text())
    del before["max_episode_steps"], before["steady"]
    path.write_text(json.dumps(before))
    with pytest.raises(UserError, match="max_episode_steps"):
        train("Corridor-v0", tmp_path / "run", QUICK, resume=True)
    train("Corridor-v0", tmp_path / "run", changed(QUICK, max_episode_steps=None), resume=True)
    train("Corridor-v0", tmp_path / "whole", changed(QUICK, max_episode_steps=None))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_game_without_a_record_of_its_bounds_is_plain_json() -> None:
    scored = play_scored(make_task("Alone-v0"), None, 1, 0.0, 0)
    assert (scored["ci_low"], scored["ci_high"], scored["distinct"]) == (None, None, 1)
    json.dumps(scored, allow_nan=False)


class Changing(Corridor):
    """Has another space of observations from the time when `last` of them were made."""

    made, last = 0, 10**9

    def __init__(self) -> None:
        super().__init__()
        Changing.made += 1
        if Changing.made >= Changing.last:
            self.observation_space = spaces.Box(0, 100, (3,), np.float32)


def test_games_that_were_played_are_not_lost_where_the_environment_cannot_be_made_once_more(tmp_path: Path) -> None:
    gymnasium.register("Changing-v0", entry_point=Changing)
    try:
        task = make_task("Changing-v0")
        save_policy(tmp_path / "p", build(Architecture("mlp:4", (2,), 2), 0), task, {})
        config = EvaluateConfig(episodes=2, num_envs=1)
        Changing.made = 0
        before = evaluate(tmp_path / "p", config)
        Changing.made, Changing.last = 0, Changing.made  # what is made last only tries whether games repeat themselves
        assert evaluate(tmp_path / "p", config)[0].returns == before[0].returns
        assert Changing.made == Changing.last
    finally:
        Changing.last = 10**9
        del gymnasium.registry["Changing-v0"]
