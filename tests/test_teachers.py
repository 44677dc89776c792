"""Teachers of other tools through every verb: loaded, refused where something does not fit, and distilled."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from torch import Tensor, nn

from foreign_files import SIDE, acting_zip, balancing_zip, space_of
from rldistill.configurations import changed
from rldistill.datasets import open_dataset
from rldistill.play.envs import make_task
from rldistill.policies import SavedPolicy, save_policy
from rldistill.progress import Silent
from rldistill.runs.folder import read_metrics
from rldistill.runs.scores import read_scores
from rldistill.students.networks import Architecture, build
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_fitting, load_teacher
from rldistill.types import ScoreKind, UserError
from rldistill.verbs.distill import DistillConfig, distill
from rldistill.verbs.evaluate import EvaluateConfig, evaluate
from rldistill.verbs.record import RecordConfig, record
from rldistill.verbs.report import ReportConfig, report
from test_distillation import PressesCtrlC
from test_teachers_formats import (
    MLP,
    MLP_NAMES,
    SB3_CARD,
    VECTORS,
    linear,
    mlp_scores,
    onnx_mlp,
    relu,
    script,
    write_script,
)
from test_teachers_sb3 import ARGS, CONFIG, Draw, actor_critic, dense, layers, make_zip, write_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")

CARTPOLE = space_of("CartPole-v1")
QUICK = DistillConfig.of(
    student="mlp:4", steps=200, num_envs=4, warmup=40, batch_size=32, samples_per_step=8, evaluate_episodes=3,
    evaluate_epsilon=0.0, evaluate_every=0,
)  # fmt: skip
ACCEPT = TeacherOptions(accept_mismatch=True)


def foreign(*args: Any, **options: Any) -> ForeignTeacher:
    teacher = load_teacher(*args, **options)
    assert isinstance(teacher, ForeignTeacher)
    return teacher


def refused(verb: Callable[..., Any], *args: Any, says: str, **options: Any) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        verb(*args, **options)
    assert len(str(refusal.value).splitlines()) == 1


# What a reference gives


class Perceptron(nn.Module):
    """`MLP` as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
        self.layers.load_state_dict({name.removeprefix("q."): tensor for name, tensor in MLP.items()})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def of_kind(kind: str, folder: Path) -> Path:
    """`MLP` as a file of this kind, which plays CartPole."""
    if kind == "state dict":
        torch.save(MLP, folder / "net.pth")
        return folder / "net.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(MLP, folder / "net.safetensors")
        return folder / "net.safetensors"
    if kind == "ONNX":
        return onnx_mlp(folder / "net.onnx")
    if kind == "TorchScript":
        return script(Perceptron(), folder / "net.pt")
    if kind == "CleanRL":
        state = OrderedDict((name.replace("q.", "network."), tensor) for name, tensor in MLP.items())
        path = folder / "CartPole-v1__dqn__1__1700000000" / "dqn.cleanrl_model"
        path.parent.mkdir()
        torch.save(state, path)
        return write_script(path, "network", "nn.ReLU()")
    tensors = {name.replace("q.", "q_net.q_net."): tensor.numpy() for name, tensor in MLP.items()}
    target = {name.replace("q_net.", "q_net_target.", 1): array for name, array in tensors.items()}
    return make_zip(folder / "dqn-CartPole-v1.zip", "DQN", {**tensors, **target}, CARTPOLE, spaces.Discrete(2))


