"""Outputs of ONNX and TorchScript: which one is learnt from, what it gives, and what continuous actions are in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rldistill.policies import SavedPolicy
from rldistill.progress import Silent
from rldistill.teachers import ForeignTeacher, TeacherOptions, load_fitting, load_teacher
from rldistill.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")

OBSERVATIONS = torch.tensor([[1.0, 0.0, 0.0], [0.5, -0.8, 3.0], [-1.0, 0.1, -8.0]])
WEIGHT = torch.tensor([[0.3, -2.0, 0.7]])
UNIT = torch.tanh(OBSERVATIONS @ WEIGHT.T)


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred observations tell as much of these policies as a thousand."""
    monkeypatch.setattr("rldistill.formats.units._STEPS", 100)


def load(path: Path, env: str = "Pendulum-v1", **options: Any) -> ForeignTeacher:
    teacher = load_fitting(path, env=env, options=TeacherOptions(**options), progress=Silent())
    assert isinstance(teacher, ForeignTeacher)
    return teacher


def refused(path: Path, *, says: str, env: str = "Pendulum-v1", **options: Any) -> str:
    with pytest.raises(UserError, match=says) as caught:
        load(path, env, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def onnx_file(
    path: Path,
    nodes: list[tuple[Any, ...]],
    outputs: dict[str, list[Any]],
    *,
    inputs: dict[str, list[Any]] | None = None,
    kinds: dict[str, str] | None = None,
    **weights: Any,
) -> Path:
    """A model of nodes (operator, inputs, outputs, attributes); types are FLOAT but where `kinds` says otherwise."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper

    def value(name: str, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, getattr(onnx.TensorProto, (kinds or {}).get(name, "FLOAT")), shape)

    made = [helper.make_node(node[0], node[1], node[2], **(node[3] if len(node) > 3 else {})) for node in nodes]
    graph = helper.make_graph(
        made,
        "policy",
        [value(name, shape) for name, shape in (inputs or {"obs": ["batch", 3]}).items()],
        [value(name, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(weight), name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def actor(path: Path, *, name: str = "actions", scale: float = 1.0) -> Path:
    """An actor in ONNX: `scale * tanh(obs @ weight)`."""
    return onnx_file(
        path,
        [("MatMul", ["obs", "w"], ["m"]), ("Tanh", ["m"], ["t"]), ("Mul", ["t", "scale"], [name])],
        {name: ["batch", 1]},
        w=WEIGHT.T.numpy(),
        scale=np.float32(scale),
    )


def linear(path: Path, number: int, names: dict[str, str], **more: Any) -> Path:
    """A model of CartPole with some outputs, each an operator on two scores (or what `more` has for it)."""
    weight = np.arange(4 * number, dtype=np.float32).reshape(4, number)
    nodes: list[tuple[Any, ...]] = [("MatMul", ["obs", "w"], ["s"])]
    for name, operator in names.items():
        given = {"ArgMax": {"axis": 1, "keepdims": 0}}.get(operator, {})
        nodes.append((operator, ["s"], [name], given))
    kinds = {name: "INT64" for name, operator in names.items() if operator == "ArgMax"}
    shapes: dict[str, list[Any]] = {
        name: ["batch"] if operator == "ArgMax" else ["batch", number] for name, operator in names.items()
    }
    return onnx_file(path, nodes, shapes, inputs={"obs": ["batch", 4]}, kinds=kinds, w=weight, **more)


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.linear(x))
        return out


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return path


@pytest.fixture(params=["onnx", "pt"])
def unit_actor(request: Any, tmp_path: Path) -> Path:
    if request.param == "onnx":
        return actor(tmp_path / "actor.onnx")
    return script(Actor(), tmp_path / "actor.pt")


@pytest.mark.slow
def test_actions_of_minus_one_to_one_in_a_wider_range_are_asked_about(unit_actor: Path) -> None:
    """Pendulum's are -2 to 2: played as they are, a good actor is at half its strength."""
    options: dict[str, Any] = {} if unit_actor.suffix == ".onnx" else {"teacher_scores": "deterministic"}
    text = refused(unit_actor, says="--teacher-actions unit", **options)
    assert "--teacher-actions environment" in text
    spread = load(unit_actor, teacher_actions="unit", **options)
    torch.testing.assert_close(spread(OBSERVATIONS), 2 * UNIT)
    np.testing.assert_allclose(spread.predict(OBSERVATIONS[0].numpy())[0], 2 * UNIT[0], rtol=1e-6)
    plain = load(unit_actor, teacher_actions="environment", **options)
    torch.testing.assert_close(plain(OBSERVATIONS), UNIT)
    assert plain.sha256 != spread.sha256
    torch.testing.assert_close(load(unit_actor, accept_mismatch=True, **options)(OBSERVATIONS), UNIT)


def test_actions_that_leave_minus_one_to_one_are_in_the_environments_units(tmp_path: Path) -> None:
    assert load(actor(tmp_path / "p.onnx", scale=2.0)).mismatches == ()


def test_a_state_dict_without_its_tanh_is_asked_about_too(tmp_path: Path) -> None:
    torch.save({"mu.weight": 0.05 * WEIGHT, "mu.bias": torch.zeros(1)}, tmp_path / "p.pt")
    options: dict[str, Any] = {"teacher_scores": "deterministic", "teacher_network": None}
    refused(tmp_path / "p.pt", says="--teacher-actions unit", **options)
    spread = load(tmp_path / "p.pt", teacher_actions="unit", **options)
    torch.testing.assert_close(spread(OBSERVATIONS), 0.1 * OBSERVATIONS @ WEIGHT.T)
    assert not any("environment's units" in note for note in spread.notes)  # the user names the units


def test_a_state_dict_of_continuous_actions_is_asked_for_its_tanh(tmp_path: Path) -> None:
    hidden, last = torch.eye(3), 5 * WEIGHT
    torch.save(
        {"l1.weight": hidden, "l1.bias": torch.zeros(3), "l2.weight": last, "l2.bias": torch.zeros(1)},
        tmp_path / "p.pt",
    )
    text = refused(tmp_path / "p.pt", teacher_network="mlp:3:elu", says="--teacher-scores deterministic")
    assert "q_values" not in text
    network = text.partition("--teacher-network ")[2].split()[0]
    wanted = 2 * torch.tanh(nn.functional.elu(OBSERVATIONS) @ last.T)
    torch.testing.assert_close(load(tmp_path / "p.pt", teacher_network=network)(OBSERVATIONS), wanted)


def test_means_of_rl_games_beyond_one_are_asked_about_too(tmp_path: Path) -> None:
    torch.save({"model": {"a2c_network.mu.weight": WEIGHT, "a2c_network.mu.bias": torch.zeros(1)}}, tmp_path / "p.pth")
    options: dict[str, Any] = {"teacher_scores": "deterministic"}
    refused(tmp_path / "p.pth", says="rl_games.*--teacher-actions unit", **options)
    means = OBSERVATIONS @ WEIGHT.T
    for units, factor in (("unit", 2.0), ("environment", 1.0)):
        teacher = load(tmp_path / "p.pth", teacher_actions=units, **options)
        torch.testing.assert_close(teacher(OBSERVATIONS), factor * means)


class Narrow(gymnasium.Env[Any, Any]):
    """Actions of -0.4 to 0.4, as Humanoid has them, and of 0 to 10."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-0.4, 0.0], np.float32), np.array([0.4, 10.0], np.float32))

    def __init__(self, high: float | None = None) -> None:
        if high is not None:
            self.action_space = gymnasium.spaces.Box(-high, high, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 0.0, False, bool(self.np_random.uniform() < 0.1), {}


@pytest.fixture
def narrow() -> Iterator[str]:
    gymnasium.register("Uneven-v0", Narrow)
    gymnasium.register("Narrow-v0", lambda: Narrow(0.4))
    gymnasium.register("Boundless-v0", lambda: Narrow(np.inf))
    yield "Narrow-v0"
    for name in ("Uneven-v0", "Narrow-v0", "Boundless-v0"):
        del gymnasium.registry[name]


def test_actions_beyond_a_narrower_range_are_asked_about(tmp_path: Path, narrow: str) -> None:
    path = actor(tmp_path / "p.onnx")
    refused(path, env=narrow, says="--teacher-actions unit")
    torch.testing.assert_close(load(path, narrow, teacher_actions="unit")(OBSERVATIONS), 0.4 * UNIT)
    assert load(actor(tmp_path / "q.onnx", scale=0.4), narrow).mismatches == ()


def test_each_action_is_spread_over_its_own_range(tmp_path: Path, narrow: str) -> None:
    path = onnx_file(
        tmp_path / "p.onnx",
        [("MatMul", ["obs", "w"], ["m"]), ("Tanh", ["m"], ["actions"])],
        {"actions": ["batch", 2]},
        w=torch.cat([WEIGHT.T, -WEIGHT.T], dim=1).numpy(),
    )
    refused(path, env="Uneven-v0", says="--teacher-actions unit")
    expected = torch.cat([0.4 * UNIT, 5 - 5 * UNIT], dim=1)
    torch.testing.assert_close(load(path, "Uneven-v0", teacher_actions="unit")(OBSERVATIONS), expected)


def test_a_range_without_ends_is_not_spread_over(tmp_path: Path, narrow: str) -> None:
    path = actor(tmp_path / "p.onnx")
    assert load(path, "Boundless-v0").mismatches == ()
    refused(path, env="Boundless-v0", teacher_actions="unit", says="without|over the range")


def test_gaussians_of_minus_one_to_one_are_spread_with_their_deviations(tmp_path: Path) -> None:
    path = onnx_file(
        tmp_path / "p.onnx",
        [("MatMul", ["obs", "w"], ["m"]), ("Tanh", ["m"], ["out"])],
        {"out": ["batch", 2]},
        w=torch.cat([WEIGHT.T, 0 * WEIGHT.T], dim=1).numpy(),
    )
    refused(path, says="--teacher-scores gaussian")
    refused(path, teacher_scores="gaussian", says="--teacher-actions unit")
    given = load(path, teacher_scores="gaussian", teacher_actions="unit")(OBSERVATIONS)
    torch.testing.assert_close(given, torch.cat([2 * UNIT, torch.full((3, 1), float(np.log(2)))], dim=1))


def test_units_are_no_question_of_discrete_actions(tmp_path: Path) -> None:
    refused(linear(tmp_path / "p.onnx", 2, {"q": "Relu"}), env="CartPole-v1", teacher_actions="unit", says="no effect")


def test_the_hint_of_continuous_actions_names_deterministic(tmp_path: Path) -> None:
    refused(actor(tmp_path / "p.onnx", name="out"), says="--teacher-scores deterministic")
    refused(script(Actor(), tmp_path / "p.pt"), says="--teacher-scores deterministic")


# --- several outputs ---


def unity(path: Path, *, both: bool = True) -> Path:
    """Unity's ML-Agents: three constants, actions that are drawn, and actions that are not."""
    nodes: list[tuple[Any, ...]] = [
        ("MatMul", ["obs_0", "w"], ["mean"]),
        ("RandomNormalLike", ["mean"], ["noise"]),
        ("Add", ["mean", "noise"], ["sample"]),
        ("Clip", ["sample", "low", "high"], ["clipped"]),
        ("Div", ["clipped", "high"], ["continuous_actions"]),
        ("Clip", ["mean", "low", "high"], ["cut"]),
        ("Div", ["cut", "high"], ["deterministic_continuous_actions"]),
        ("Identity", ["version"], ["version_number"]),
        ("Identity", ["memory"], ["memory_size"]),
    ]
    outputs: dict[str, list[Any]] = {
        "version_number": [1],
        "memory_size": [1],
        "continuous_actions": ["batch", 1],
        "deterministic_continuous_actions": ["batch", 1],
    }
    return onnx_file(
        path, nodes, outputs if both else {"continuous_actions": ["batch", 1]}, inputs={"obs_0": ["batch", 3]},
        w=WEIGHT.T.numpy(), low=np.float32(-3), high=np.float32(3), version=np.float32([3]), memory=np.float32([0]),
    )  # fmt: skip


def test_of_unitys_outputs_the_one_that_is_not_drawn_is_taken(tmp_path: Path) -> None:
    path = unity(tmp_path / "p.onnx")
    expected = 2 * (OBSERVATIONS @ WEIGHT.T).clamp(-3, 3) / 3
    teacher = load(path, teacher_actions="unit")
    torch.testing.assert_close(teacher(OBSERVATIONS), expected)
    named = load(path, teacher_actions="unit", teacher_output="deterministic_continuous_actions")
    torch.testing.assert_close(named(OBSERVATIONS), expected)
    refused(path, teacher_output="continuous_actions", teacher_actions="unit", says="drawn at random")
    refused(unity(tmp_path / "q.onnx", both=False), teacher_actions="unit", says="drawn at random")
    text = refused(path, teacher_output="bogus", says="has no output 'bogus'")
    assert "'deterministic_continuous_actions' (float32, 1)" in text


def test_several_outputs_that_fit_are_named_by_the_user(tmp_path: Path) -> None:
    path = linear(tmp_path / "p.onnx", 2, {"first": "Relu", "second": "Neg"})
    text = refused(path, env="CartPole-v1", teacher_scores="logits", says="--teacher-output")
    assert "'first'" in text
    assert "'second'" in text
    scores = load(path, "CartPole-v1", teacher_scores="logits", teacher_output="second")(torch.ones(1, 4))
    assert scores.tolist() == [[-12.0, -16.0]]
    assert load(linear(tmp_path / "q.onnx", 2, {"x": "Relu", "q": "Neg"}), "CartPole-v1").score_kind == "q_values"


def test_a_value_beside_the_scores_is_left_out_by_its_width(tmp_path: Path) -> None:
    path = onnx_file(
        tmp_path / "p.onnx",
        [("MatMul", ["obs", "v"], ["value"]), ("MatMul", ["obs", "w"], ["policy"])],
        {"value": ["batch", 1], "policy": ["batch", 2]},
        inputs={"obs": ["batch", 4]},
        v=np.ones((4, 1), np.float32),
        w=np.ones((4, 2), np.float32),
    )
    assert load(path, "CartPole-v1").provenance["output"] == "policy"


@pytest.mark.parametrize("names", [{"56": "ArgMax"}, {"action": "ArgMax", "value": "ReduceSum"}])
def test_actions_are_no_scores_and_the_line_says_what_to_export(tmp_path: Path, names: dict[str, str]) -> None:
    path = linear(tmp_path / "p.onnx", 2, names)
    for scores in (None, "logits"):
        text = refused(
            path, env="CartPole-v1", teacher_scores=scores, teacher_output=next(iter(names)), says="gives actions"
        )
        assert "get_distribution(observation).distribution.logits" in text


@pytest.mark.parametrize("beside", [[], ["value", "log_prob"], ["12", "13"]])
def test_the_number_of_an_action_as_a_float_in_a_row_is_no_score(tmp_path: Path, beside: list[str]) -> None:
    nodes: list[tuple[Any, ...]] = [
        ("MatMul", ["obs", "w"], ["l"]),
        ("ArgMax", ["l"], ["a"], {"axis": 1, "keepdims": 1}),
        ("Cast", ["a"], ["action"], {"to": 1}),
        *(("ReduceSum", ["obs", "axis"], [name], {"keepdims": 0}) for name in beside),
    ]
    outputs: dict[str, list[Any]] = {**{name: ["batch"] for name in beside}, "action": ["batch", 1]}
    weight, axis = np.eye(4, 2, dtype=np.float32), np.array([1])
    path = onnx_file(tmp_path / "p.onnx", nodes, outputs, inputs={"obs": ["batch", 4]}, w=weight, axis=axis)
    for scores in (None, "logits"):
        text = refused(path, env="CartPole-v1", teacher_scores=scores, says="gives actions")
        assert "'action'" in text


def test_stable_baselines3_documented_export_loads_as_the_line_says(tmp_path: Path) -> None:
    """The example of its documentation, and the same with the line that the message names."""
    sb3 = pytest.importorskip("stable_baselines3")
    pytest.importorskip("onnxruntime")
    models = {"ppo": sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu"),
              "dqn": sb3.DQN("MlpPolicy", "CartPole-v1", device="cpu")}  # fmt: skip

    class OnnxableSB3Policy(nn.Module):
        def __init__(self, policy: Any, way: str) -> None:
            super().__init__()
            self.policy, self.way = policy, way

        def forward(self, observation: Tensor) -> Any:
            if self.way == "actions":
                return self.policy(observation, deterministic=True)
            if self.way == "logits":
                return self.policy.get_distribution(observation).distribution.logits
            return self.policy.q_net(observation)

    def exported(algorithm: str, way: str) -> Path:
        path = tmp_path / f"{algorithm}-{way}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = {} if way == "actions" else {"output_names": [way]}
            torch.onnx.export(OnnxableSB3Policy(models[algorithm].policy, way), (torch.zeros(1, 4),), str(path),
                              opset_version=17, input_names=["input"], dynamo=False, **names)  # fmt: skip
        return path

    states = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for algorithm, way in (("ppo", "logits"), ("dqn", "q_values")):
        refused(exported(algorithm, "actions"), env="CartPole-v1", says=r"gives actions .*q_net\(observation\)")
        ours = load(exported(algorithm, way), "CartPole-v1")
        np.testing.assert_array_equal(ours.predict(states)[0], models[algorithm].predict(states, deterministic=True)[0])


# --- more inputs ---


def masked(path: Path, mask: str = "action_masks") -> Path:
    """Scores of CartPole's two actions plus a mask's logarithm, the mask of bools."""
    return onnx_file(
        path,
        [
            ("MatMul", ["obs", "w"], ["s"]),
            ("Cast", [mask], ["m"], {"to": 1}),
            ("Log", ["m"], ["l"]),
            ("Add", ["s", "l"], ["logits"]),
        ],
        {"logits": ["batch", 2]},
        inputs={"obs": ["batch", 4], mask: ["batch", 2]},
        kinds={mask: "BOOL"},
        w=np.arange(8, dtype=np.float32).reshape(4, 2),
    )


def test_an_input_beside_the_observation_is_filled_with_a_number(tmp_path: Path) -> None:
    path = masked(tmp_path / "p.onnx")
    text = refused(path, env="CartPole-v1", says="takes 2 inputs")
    assert "--teacher-input, such as action_masks=1" in text
    teacher = load(path, "CartPole-v1", teacher_input="action_masks=1")
    for rows in (1, 5):
        assert teacher(torch.ones(rows, 4)).tolist() == [[12.0, 16.0]] * rows
    refused(path, env="CartPole-v1", teacher_input="action_masks", says="is no list such as")
    refused(path, env="CartPole-v1", teacher_input="mask=1", says="no input 'mask'")
    refused(path, env="CartPole-v1", teacher_input="action_masks=1,obs=2", says="no input left")


def test_a_memory_that_is_held_still_does_not_fit(tmp_path: Path) -> None:
    path = masked(tmp_path / "p.onnx", mask="recurrent_in")
    refused(path, env="CartPole-v1", teacher_input="recurrent_in=1", says="memory of a recurrent network")
    load(path, "CartPole-v1", teacher_input="recurrent_in=1", accept_mismatch=True)


def test_a_recurrent_network_is_told_as_such(tmp_path: Path) -> None:
    refused(masked(tmp_path / "p.onnx", mask="h_in"), env="CartPole-v1", says="memory of a recurrent network")


def test_a_mean_beside_its_deviation_may_stand_before_a_tanh(tmp_path: Path) -> None:
    """CleanRL's SAC gives the two, and squashes the mean outside of `forward`."""
    path = onnx_file(
        tmp_path / "p.onnx",
        [("MatMul", ["obs", "w"], ["mean"]), ("Neg", ["mean"], ["log_std"])],
        {"log_std": ["batch", 1], "mean": ["batch", 1]},
        w=WEIGHT.T.numpy(),
    )
    assert "such as 'mean'" in refused(path, says="--teacher-output")
    options: dict[str, Any] = {"teacher_output": "mean", "teacher_scores": "deterministic"}
    refused(path, says=r"torch.tanh\(mean\)", **options)
    torch.testing.assert_close(load(path, accept_mismatch=True, **options)(OBSERVATIONS), OBSERVATIONS @ WEIGHT.T)


def test_an_option_for_outputs_has_no_effect_on_other_files(tmp_path: Path) -> None:
    torch.save({"q.weight": torch.ones(2, 4), "q.bias": torch.zeros(2)}, tmp_path / "p.pt")
    for option in ({"teacher_output": "0"}, {"teacher_input": "a=1"}):
        refused(tmp_path / "p.pt", env="CartPole-v1", says="no effect", **option)


# --- TorchScript ---


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return x.sum(1, keepdim=True), (x[:, :2], -x[:, 2:])


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"value": x.sum(1, keepdim=True), "logits": x[:, 2:]}


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2].argmax(1), x.sum(1)


