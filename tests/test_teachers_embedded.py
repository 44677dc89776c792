"""Statistics in the same file as the policy: used where their formula is known, otherwise named; never dropped in silence."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from rldistill.formats.embedded import take_statistics
from rldistill.formats.tensors import files as tensor_files
from rldistill.formats.tensors.files import load_tensors
from rldistill.progress import Silent
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_fitting, load_teacher
from rldistill.types import UserError

MEAN = np.array([1.0, -2.0, 0.5, 3.0])
DEVIATION = np.array([0.5, 2.0, 0.001, 1.0])
ROWS = np.array([[1.5, 2.0, 0.4, 3.0], [0.0, 0.0, 0.0, 0.0], [90.0, -90.0, 0.51, 2.0]], np.float32)
OPTIONS = TeacherOptions(teacher_network="mlp:8:tanh", teacher_scores="logits")
Numbers = npt.NDArray[np.float64]


def network(prefix: str = "", inputs: int = 4, outputs: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A tanh network of one hidden layer."""
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs))
    return {f"{prefix}{name}": tensor for name, tensor in layers.state_dict().items()}


def expected(weights: dict[str, torch.Tensor], normalized: Numbers, prefix: str = "") -> Numbers:
    """The network's outputs, by hand."""
    plain = {name.removeprefix(prefix): tensor.double().numpy() for name, tensor in weights.items()}
    hidden = np.tanh(normalized.astype(np.float32) @ plain["0.weight"].T + plain["0.bias"])
    return np.asarray(hidden @ plain["2.weight"].T + plain["2.bias"])