KINDS: dict[str, TeacherOptions] = {
    "Stable-Baselines3 zip": TeacherOptions(),
    "CleanRL": TeacherOptions(),
    "ONNX": TeacherOptions(),
    "TorchScript": TeacherOptions(teacher_scores="q_values"),
    "state dict": TeacherOptions(teacher_network="mlp:8,5"),
    "safetensors": TeacherOptions(teacher_network="mlp:8,5"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_a_teacher_with_task_scores_and_checksum(tmp_path: Path, kind: str) -> None:
    path = of_kind(kind, tmp_path)
    says_it = kind in ("Stable-Baselines3 zip", "CleanRL")
    teacher = foreign(path, env=None if says_it else "CartPole-v1", options=KINDS[kind])
    assert (teacher.task, teacher.score_kind) == (make_task("CartPole-v1"), "q_values")
    assert kind in teacher.foreign.format
    assert teacher.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert teacher.weights() == path.read_bytes()
    assert teacher.mismatches == ()
    np.testing.assert_allclose(teacher(VECTORS).numpy(), mlp_scores(MLP, MLP_NAMES, VECTORS, relu), atol=1e-6)
    json.dumps(dict(teacher.provenance))
    if not says_it:
        refused(load_teacher, path, options=KINDS[kind], says="name it with --env|name the environment")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_measured_by_its_parameters_and_bytes(tmp_path: Path, kind: str) -> None:
    """4 * 8 + 8, 8 * 5 + 5, 5 * 2 + 2."""
    path = of_kind(kind, tmp_path)
    config = EvaluateConfig(episodes=2, epsilon=1.0, env="CartPole-v1")
    (score,) = evaluate([path], config, options=KINDS[kind])
    assert (score.parameters, score.parameter_share) == (40 + 45 + 12, 1.0)
    assert score.bytes == path.stat().st_size


def test_policy_and_run_folders_are_teachers_as_before(tmp_path: Path) -> None:
    network = build(Architecture("mlp:4", (4,), 2), 0)
    save_policy(tmp_path / "run" / "policy", network, make_task("CartPole-v1"), {"command": "by hand"})
    for place in (tmp_path / "run", tmp_path / "run" / "policy", str(tmp_path / "run")):
        teacher = load_teacher(place)
        assert isinstance(teacher, SavedPolicy)
        assert teacher.path == tmp_path / "run" / "policy"
        torch.testing.assert_close(teacher(VECTORS), network(VECTORS).detach())


def acrobot(path: Path) -> tuple[Path, Draw]:
    draw = actor_critic(6, 8, outputs=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_zip(path, "PPO", draw.tensors, space_of("Acrobot-v1"), spaces.Discrete(3)), draw


def test_scores_are_those_of_the_normalized_observations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics' mean is 0.5 and their variance 4; the tenth row lies beyond their limit of 10."""
    path, draw = acrobot(tmp_path / "ppo-Acrobot-v1.zip")
    write_statistics(tmp_path / "ppo-Acrobot-v1.vecnormalize.pkl", 6, monkeypatch)
    teacher = foreign(path)
    x = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    x[9] = 100

    def scores(observations: Any) -> Any:
        hidden = layers(draw.tensors, "mlp_extractor.policy_net", observations, 1, np.tanh, last=True)
        return dense(draw.tensors, "action_net", hidden)

    wanted = scores(np.minimum((x.astype(np.float64) - 0.5) / 2, 10))
    np.testing.assert_allclose(teacher(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted - scores(x)).max() > 0.1
    assert (teacher.mismatches, teacher.score_kind, teacher.task.env) == ((), "logits", "Acrobot-v1")


def test_a_teacher_is_another_one_with_other_statistics_or_another_word_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a resumed run could learn from another teacher than it began with, and a dataset could mix the labels of two."""
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    plain = foreign(path)
    assert plain.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    statistics = write_statistics(tmp_path / "stats.pkl", 4, monkeypatch)
    options = TeacherOptions(normalization=statistics)
    normalized = foreign(path, options=options)
    assert normalized.sha256 != plain.sha256
    moved = TeacherOptions(normalization=Path(shutil.copy(statistics, tmp_path / "moved.pkl")))
    assert foreign(path, options=moved).sha256 == normalized.sha256
    record(path, tmp_path / "data", RecordConfig(steps=100, num_envs=4), options=options)
    distill(path, tmp_path / "run", QUICK, options=replace(options, accept_mismatch=True))
    whole = pickle.loads(statistics.read_bytes())
    whole.obs_rms.mean += 1
    statistics.write_bytes(pickle.dumps(whole))
    assert foreign(path, options=options).sha256 not in (plain.sha256, normalized.sha256)
    again = RecordConfig(steps=100, num_envs=4)
    refused(record, path, tmp_path / "data", again, append=True, options=options, says="recorded with teacher = ")
    accepting = replace(options, accept_mismatch=True)
    refused(distill, path, tmp_path / "run", QUICK, resume=True, options=accepting, says="begun with teacher_sha256")
    net = of_kind("state dict", tmp_path)
    options_of = [TeacherOptions(teacher_network=f"mlp:8,5{activation}") for activation in ("", ":tanh")]
    relu_net, tanh_net = (foreign(net, env="CartPole-v1", options=options) for options in options_of)
    assert relu_net.sha256 != tanh_net.sha256


def test_statistics_named_go_before_any_file_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = write_statistics(tmp_path / "mine.pkl", 4, monkeypatch)
    path = of_kind("state dict", tmp_path)
    options = TeacherOptions(teacher_network="mlp:8,5", normalization=statistics)
    teacher = foreign(path, env="CartPole-v1", options=options)
    wanted = mlp_scores(MLP, MLP_NAMES, (VECTORS - 0.5) / 2, relu)
    np.testing.assert_allclose(teacher(VECTORS).numpy(), wanted, rtol=1e-5, atol=1e-6)
    other = replace(options, normalization=write_statistics(tmp_path / "other.pkl", 5, monkeypatch))
    refused(load_fitting, path, env="CartPole-v1", options=other, progress=Silent(), says=r"of shape \(5,\)")


# Which environment


def test_environment_named_goes_before_the_files(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    assert load_teacher(path).task == make_task("CartPole-v1")
    assert load_teacher(path, env="CartPole-v0").task == make_task("CartPole-v0")


def test_environment_that_no_file_names_is_asked_for(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "mine.zip")
    refused(load_teacher, path, says="does not say which environment it plays: name it with --env")
    assert load_teacher(path, env="CartPole-v1").task.env == "CartPole-v1"
    refused(load_teacher, path, env="CartPole-v77", says="unknown environment 'CartPole-v77'")
    mine = balancing_zip(tmp_path / "my-CartPole-v1.zip")
    refused(load_teacher, mine, says=r"unknown environment 'my-CartPole-v1'.*my-CartPole-v1.zip.*--env")


def test_environment_that_is_gone_is_played_as_its_next_version_and_said(tmp_path: Path) -> None:
    pendulum = acting_zip(tmp_path / "ppo-Pendulum-v0.zip", space_of("Pendulum-v1"), spaces.Box(-2, 2, (1,)))
    teacher = foreign(pendulum)
    assert teacher.task == make_task("Pendulum-v1")
    assert teacher.notes[-1] == "Pendulum-v0 is no longer there: played as Pendulum-v1"
    assert teacher.mismatches == ()
    assert not any("no longer" in note for note in foreign(pendulum, env="Pendulum-v1").notes)
    refused(load_teacher, pendulum, env="Pendulum-v7", says="unknown environment 'Pendulum-v7'")


def test_lunar_lander_of_before_is_played_as_it_is_today(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    lander = acting_zip(tmp_path / "ppo-LunarLander-v2.zip", space_of("LunarLander-v3"), spaces.Discrete(4))
    teacher = foreign(lander)
    assert teacher.task.env == "LunarLander-v3"
    assert teacher.notes[-1] == "LunarLander-v2 is no longer there: played as LunarLander-v3"
    assert teacher.mismatches == ()


def test_next_version_that_lacks_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that the version before is unknown. MuJoCo's versions 2 and 3 end in an ImportError of their own."""
    make = gymnasium.make

    def lacking(env: str, **options: Any) -> Any:
        if env == "HalfCheetah-v4":
            raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")
        return make(env, **options)

    monkeypatch.setattr(gymnasium, "make", lacking)
    path = acting_zip(tmp_path / "ppo-HalfCheetah-v3.zip", spaces.Box(-9, 9, (17,)), spaces.Box(-1, 1, (6,)))
    refused(load_teacher, path, says="HalfCheetah-v5 needs a package that is not installed: MuJoCo")


# What is no teacher


def test_what_is_no_teacher_is_one_line(tmp_path: Path) -> None:
    refused(load_teacher, tmp_path / "none.zip", says="no file at .*none.zip")
    (tmp_path / "empty").mkdir()
    refused(load_teacher, tmp_path / "empty", says="empty is no policy folder")
    (tmp_path / "notes.txt").write_text("not a policy")
    refused(load_teacher, tmp_path / "notes.txt", says="is no policy that rldistill knows: it reads policy folders")
    cut = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-200])
    refused(load_teacher, cut, says="ppo-CartPole-v1.zip")
    cut.write_bytes(whole[:1000])
    refused(load_teacher, cut, says="ppo-CartPole-v1.zip is damaged: it is a zip that ends early; get it anew")


def test_zip_that_is_refused_says_why(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside", b"x")
    refused(load_teacher, path, says="ppo-CartPole-v1.zip is refused: .*outside")


@pytest.mark.parametrize("kind", ["TorchScript", "state dict", "CleanRL"])
def test_file_that_tells_only_how_many_scores_it_gives_fits_several_actions_at_once(
    tmp_path: Path, levers: str, kind: str
) -> None:
    """The environment has actions of two and three choices and observations of six numbers."""
    module = nn.Linear(make_task(levers).observation_shape[0], 5)
    path = tmp_path / ("p.cleanrl_model" if kind == "CleanRL" else "p.pt")
    if kind == "TorchScript":
        script(module, path)
    else:
        actor = {f"actor.0.{name}": tensor for name, tensor in module.state_dict().items()}
        torch.save(OrderedDict(actor | linear("critic.0", module.in_features, 1)), path)
    teacher = foreign(path, env=levers, options=TeacherOptions(teacher_scores="logits"))
    assert teacher.mismatches == ()
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher(x), module(x).detach())
    assert "at once" in foreign(balancing_zip(tmp_path / "z.zip"), env=levers).mismatches[-1]


@pytest.mark.parametrize(
    "options",
    [
        TeacherOptions(),
        TeacherOptions("mlp:8,5:tanh", "logits", Path("a") / "b.pkl", "unit", False, True),
    ],
)
def test_options_come_back_from_plain_data(options: TeacherOptions) -> None:
    assert TeacherOptions.from_dict(json.loads(json.dumps(options.as_dict()))) == options


def test_a_run_folder_cannot_say_that_a_pickle_is_to_be_trusted() -> None:
    assert not TeacherOptions.from_dict(TeacherOptions(trust_pickle=True).as_dict()).trust_pickle


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "is 3, not a table"),
        ({"bogus": 1}, "bogus = 1, unknown"),
        ({"pixels": 1}, "pixels = 1, unknown"),
        ({"accept_mismatch": "yes"}, "accept_mismatch = 'yes', unknown"),
    ],
)
def test_options_that_are_none_are_refused_in_one_line(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TeacherOptions.from_dict(data)


# The hub's layout


CARD = SB3_CARD.replace("LunarLander-v2", "Acrobot-v1")


@pytest.mark.parametrize("place", ["vec_normalize.pkl", "vecnormalize.pkl", "Acrobot-v1/vecnormalize.pkl"])
def test_model_folder_gives_environment_and_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path, _ = acrobot(tmp_path / "model" / "policy-of-mine.zip")
    refused(load_teacher, path.parent, says="name it with --env")
    (path.parent / "README.md").write_text(CARD)
    bare = foreign(path.parent)
    assert (bare.task.env, bare.path, bare.foreign.normalization) == ("Acrobot-v1", path, None)
    statistics = write_statistics(path.parent / place, 6, monkeypatch)
    teacher = foreign(path.parent)
    assert teacher.foreign.normalization is not None
    assert teacher.foreign.normalization.source == str(statistics)
    x = torch.ones(1, 6)
    torch.testing.assert_close(teacher(x), bare(torch.full((1, 6), 0.25)))  # (1 - 0.5) / sqrt(4)
    assert foreign(path.parent, env="CartPole-v1").mismatches, "--env goes before the card"


def test_model_folder_whose_statistics_are_of_rewards_alone_is_played_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = acrobot(tmp_path / "ppo-Acrobot-v1.zip")
    (tmp_path / "README.md").write_text(CARD)
    write_statistics(tmp_path / "Acrobot-v1" / "vecnormalize.pkl", 6, monkeypatch, norm_obs=False)
    teacher = foreign(tmp_path)
    assert (teacher.foreign.normalization, teacher.mismatches) == (None, ())
    assert teacher.path == path


# What does not fit


def normalized(folder: Path) -> Path:
    path = balancing_zip(folder / "CartPole-v1_1" / "CartPole-v1.zip")
    (path.parent / "CartPole-v1").mkdir()
    (path.parent / "CartPole-v1" / "config.yml").write_text(CONFIG.format("true"))
    return path


def stacked(folder: Path) -> Path:
    path = balancing_zip(folder / "ppo-CartPole-v1.zip")
    (folder / "config.yml").write_text(CONFIG.format("false") + "  - - frame_stack\n    - 4\n")
    (folder / "args.yml").write_text(ARGS.replace("Acrobot", "CartPole"))
    return path


def pendulum(low: float, high: float, dimensions: int = 1) -> Callable[[Path], Path]:
    actions = spaces.Box(low, high, (dimensions,))
    return lambda folder: acting_zip(folder / "ppo-Pendulum-v1.zip", space_of("Pendulum-v1"), actions)


def cartpole(observations: int = 4, actions: spaces.Space[Any] | None = None) -> Callable[[Path], Path]:
    box, chosen = spaces.Box(-9, 9, (observations,)), actions or spaces.Discrete(2)
    return lambda folder: acting_zip(folder / "ppo-CartPole-v1.zip", box, chosen)


class Flat(gymnasium.Env[Any, Any]):
    """Images of 2 x 3 bytes in two channels, three steps."""

    observation_space = spaces.Box(0, 255, (2, 3, 2), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros((2, 3, 2), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return np.zeros((2, 3, 2), np.uint8), float(action), self.age == 3, False, {}


def flat(shape: tuple[int, ...], dtype: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        box = spaces.Box(0, 255, shape, dtype)
        return acting_zip(folder / "ppo-Flat-v0.zip", box, spaces.Discrete(2))

    return write


@pytest.fixture(autouse=True, scope="module")
def images() -> Any:
    gymnasium.register("Flat-v0", lambda **options: Flat())
    yield
    del gymnasium.registry["Flat-v0"]


PLAYABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "statistics": (normalized, "trained on normalized observations, and their statistics are not here: .*--normalization"),
    "stack": (stacked, "trained on a stack of 4 observations, CartPole-v1 gives 1"),
    "range": (pendulum(-1, 1), r"its actions lie in \[-1.0\] to \[1.0\], those of Pendulum-v1 in \[-2.0\] to \[2.0\]"),
    "scaling": (flat((2, 2, 3), np.float32), "it reads float32 observations, Flat-v0 gives uint8: another scaling"),
}  # fmt: skip
HOPELESS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "actions": (cartpole(actions=spaces.Discrete(3)), "it chooses among 3 actions, CartPole-v1 has 2 discrete actions"),
    "dimensions": (pendulum(-2, 2, 2), "its actions have 2 dimensions, Pendulum-v1 has continuous actions of 1"),
    "kind of actions": (cartpole(actions=spaces.Box(-1, 1, (2,))), "CartPole-v1 has 2 discrete actions, which gaussian"),
    "shape": (cartpole(observations=5), r"it reads observations of shape \(5,\), CartPole-v1 gives \(4,\)"),
    "channels": (flat((3, 2, 2), np.float32), r"shape \(3, 2, 2\), Flat-v0 gives \(2, 2, 3\): another channel order"),
}  # fmt: skip


def verbs(path: Path, out: Path) -> list[Callable[[TeacherOptions | None], Any]]:
    config = changed(QUICK, steps=24, warmup=4, evaluate_episodes=1)
    return [
        lambda options: distill(path, out / "run", config, options=options),
        lambda options: record(path, out / "data", RecordConfig(steps=8, num_envs=2), options=options),
        lambda options: evaluate([path], EvaluateConfig(episodes=1), json=out / "scores.json", options=options),
    ]


@pytest.mark.parametrize("case", [*PLAYABLE, *HOPELESS])
@pytest.mark.slow
def test_what_does_not_fit_stops_every_verb_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, says = (PLAYABLE | HOPELESS)[case]
    out = tmp_path / "out"
    out.mkdir()
    path = make(tmp_path)
    mismatches = foreign(path).mismatches
    assert any(re.search(says, mismatch) for mismatch in mismatches), mismatches
    for verb in verbs(path, out):
        refused(verb, None, says=rf"{says}.*\(--accept-mismatch goes on all the same\)")
        refused(verb, TeacherOptions(), says=says)
        assert not list(out.iterdir())


class Recorder(Silent):
    """Keeps the lines that stay."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("case", PLAYABLE)
@pytest.mark.slow
def test_accepted_mismatch_goes_on_and_is_said(tmp_path: Path, case: str) -> None:
    make, says = PLAYABLE[case]
    out, path = tmp_path / "out", make(tmp_path)
    out.mkdir()
    for verb in verbs(path, out):
        verb(ACCEPT)
    assert {made.name for made in out.iterdir()} == {"run", "data", "scores.json"}
    assert json.loads((out / "run" / "config.json").read_text())["teacher_options"]["accept_mismatch"] is True
    progress = Recorder()
    load_fitting(path, options=ACCEPT, progress=progress)
    warned = [line for line in progress.lines if line.startswith(f"warning: {path.name}: ")]
    assert len(warned) == len(foreign(path).mismatches)
    assert any(re.search(says, line) for line in warned)


@pytest.mark.parametrize("case", HOPELESS)
def test_mismatch_that_nothing_can_be_played_with_is_one_line_even_if_accepted(tmp_path: Path, case: str) -> None:
    make, _ = HOPELESS[case]
    out, path = tmp_path / "out", make(tmp_path)
    out.mkdir()
    for verb in verbs(path, out):
        refused(verb, ACCEPT, says="cannot play|do not suit")
        assert not list(out.iterdir())


def test_resuming_with_other_options_of_the_teacher_is_refused(tmp_path: Path) -> None:
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    distill(path, tmp_path / "run", QUICK)
    refused(distill, path, tmp_path / "run", QUICK, resume=True, options=ACCEPT, says="begun with teacher_options")


def test_teacher_no_better_than_chance_is_refused_when_it_is_first_played(tmp_path: Path) -> None:
    """It pushes the pole down: some 9 steps a game, where random play gets 22."""
    path = balancing_zip(tmp_path / "ppo-CartPole-v1.zip", sign=-1.0)
    config = changed(QUICK, evaluate_episodes=10)
    for _ in range(2):  # the same command can be given again
        refused(
            distill,
            path,
            tmp_path / "run",
            config,
            says=r"mean return in 10 games is \d\.\d, that of random play \d+\.\d \[.*--accept-mism",
        )
        assert not (tmp_path / "run").exists()
    progress = Recorder()
    distill(path, tmp_path / "run", config, options=ACCEPT, progress=progress)
    assert any(
        re.match(r"warning: the teacher's mean return in 10 games is \d\.\d, that of random", line)
        for line in progress.lines
    )
    level = next(line for line in read_metrics(tmp_path / "run") if line["event"] == "teacher")
    assert level["mean"] < 12


# From the zip to the page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A zip that balances, and the run folder of its student."""
    root = tmp_path_factory.mktemp("made")
    teacher = balancing_zip(root / "ppo-CartPole-v1.zip")
    distill(teacher, root / "run", changed(QUICK, student="mlp:8", steps=3000, num_envs=8))
    return teacher, root / "run"


def test_run_of_a_foreign_teacher_says_what_it_was_made_from(made: tuple[Path, Path]) -> None:
    teacher, run = made
    settings = json.loads((run / "config.json").read_text())
    assert settings["teacher"] == str(teacher)
    assert settings["teacher_options"] == TeacherOptions().as_dict()
    level = next(line for line in read_metrics(run) if line["event"] == "teacher")
    assert len(level["returns"]) == 3, "no file says how well it plays, so it was measured"
    assert level["mean"] > 100


@pytest.mark.slow
def test_student_of_a_zip_keeps_its_play_and_the_table_tells_both(made: tuple[Path, Path]) -> None:
    teacher, run = made
    first, second = evaluate([teacher, run], EvaluateConfig(episodes=10, epsilon=0.0))
    assert (first.network, second.network) == ("PPO", "mlp:8")
    assert (first.bytes, first.weights_sha256) == (
        teacher.stat().st_size,
        hashlib.sha256(teacher.read_bytes()).hexdigest(),
    )
    # The critic is not played: 2 * 4 + 2 + 2 * 2 + 2 and 4 * 8 + 8 + 8 * 2 + 2.
    assert (first.parameters, second.parameters) == (16, 58)
    assert second.parameter_share == 58 / 16
    assert (first.ratio, first.agreement) == (1.0, 1.0)
    assert second.ratio == pytest.approx(second.mean / first.mean)
    assert second.ratio > 0.8
    assert second.agreement > 0.75, "a coin agrees in half of the states"


def test_first_policy_says_what_the_files_after_it_play(tmp_path: Path, made: tuple[Path, Path]) -> None:
    """A state dict names no environment."""
    path = of_kind("state dict", tmp_path)
    options = TeacherOptions(teacher_network="mlp:8,5")
    scores = evaluate([made[1], path], EvaluateConfig(episodes=1, epsilon=1.0), options=options)
    assert [score.task["env"] for score in scores] == ["CartPole-v1", "CartPole-v1"]
    refused(evaluate, [path, made[1]], EvaluateConfig(episodes=1), options=options, says="--env|shape")


@pytest.mark.slow
def test_page_names_the_foreign_teachers_algorithm(tmp_path: Path, made: tuple[Path, Path]) -> None:
    teacher, run = made
    page = report(run, tmp_path / "page.html", config=ReportConfig(episodes=2, seconds=0.5)).read_text()
    assert "<dt>algorithm</dt><dd>PPO</dd>" in page
    assert "<dt>format</dt><dd>Stable-Baselines3 zip</dd>" in page
    assert [score.network for score in read_scores(run / "scores.json")] == ["PPO", "mlp:8"]
    assert hashlib.sha256(teacher.read_bytes()).hexdigest() in page
    elsewhere = ReportConfig(episodes=0, seconds=0, teacher=str(shutil.copy(teacher, tmp_path / "moved.zip")))
    moved = report(run, tmp_path / "moved.html", config=elsewhere).read_text()
    assert "<dt>algorithm</dt><dd>PPO</dd>" in moved, "the run says what it plays, its name no longer does"


@pytest.mark.slow
def test_dataset_of_a_zip_is_distilled_with_the_same_zip(tmp_path: Path) -> None:
    teacher = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    dataset = record(teacher, tmp_path / "data", RecordConfig(steps=400, num_envs=4))
    assert dataset.card["teacher"]["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert dataset.card["teacher"]["provenance"]["algorithm"] == "PPO"
    shard = open_dataset(tmp_path / "data").read(0)
    lean = shard.frames @ SIDE.astype(np.float64)
    np.testing.assert_allclose(shard.values, 20 * np.tanh(np.stack([-lean, lean], axis=1)), rtol=1e-4, atol=1e-4)

    config = changed(QUICK, dataset=str(tmp_path / "data"), updates=30, augment=0.5)
    distill(teacher, tmp_path / "same", config)
    other = balancing_zip(tmp_path / "other" / "ppo-CartPole-v1.zip", scale=10.0)
    refused(
        distill, other, tmp_path / "run", config, says="another teacher labelled the dataset .*--augment 0 --accept"
    )
    assert not (tmp_path / "run").exists()
    alone = changed(config, augment=0.0)
    refused(distill, other, tmp_path / "run", alone, says="another teacher labelled the dataset .*--accept-mismatch")
    distill(other, tmp_path / "run", alone, options=TeacherOptions(accept_mismatch=True))
    refused(record, other, tmp_path / "data", RecordConfig(steps=8), append=True, says="recorded with teacher = ")
    assert record(teacher, tmp_path / "data", RecordConfig(steps=8), append=True).control_steps == 408


@pytest.mark.slow
def test_stopped_run_of_a_foreign_teacher_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    teacher = balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    config = changed(QUICK, steps=400, evaluate_every=100)
    distill(teacher, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "run", config, progress=PressesCtrlC(1, after=5))  # the teacher played 3 of them
    assert (tmp_path / "run" / "checkpoint" / "state").is_file()
    assert not (tmp_path / "run" / "policy").exists()
    distill(teacher, tmp_path / "run", config, resume=True)
    ends = [(tmp_path / name / "policy" / "weights.safetensors").read_bytes() for name in ("run", "whole")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("scores", "kind", "loss"), [("gaussian", "gaussian", "kl_gaussian"), ("deterministic", "actions", "mse_mean")]
)
@pytest.mark.slow
def test_deterministic_and_gaussian_files_teach_continuous_actions(
    tmp_path: Path, scores: str, kind: ScoreKind, loss: str
) -> None:
    """A torque against the speed: the Gaussian's mean, or the action itself."""
    if scores == "gaussian":
        path = acting_zip(tmp_path / "ppo-Pendulum-v1.zip", space_of("Pendulum-v1"), spaces.Box(-2, 2, (1,)))
    else:
        draw = Draw()
        for part in ("actor", "actor_target"):
            draw.mlp(f"{part}.mu", 3, 8, 1)
        for part in ("critic.qf0", "critic.qf1", "critic_target.qf0", "critic_target.qf1"):
            draw.mlp(part, 4, 8, 1)
        path = make_zip(
            tmp_path / "td3-Pendulum-v1.zip", "TD3", draw.tensors, space_of("Pendulum-v1"), spaces.Box(-2, 2, (1,))
        )
    teacher = foreign(path)
    assert (teacher.score_kind, teacher.mismatches) == (kind, ())
    student = distill(path, tmp_path / "run", changed(QUICK, steps=1000), options=ACCEPT)
    assert student.score_kind == kind
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if line["event"] == "train"]
    assert np.mean(losses[-10:]) < np.mean(losses[:3])
    assert all(math.isfinite(value) for value in losses), loss


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [
        ((-1.2, -0.07), (0.6, 0.07), True),
        ((-1.2, -np.inf), (0.6, np.inf), True),
        ((-np.inf, -3.4e38), (np.inf, 3.4e38), True),
        ((-2.0, -0.1), (1.0, 0.1), True),  # another version's; random play stays within
        ((-0.1, -0.07), (0.6, 0.07), False),  # random play begins at -0.6 to -0.4
        ((0, 0), (255, 255), False),
        ((-12, -0.07), (60, 0.07), False),
    ],
)
def test_another_range_of_observations_is_another_scaling(tmp_path: Path, low: Any, high: Any, fits: bool) -> None:
    observations = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    path = acting_zip(tmp_path / "x.zip", observations, spaces.Discrete(3))
    teacher = foreign(path, env="MountainCar-v0")
    assert bool(teacher.mismatches) is not fits
    assert fits or "another scaling" in teacher.mismatches[0]