@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_outputs_are_named_by_their_place_or_key(tmp_path: Path, traced: bool) -> None:
    def saved(module: nn.Module, name: str) -> Path:
        if not traced:
            return script(module, tmp_path / name)
        made = torch.jit.trace(module, torch.zeros(2, 4), strict=False)  # type: ignore[no-untyped-call]
        torch.jit.save(made, str(tmp_path / name))  # type: ignore[no-untyped-call]
        return tmp_path / name

    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    text = refused(saved(Pair(), "pair.pt"), env="CartPole-v1", teacher_scores="logits", says="--teacher-output")
    assert "'1.0'" in text
    second = load(tmp_path / "pair.pt", "CartPole-v1", teacher_scores="logits", teacher_output="1.1")
    assert second(x).tolist() == [[-3.0, -4.0]]
    assert load(saved(Named(), "named.pt"), "CartPole-v1")(x).tolist() == [[3.0, 4.0]]
    refused(saved(Chosen(), "chosen.pt"), env="CartPole-v1", teacher_scores="logits", says="gives actions")
    refused(tmp_path / "named.pt", env="CartPole-v1", teacher_input="a=1", says="leave --teacher-input out")


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x[:, :2], -1e8)


def test_torchscript_of_more_inputs_says_what_to_save(tmp_path: Path) -> None:
    text = refused(script(Masked(), tmp_path / "p.pt"), env="CartPole-v1", teacher_scores="logits", says="2 inputs")
    assert "'mask'" in text


