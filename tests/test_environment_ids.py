"""Ids of environments: old names, modules that are imported only where the user names them, and arguments."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rldistill import (
    DistillConfig,
    EvaluateConfig,
    TrainConfig,
    distill,
    evaluate,
    load_policy,
    record,
    save_policy,
    train,
)
from rldistill.configurations import changed
from rldistill.play.envs import Environments, fitting_task, make_task, task_in_file
from rldistill.play.envs.ids import arguments_of
from rldistill.students.networks import Architecture, build
from rldistill.types import Task, UserError
from rldistill.verbs.export import ExportConfig, export
from rldistill.verbs.inspect import InspectConfig, inspect
from rldistill.verbs.record import RecordConfig
from rldistill.verbs.report import ReportConfig, report
from rldistill.verbs.watch import WatchConfig, watch

MODULE = """
from pathlib import Path
import gymnasium, numpy as np
from gymnasium import spaces
Path({marker!r}).write_text("ran")

class Walk(gymnasium.Env):
    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Discrete(2)
    def __init__(self, size=1, name="", render_mode=None):
        self.size, self.name = size, name
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {{}}
    def step(self, action):
        self.age += 1
        return np.full(1, self.age, np.float32), float(self.size), self.age == 5, False, {{}}

gymnasium.register("Walk-v0", Walk)
"""
TASK = Task("stranger:Walk-v0", 2, (1,), "float32")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: Any) -> Iterator[Path]:
    """A module `stranger` in the current folder; the path of the file that it writes when it runs."""
    marker = tmp_path / "marker"
    (tmp_path / "stranger.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rldistill.play.envs.ids._named_modules", set())
    monkeypatch.setattr("rldistill.play.envs.ids._named_texts", set())
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    yield marker
    sys.modules.pop("stranger", None)
    gymnasium.registry.pop("Walk-v0", None)


def saved(path: Path, task: Task = TASK) -> Path:
    save_policy(path, build(Architecture("mlp:4", task.observation_shape, task.num_actions), 0), task, {})
    return path


def verbs(folder: Path, env: str | None) -> dict[str, Any]:
    out = folder / "out"
    return {
        "evaluate": lambda: evaluate([folder / "policy"], EvaluateConfig(episodes=1, env=env)),
        "record": lambda: record(folder / "policy", out / "data", RecordConfig(steps=4, num_envs=1, env=env)),
        "inspect": lambda: inspect(folder / "policy", InspectConfig(play=1, env=env)),
        "watch": lambda: watch(folder / "policy", WatchConfig(env=env), out=out / "film.gif"),
        "export": lambda: export(
            folder / "policy", out / "x.pt", "torchscript", ExportConfig(episodes=0, states=10, env=env)
        ),
    }


@pytest.mark.parametrize("verb", verbs(Path(), None))
@pytest.mark.slow
def test_no_verb_imports_a_module_because_a_policy_folder_says_so(module: Path, tmp_path: Path, verb: str) -> None:
    saved(tmp_path / "policy")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="module 'stranger' would be imported.*--env stranger:Walk-v0"):
        verbs(tmp_path, None)[verb]()
    assert not module.exists()
    if verb == "watch":
        with pytest.raises(UserError, match="cannot be drawn"):
            verbs(tmp_path, TASK.env)[verb]()
    else:
        verbs(tmp_path, TASK.env)[verb]()
    assert module.read_text() == "ran", "the way out that the message names works"


def test_nothing_that_only_reads_files_imports_a_module(module: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "policy")
    assert load_policy(folder).task == TASK
    assert inspect(folder)["environment"] == TASK.env
    with pytest.raises(UserError, match="would be imported"):
        task_in_file(TASK.env)
    with pytest.raises(UserError, match="would be imported"):
        Environments(TASK, 1, 0)
    for env in ("stranger:PongNoFrameskip-v4", "stranger:ALE/Pong-v5", "stranger:MinAtar/Breakout-v1"):
        with pytest.raises(UserError):
            Environments(Task(env, 6, (4, 84, 84), frame_stack=4), 1, 0)
    assert not module.exists()


def test_a_run_of_a_stranger_imports_nothing_for_its_report(module: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved(run / "policy")
    (run / "config.json").write_text(json.dumps({"verb": "distill", "teacher": "gone", "task": TASK.as_dict()}))
    with pytest.raises(UserError, match="would be imported"):
        report(run, config=ReportConfig(episodes=1))
    assert not module.exists()
    report(run, config=ReportConfig(episodes=1, env=TASK.env))
    assert module.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-m", "rldistill"], ["-c", "from rldistill.__main__ import main; main()"]])
def test_the_command_imports_only_what_its_line_names(module: Path, tmp_path: Path, command: list[str]) -> None:
    """`python -m` has the current folder on its path, the installed command has not; both import from it."""
    saved(tmp_path / "policy")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *(command if "-m" in command else ["-P", *command]), "evaluate", "policy", *arguments]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)

    refused = run("--episodes", "1")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--env stranger:Walk-v0" in refused.stderr
    assert not module.exists()
    assert run("--episodes", "1", "--env", TASK.env).returncode == 0
    assert module.exists()


def test_runs_begun_without_the_id_go_on_with_it(module: Path, tmp_path: Path) -> None:
    """A folder from before ids had to be confirmed says env = null; the confirmation is no other configuration."""
    teacher = saved(tmp_path / "policy")
    config = DistillConfig.of(student="mlp:4", steps=16, warmup=8, num_envs=2, evaluate_episodes=1, env=TASK.env)
    distill(teacher, tmp_path / "run", config)
    settings = json.loads((tmp_path / "run/config.json").read_text())
    assert settings["env"] is None
    assert "env_kwargs" not in settings
    assert distill(teacher, tmp_path / "run", config, resume=True).task == TASK


def test_a_module_that_is_not_there_or_fails_is_one_line(module: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    for env, says in {
        "nowhere:X-v0": "no module 'nowhere'",
        "stranger:X-v0": "unknown environment 'stranger:X-v0'",
        "broken:X-v0": "needs a package that is not installed.*nothing_of_this_name",
        "leaves:X-v0": "making of leaves:X-v0 failed: SystemExit: 0",
        "a b:X-v0": "no name of a module",
        "a:b:X-v0": "no name of a module",
        "Walk-v7": "your own is written module:Id",
    }.items():
        with pytest.raises(UserError, match=says) as refusal:
            make_task(env)
        assert len(str(refusal.value).splitlines()) == 1


# Arguments


def test_arguments_are_scalars_of_json_or_text() -> None:
    texts = ("b=3", "a=0.5", "c=true", "d=null", "e=8x8", "f=[1]", 'g="4"', "h=", "i=NaN", "j=x=y")
    assert dict(arguments_of(texts)) == dict(
        a=0.5, b=3, c=True, d=None, e="8x8", f="[1]", g="4", h="", i="NaN", j="x=y"
    )
    assert [name for name, _ in arguments_of(texts)] == sorted("abcdefghij")


@pytest.mark.parametrize(
    "wrong",
    [
        "level",
        "=3",
        "two words=3",
        "a.b=1",
        "a=1 a=2",
        "max_episode_steps=5",
        "id=Pong-v5",
        "render_mode=human",
        "disable_env_checker=true",
        "kwargs=1",
    ],
)
def test_arguments_that_are_none_of_an_environments_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="--env-kwargs"):
        make_task("CartPole-v1", env_kwargs=wrong.split() if wrong.count("=") > 1 else [wrong])


def test_arguments_are_kept_with_the_policy_and_played_by_every_verb(module: Path, tmp_path: Path) -> None:
    config = TrainConfig.of(
        algo="pqn", steps=512, num_envs=2, network="mlp:4", final_episodes=1, env_kwargs=("size=3",)
    )
    trained = train(TASK.env, tmp_path / "run", config)
    assert trained.task == replace(TASK, env_kwargs=(("size", 3),))
    assert Task.from_dict(json.loads(json.dumps(trained.task.as_dict()))) == trained.task
    for options, score in (((), 15.0), (("size=2",), 10.0)):
        config_of = EvaluateConfig(episodes=1, env=TASK.env, env_kwargs=options)
        assert evaluate([tmp_path / "run"], config_of)[0].mean == score
    assert record(tmp_path / "run", tmp_path / "data", RecordConfig(steps=4, env=TASK.env)).task == trained.task
    train(TASK.env, tmp_path / "run", config, resume=True)
    with pytest.raises(UserError, match="task.env_kwargs"):
        train(TASK.env, tmp_path / "run", changed(config, env_kwargs=("size=4",)), resume=True)


def test_an_argument_in_a_file_names_no_file_and_no_module(module: Path, tmp_path: Path) -> None:
    make_task(TASK.env)
    plain, path = (replace(TASK, env_kwargs=(("name", text),)) for text in ("8x8", "../a.xml"))
    Environments(plain, 1, 0).close()
    with pytest.raises(UserError, match="name='../a.xml', which could name a file or a module.*--env-kwargs name="):
        Environments(path, 1, 0)
    assert fitting_task(path, None, ["name=../a.xml"]) == path
    Environments(path, 1, 0).close()


def test_the_own_id_keeps_the_policys_task_but_for_masks() -> None:
    own = replace(TASK, env="CartPole-v1", env_kwargs=(("sutton_barto_reward", True),), action_masks=True)
    assert fitting_task(own, "CartPole-v1") == replace(own, action_masks=False)
    assert fitting_task(own, None) == own


def test_an_argument_that_is_missing_or_unknown_is_named(module: Path) -> None:
    with pytest.raises(UserError, match="making of stranger:Walk-v0 failed: TypeError.*'speed'"):
        make_task(TASK.env, env_kwargs={"speed": 3})
    gymnasium.register("Needs-v0", lambda level, render_mode=None: None)  # type: ignore[arg-type, return-value]
    try:
        with pytest.raises(UserError, match="required positional argument: 'level'.*--env-kwargs"):
            make_task("Needs-v0")
    finally:
        del gymnasium.registry["Needs-v0"]
    with pytest.raises(UserError, match="does not take the option 'env_kwargs'"):
        make_task("ALE/Pong-v5", env_kwargs={"mode": 1})


@pytest.mark.parametrize("pairs", [[["a"]], [["a", [1]]], [["a b", 1]], [[1, 1]], [["a", float("nan")]], "text", 7])
def test_absurd_arguments_of_a_file_are_refused(pairs: Any) -> None:
    with pytest.raises(UserError, match="a task lacks a field or holds a wrong one"):
        Task.from_dict({**TASK.as_dict(), "env_kwargs": pairs})


# Atari by other names


@pytest.mark.parametrize(
    "env",
    [
        "Pong-v0",
        "Pong-v4",
        "Pong-v5",
        "PongDeterministic-v4",
        "PongDeterministic-v0",
        "ale_py:Pong-v4",
        "SpaceInvaders-v5",
        "Spaceinvaders-v0",
    ],
)
def test_old_names_of_atari_games_are_answered_with_those_that_are_played(env: str) -> None:
    game = "SpaceInvaders" if "pace" in env else "Pong"
    with pytest.raises(UserError, match=rf"write ALE/{game}-v5 .* or {game}NoFrameskip-v4"):
        make_task(env)


def test_games_on_their_ram_are_refused_as_such() -> None:
    for env in ("Pong-ram-v0", "Pong-ramDeterministic-v4"):
        with pytest.raises(UserError, match="RAM are not played.*ALE/Pong-v5"):
            make_task(env)


@pytest.mark.parametrize("prefix", ["ale_py:", "any.module:"])
@pytest.mark.parametrize("env", ["ALE/Pong-v5", "PongNoFrameskip-v4", "MinAtar/Breakout-v1"])
def test_a_module_before_a_game_changes_nothing(prefix: str, env: str) -> None:
    assert make_task(prefix + env) == make_task(env)


def test_a_game_of_the_users_own_has_its_name(monkeypatch: Any) -> None:
    monkeypatch.delitem(gymnasium.registry, "Pong-v0", raising=False)
    gymnasium.register("Pong-v0", lambda **options: gymnasium.make("CartPole-v1"))
    try:
        assert make_task("Pong-v0").observation_shape == (4,)
    finally:
        del gymnasium.registry["Pong-v0"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_episode_steps": -5}, "max-episode-steps"),
        ({"max_episode_steps": 2.5}, "max-episode-steps"),
        ({"max_episode_steps": "x"}, "max-episode-steps"),
        ({"max_episode_steps": 10**400}, "max-episode-steps"),
        ({"env_kwargs": {"x": 2**63}}, "env-kwargs"),
        ({"env_kwargs": {"x": 10**5000}}, "env-kwargs"),
        ({"env_kwargs": [f"x={'9' * 400}"]}, "env-kwargs"),
    ],
)
def test_options_of_a_task_that_no_file_could_keep_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_task("CartPole-v1", **options)


@pytest.mark.parametrize(
    "options", [{"frame_skip": "x"}, {"frame_stack": 2.5}, {"noop_max": True}, {"difficulty_ramping": 1}]
)
def test_options_of_games_have_their_types(options: dict[str, Any]) -> None:
    env = "MinAtar/Breakout-v1" if "difficulty_ramping" in options else "PongNoFrameskip-v4"
    with pytest.raises(UserError, match=next(iter(options)).replace("_", "-")):
        make_task(env, **options)