def t(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


SKRL = {"running_mean": t(MEAN), "running_variance": t(DEVIATION**2), "current_count": t(9.0)}
RSL = {
    "_mean": t(MEAN)[None].float(),
    "_var": t(DEVIATION**2)[None].float(),
    "_std": t(DEVIATION)[None].float(),
    "count": torch.tensor(9),
}
ONES = {"_mean": torch.zeros(1, 4), "_var": torch.ones(1, 4), "_std": torch.ones(1, 4), "count": torch.tensor(9)}
GAMES = {"running_mean": t(MEAN), "running_var": t(DEVIATION**2), "count": t(9.0)}
SCALAR = {"running_mean": t([5.0]), "running_var": t([7.0]), "count": t(9.0)}


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def skrl(x: Numbers) -> Numbers:
    return np.clip((x - MEAN) / (DEVIATION + 1e-8), -5, 5)


def rsl(x: Numbers) -> Numbers:
    return (x - MEAN) / (DEVIATION + 1e-2)


def games(x: Numbers) -> Numbers:
    return np.clip((x - MEAN) / np.sqrt(DEVIATION**2 + 1e-5), -5, 5)


def vec(x: Numbers) -> Numbers:
    return np.clip((x - MEAN) / np.sqrt(DEVIATION**2 + 1e-8), -10, 10)


OBS_RMS = {"mean": t(MEAN), "var": t(DEVIATION**2), "count": t(9.0)}
FORMULAS: dict[str, tuple[Any, Callable[[Numbers], Numbers]]] = {
    "skrl": ({"policy": network(), "value": network(outputs=1), "observation_preprocessor": SKRL}, skrl),
    "skrl of before": ({"policy": network(), "optimizer": {}, "state_preprocessor": SKRL}, skrl),
    "skrl of two": (
        {"policy": network(), "observation_preprocessor": SKRL, "state_preprocessor": {**SKRL, "running_mean": t(MEAN + 1)}},
        skrl,
    ),
    "skrl with values": (
        {"policy": network(), "state_preprocessor": SKRL, "value_preprocessor": {**SKRL, "running_mean": t(MEAN + 1)}},
        skrl,
    ),
    "rsl_rl 1": (
        {"model_state_dict": network("actor.") | network("critic.", outputs=1), "obs_norm_state_dict": RSL, "iter": 3,
         "privileged_obs_norm_state_dict": ONES, "infos": None},
        rsl,
    ),
    "rsl_rl 3": (
        {"model_state_dict": network("actor.") | network("critic.", outputs=1) | under("actor_obs_normalizer", RSL)
         | under("critic_obs_normalizer", ONES)},
        rsl,
    ),
    "rsl_rl 5": (
        {"actor_state_dict": under("obs_normalizer", RSL) | network("mlp."),
         "critic_state_dict": under("obs_normalizer", ONES) | network("mlp.", outputs=1, seed=1)},
        rsl,
    ),
    "FastTD3": (
        {"actor_state_dict": network("net."), "qnet_state_dict": network("qnet.", inputs=6, seed=1),
         "obs_normalizer_state": RSL, "critic_obs_normalizer_state": ONES},
        rsl,
    ),
    "rl_games": (
        {"model": network("a2c_network.actor_mlp.") | under("value_mean_std", SCALAR) | under("running_mean_std", GAMES)},
        games,
    ),
    "rl_games of before": ({"model": network(), "running_mean_std": GAMES, "reward_mean_std": SCALAR}, games),
    "obs_rms": ({"model": network(), "obs_rms": OBS_RMS}, vec),
    "obs_rms of NumPy": ({"agent": network(), "obs_rms": {"mean": MEAN, "var": DEVIATION**2, "count": 9}}, vec),
    "obs_rms inside": (network("actor.") | under("obs_rms", OBS_RMS), vec),
}  # fmt: skip


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def loaded(path: Path, options: TeacherOptions = OPTIONS) -> ForeignTeacher:
    teacher = load_teacher(path, env="CartPole-v1", options=options)
    assert isinstance(teacher, ForeignTeacher)
    return teacher


@pytest.mark.parametrize("tool", FORMULAS)
def test_statistics_of_known_tools_are_applied_as_the_tool_does(tmp_path: Path, tool: str) -> None:
    value, formula = FORMULAS[tool]
    teacher = loaded(saved(tmp_path / "policy.pt", value))
    assert not teacher.mismatches
    assert any("normalized with its own" in note for note in teacher.notes)
    wanted = expected(network(), formula(ROWS.astype(np.float64)))
    np.testing.assert_allclose(teacher(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)


class RunningMeanStd:
    """As tianshou's, or anybody's: it is pickled by its name, and never imported."""

    def __init__(self, epsilon: float, limit: float) -> None:
        self.mean, self.var, self.count, self.eps, self.clip_max = MEAN, DEVIATION**2, 9, epsilon, limit


@pytest.mark.parametrize(("module", "admitted"), [("tianshou.utils.statistics", True), ("mine.moments", False)])
def test_moments_of_a_class_are_those_of_its_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, admitted: bool
) -> None:
    for end in range(1, module.count(".") + 2):
        monkeypatch.setitem(sys.modules, ".".join(module.split(".")[:end]), ModuleType(module))
    monkeypatch.setattr(sys.modules[module], "RunningMeanStd", RunningMeanStd, raising=False)
    monkeypatch.setattr(RunningMeanStd, "__module__", module)
    path = saved(tmp_path / "policy.pt", {"model": network(), "obs_rms": RunningMeanStd(1e-4, 3.0)})
    teacher = loaded(path)
    if not admitted:
        assert any("obs_rms" in mismatch for mismatch in teacher.mismatches)
        return
    normalized = np.clip((ROWS - MEAN) / np.sqrt(DEVIATION**2 + 1e-4), -3, 3)
    wanted = expected(network(), normalized)
    np.testing.assert_allclose(teacher(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("old", [False, True])
def test_a_running_mean_std_object_is_read_without_being_made(tmp_path: Path, old: bool) -> None:
    from gymnasium.wrappers.utils import RunningMeanStd

    moments = RunningMeanStd(shape=(4,))
    moments.mean, moments.var = MEAN, DEVIATION**2
    path = tmp_path / "policy.pt"
    torch.save({"model": network(), "obs_rms": moments}, path, _use_new_zipfile_serialization=not old)
    if old:
        with pytest.raises(UserError, match="RunningMeanStd"):
            loaded(path)
        return
    wanted = expected(network(), vec(ROWS.astype(np.float64)))
    np.testing.assert_allclose(loaded(path)(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_safetensors_and_cleanrl_are_no_exceptions(tmp_path: Path) -> None:
    tensors = {name: tensor.float() for name, tensor in (network("actor.") | under("obs_rms", OBS_RMS)).items()}
    safetensors.torch.save_file(tensors, tmp_path / "policy.safetensors")
    wanted = expected(network(), vec(ROWS.astype(np.float64)))
    read = loaded(tmp_path / "policy.safetensors")
    np.testing.assert_allclose(read(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-3, atol=1e-3)
    actor = network("actor_mean.", inputs=3, outputs=1) | {"actor_logstd": torch.zeros(1, 1)}
    agent = actor | network("critic.", inputs=3, outputs=1)
    three = {"mean": t(MEAN[:3]), "var": t(DEVIATION[:3] ** 2), "count": t(9.0)}
    path = saved(tmp_path / "ppo.cleanrl_model", {"agent": agent, "obs_rms": three})
    teacher = load_teacher(path, env="Pendulum-v1", options=TeacherOptions(teacher_network="mlp:8:tanh"))
    assert isinstance(teacher, ForeignTeacher)
    assert not teacher.mismatches
    rows = torch.from_numpy(ROWS[:, :3])
    scaled = np.clip((ROWS[:, :3] - MEAN[:3]) / np.sqrt(DEVIATION[:3] ** 2 + 1e-8), -10, 10)
    wanted = expected(network(inputs=3, outputs=1, seed=0), scaled)
    np.testing.assert_allclose(teacher(rows)[:, :1].numpy(), wanted, rtol=1e-3, atol=1e-3)


UNKNOWN: dict[str, tuple[Any, str]] = {
    "a pair of one's own": (network("net.") | {"obs_mean": t(MEAN), "obs_std": t(DEVIATION)}, "obs"),
    "beside": ({"model": network(), "state_norm": {"mean": t(MEAN), "std": t(DEVIATION)}}, "state_norm"),
    "an epsilon of its own": ({"model": network(), "obs_rms": {**OBS_RMS, "epsilon": t(0.1)}}, "obs_rms"),
    "two that differ": (
        {"model": network(), "train_obs_rms": OBS_RMS, "test_obs_rms": {**OBS_RMS, "mean": t(MEAN + 1)}},
        "test_obs_rms",
    ),
    "of another size": ({"model": network(), "obs_rms": {"mean": t(MEAN[:2]), "var": t(DEVIATION[:2])}}, "obs_rms"),
    "no mean and variance": ({"model": network(), "normalizer": {"low": t(MEAN), "high": t(MEAN + 1)}}, "normalizer"),
    "a list": ({"model": network(), "obs_rms": [MEAN.tolist(), (DEVIATION**2).tolist(), 9.0]}, "obs_rms"),
    "a tuple of tensors": ({"model": network(), "ob_rms": (t(MEAN), t(DEVIATION))}, "ob_rms"),
    "a mean alone": ({"model": network(), "obs_mean": t(MEAN)}, "obs_mean"),
    "pfrl": (
        {"model": network(), "obs_normalizer": {"_mean": RSL["_mean"], "_var": RSL["_var"], "count": t(3.0)}},
        "obs_norm",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_others_stop_by_name_and_the_named_way_out_works(tmp_path: Path, kind: str) -> None:
    value, name = UNKNOWN[kind]
    path = saved(tmp_path / "policy.pt", value)
    with pytest.raises(UserError, match=rf"{name}.*--normalization"):
        load_fitting(path, env="CartPole-v1", options=OPTIONS, progress=Silent())
    written = tmp_path / "mine.json"
    written.write_text(json.dumps({"mean": MEAN.tolist(), "std": DEVIATION.tolist(), "clip": None}))
    options = TeacherOptions(**{**vars(OPTIONS), "normalization": written})
    teacher = load_fitting(path, env="CartPole-v1", options=options, progress=Silent())
    wanted = expected(network(), (ROWS - MEAN) / DEVIATION)
    assert isinstance(teacher, ForeignTeacher)
    np.testing.assert_allclose(teacher(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_statistics_that_are_named_go_before_the_files_own_and_that_is_a_note(tmp_path: Path) -> None:
    path = saved(tmp_path / "policy.pt", FORMULAS["skrl"][0])
    written = tmp_path / "mine.json"
    written.write_text(json.dumps({"mean": [0, 0, 0, 0], "std": [1, 1, 1, 1]}))
    teacher = loaded(path, TeacherOptions(**{**vars(OPTIONS), "normalization": written}))
    wanted = expected(network(), ROWS.astype(np.float64))
    np.testing.assert_allclose(teacher(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert any("mine.json takes the place" in note for note in teacher.notes)
    assert not any("normalized with its own" in note for note in teacher.notes)


@pytest.mark.parametrize(
    "value",
    [
        {"model": network(), "value_normalizer": GAMES, "ret_rms": OBS_RMS, "reward_scaler": SCALAR},
        {"model": network(), "critic_obs_normalizer_state": RSL, "optimizer": {"mean": t(MEAN), "std": t(DEVIATION)}},
        {"model": network(), "obs_rms": None, "count": 3},
    ],
)
def test_what_normalizes_something_else_is_left_aside(tmp_path: Path, value: Any) -> None:
    teacher = loaded(saved(tmp_path / "policy.pt", value))
    assert not teacher.mismatches
    wanted = expected(network(), ROWS.astype(np.float64))
    np.testing.assert_allclose(teacher(torch.from_numpy(ROWS)).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_batch_normalization_stays_a_refusal(tmp_path: Path) -> None:
    counted = {**GAMES, "num_batches_tracked": torch.tensor(3)}
    path = saved(tmp_path / "policy.pt", network("net.") | under("bn", counted))
    with pytest.raises(UserError, match="BatchNorm"):
        loaded(path)


# --- the part that acts, and the deviations of continuous actions


def test_deviations_beside_the_layers_make_a_gaussian(tmp_path: Path) -> None:
    actor = network("mlp.", inputs=3, outputs=1)
    value = {
        "actor_state_dict": actor | {"distribution.std_param": torch.tensor([0.5])},
        "critic_state_dict": network(),
    }
    options = TeacherOptions(teacher_network="mlp:8:tanh")
    teacher = load_teacher(saved(tmp_path / "a.pt", value), env="Pendulum-v1", options=options)
    assert teacher.score_kind == "gaussian"
    scores = teacher(torch.zeros(2, 3)).numpy()
    np.testing.assert_allclose(scores[:, 0], expected(network(inputs=3, outputs=1), np.zeros((2, 3)))[:, 0], rtol=1e-5)
    np.testing.assert_allclose(scores[:, 1], np.log(0.5), rtol=1e-6)
    path = saved(tmp_path / "b.pt", actor | {"log_std": torch.tensor([-1.0])})
    with pytest.raises(UserError, match="--teacher-scores gaussian or deterministic"):
        load_teacher(path, env="Pendulum-v1", options=options)
    for kind, width in (("gaussian", 2), ("deterministic", 1)):
        chosen = TeacherOptions(teacher_network="mlp:8:tanh", teacher_scores=kind)  # type: ignore[arg-type]
        assert load_teacher(path, env="Pendulum-v1", options=chosen)(torch.zeros(2, 3)).shape == (2, width)


def test_q_networks_of_a_checkpoint_are_known_by_the_name_of_their_part(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"q_network": network(), "target_q_network": network(seed=1)})
    teacher = loaded(path, TeacherOptions(teacher_network="mlp:8:tanh"))
    assert teacher.score_kind == "q_values"
    path = saved(tmp_path / "b.pt", {"policy": network(), "value": network(outputs=1)})
    assert loaded(path, TeacherOptions(teacher_network="mlp:8:tanh")).score_kind == "logits"


# --- the cases


@pytest.mark.parametrize(
    ("name", "env", "options", "wanted"),
    [
        ("skrl-CartPole-preprocessor.pt", "CartPole-v1", TeacherOptions(teacher_network="mlp:64,64:tanh"), 500.0),
        ("rslrl-model.pt", "Pendulum-v1", TeacherOptions(teacher_network="mlp:64,64:tanh"), -497.0),
    ],
)
@pytest.mark.slow
def test_cases_play_with_their_statistics(
    cases: Path, name: str, env: str, options: TeacherOptions, wanted: float
) -> None:
    from rldistill.verbs.evaluate import EvaluateConfig, evaluate

    config = EvaluateConfig(env=env, episodes=10, epsilon=0.0)
    score, *_ = evaluate([cases / "policies" / name], config, options=options, progress=Silent())
    assert abs(score.mean - wanted) <= 0.2 * abs(wanted)


# --- hostile files of tensors and objects


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"K\x05\x85", b"K\x50\x85", "does not fit its storage"),  # the size of a tensor of five numbers
        (b"K\x01\x85", b"K\x09\x85", "does not fit its storage"),  # its stride
        (b"K\x05t", b"K\x06t", "declares 24 bytes"),  # the length of its storage
    ],
)
def test_a_tensor_beside_an_object_stays_within_its_storage(tmp_path: Path, old: bytes, new: bytes, text: str) -> None:
    path = saved(tmp_path / "a.pt", {"weight": torch.arange(5.0), "array": MEAN})
    assert load_tensors(path.read_bytes(), "a")["weight"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            patched = content.replace(old, new, 1) if name.endswith("data.pkl") else content
            assert patched != content or not name.endswith("data.pkl")
            archive.writestr(name, patched)
    with pytest.raises(UserError, match=text):
        load_tensors(path.read_bytes(), "a")


def test_containers_without_end_are_refused(tmp_path: Path) -> None:
    nested: Any = {"array": MEAN}
    for _ in range(200):
        nested = [nested]
    with pytest.raises(UserError, match="nested without end"):
        loaded(saved(tmp_path / "a.pt", nested))
    itself: list[Any] = [MEAN]
    itself.append(itself)
    with pytest.raises(UserError, match="nested without end"):
        loaded(saved(tmp_path / "b.pt", itself))


def test_thousands_of_statistics_are_taken_once_each() -> None:
    pairs = {f"part{n}.running_{role}": torch.ones(1) for n in range(5000) for role in ("mean", "var")}
    several = {
        "obs_mean": torch.zeros(2),
        "obs_std": torch.ones(2),
        "reward_mean": torch.zeros(1),
        "reward_var": torch.ones(1),
    }
    taken = take_statistics({**pairs, **several, "count": torch.ones(1), "layer.weight": torch.ones(2, 2)})
    assert len(taken.groups) == 5002
    assert {group.name for group in taken.groups} >= {"part0", "part4999", "obs", "reward"}
    assert set(taken.rest) == {"layer.weight"}


def test_views_of_one_storage_again_and_again_are_not_copied_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "MOST_BYTES", 8 << 20)
    copies: list[int] = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self: copies.append(self.nbytes) or contiguous(self))
    numbers = torch.zeros(1024, 1024)
    torch.save({"obs_rms": np.zeros(3), **{f"w{n}": numbers[:, n:].T for n in range(64)}}, tmp_path / "views.pth")
    with pytest.raises(UserError, match="again and again"):
        load_tensors((tmp_path / "views.pth").read_bytes(), "views.pth")
    assert sum(copies) <= 16 << 20