class Drawn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] + torch.randn_like(x[:, :2])


def test_torchscript_that_draws_does_not_fit(tmp_path: Path) -> None:
    refused(script(Drawn(), tmp_path / "p.pt"), env="CartPole-v1", teacher_scores="logits", says="drawn at random")


# --- files that once failed ---


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        (
            "sac-actor-unit-actions-Pendulum-v1.onnx",
            {"teacher_scores": "deterministic", "teacher_actions": "unit"},
            -210,
            -90,
        ),
        ("rslrl-policy.onnx", {}, -600, -400),
        ("unity-several-outputs.onnx", {"teacher_actions": "unit"}, -2000, 0),
    ],
)
@pytest.mark.slow
def test_the_cases_play_as_they_should(
    cases: Path, name: str, options: dict[str, Any], low: float, high: float
) -> None:
    from rldistill.verbs.evaluate import EvaluateConfig, evaluate

    pytest.importorskip("onnxruntime")
    config = EvaluateConfig(env="Pendulum-v1", episodes=20, num_envs=20, epsilon=0.0)
    (score,) = evaluate([cases / "policies" / name], config, options=TeacherOptions(**options))
    assert low < score.mean < high


def test_a_policy_of_our_own_has_none_of_these_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no effect"):
        load_teacher(_own(tmp_path), options=TeacherOptions(teacher_actions="unit"))


def _own(folder: Path) -> Path:
    from rldistill.play.envs import make_task
    from rldistill.policies import load_policy, save_policy
    from rldistill.students.networks import Architecture, build

    task = make_task("Pendulum-v1")
    network = build(Architecture("mlp:4", task.observation_shape, 1), 0, "actions")
    save_policy(folder / "own", network, task, {})
    assert isinstance(load_policy(folder / "own"), SavedPolicy)
    return folder / "own"
