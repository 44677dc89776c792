"""Files of other tools that are not read are recognised, and the way out that the message names works when it is followed."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation

from foreign_files import balancing_zip
from rldistill.configurations import changed
from rldistill.formats.tensors.state_dict import read_state_dict
from rldistill.play.envs import make_task
from rldistill.teachers import TeacherOptions, load_fitting, load_teacher
from rldistill.types import UserError
from rldistill.verbs.distill import DistillConfig, distill
from test_teachers import Recorder
from test_teachers_formats import VECTORS, linear, mlp_scores, numbers, relu
from test_teachers_options import own_folder

DOCS = Path(__file__).parents[1] / "docs" / "inspect.md"
QUICK = DistillConfig.of(
    student="mlp:8", steps=200, num_envs=4, warmup=40, batch_size=32, samples_per_step=8, evaluate_episodes=2, evaluate_every=0
)  # fmt: skip
TABLE = np.arange(64, dtype=np.float64).reshape(16, 4) % 7
FLAX = {
    f"Dense_{number}": {"kernel": tensor["x.weight"].numpy().T, "bias": tensor["x.bias"].numpy()}
    for number, tensor in enumerate((linear("x", 4, 64), linear("x", 64, 64), linear("x", 64, 2)))
}


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refusal:
        load_teacher(path, **options)
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    return message


def documented(heading: str, number: int) -> str:
    """A block of Python below a heading of the page."""
    section = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]


def tables(folder: Path) -> Iterator[Path]:
    np.save(folder / "q_table.npy", TABLE)
    yield folder / "q_table.npy"
    np.savez(folder / "table.npz", q_table=TABLE)
    yield folder / "table.npz"
    yield written(folder / "qtable.pkl", TABLE)
    yield written(folder / "old.pkl", TABLE, protocol=2)
    yield written(folder / "plain.pkl", {0: [1.0, 2.0], 1: [0.0, 1.0]})
    yield written(folder / "tuples.pkl", {(12, 4, True): np.zeros(2), (13, 4, False): np.ones(2)})
    yield written(folder / "default.pkl", defaultdict(float, {((1, 2), 0): 1.0}))
    yield written(folder / "model" / "q-learning.pkl", {"env_id": "FrozenLake-v1", "n_eval": 100, "qtable": TABLE})
    yield folder / "model"


def test_tables_are_recognised_and_become_a_layer(tmp_path: Path) -> None:
    messages = [message_of(path, env="FrozenLake-v1") for path in tables(tmp_path)]
    assert len(messages) == 9
    assert all("table of values, no network" in message for message in messages)
    (statement,) = set(re.findall(r"torch\.save\(.*'q\.pth'\)", "\n".join(messages)))
    with chdir(tmp_path):
        exec(statement, {"torch": torch, "table": TABLE.astype(np.float32)})
    teacher = load_teacher(tmp_path / "q.pth", env="FrozenLake-v1")
    assert teacher.score_kind == "q_values"
    np.testing.assert_array_equal(teacher(torch.eye(16)).numpy(), TABLE)


def test_what_is_no_table_is_not_taken_for_one(tmp_path: Path) -> None:
    """A file of torch.save from before 1.6 is a pickle too, and a network of Q-values may be called so."""
    state = {**linear("q.0", 4, 8), **linear("q.2", 8, 2)}
    torch.save(state, tmp_path / "q_table.pkl", _use_new_zipfile_serialization=False)
    load_teacher(tmp_path / "q_table.pkl", env="CartPole-v1", options=TeacherOptions("mlp:8"))
    arrays = {"q_network": {"kernel": np.zeros((4, 2)), "bias": np.zeros(2)}}
    assert "plain pickle of arrays" in message_of(written(tmp_path / "q_network.pkl", arrays), env="CartPole-v1")


class Frozen(dict[str, Any]):
    """Pickled under the name of Flax's container."""

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


def test_arrays_are_recognised_and_become_a_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "params.pkl", {"params": FLAX})
    assert "'Arrays without a network'" in message_of(path, env="CartPole-v1")
    with chdir(tmp_path):
        exec(documented("Arrays without a network", 0), {})
    options = TeacherOptions("mlp:64,64:tanh", "logits")  # as the page has it
    teacher = load_teacher(tmp_path / "policy.pth", env="CartPole-v1", options=options)
    state = {f"{name}.weight": torch.from_numpy(layer["kernel"].T) for name, layer in FLAX.items()}
    state |= {f"{name}.bias": torch.from_numpy(layer["bias"]) for name, layer in FLAX.items()}
    expected = mlp_scores(state, tuple(FLAX), VECTORS, np.tanh)
    np.testing.assert_allclose(teacher(VECTORS).numpy(), expected, atol=1e-5)
    data = path.read_bytes()
    for module, name in (("flax.core.frozen_dict", "FrozenDict"), ("jax._src.array", "_reconstruct_array")):
        frozen = pickle.dumps(Frozen(FLAX), 0).replace(
            f"c{Frozen.__module__}\nFrozen\n".encode(), f"c{module}\n{name}\n".encode()
        )
        (tmp_path / "jax.pkl").write_bytes(b"\x80\x02" + frozen)
        assert "JAX's arrays" in message_of(tmp_path / "jax.pkl", env="CartPole-v1")
    for name in ("policy.msgpack", "policy.flax"):
        (tmp_path / name).write_bytes(b"\x81\xa6params\x81\xa7Dense_0\x80")
        assert "is of Flax" in message_of(tmp_path / name, env="CartPole-v1")
    orbax = tmp_path / "orbax"
    orbax.mkdir()
    (orbax / "_METADATA").write_text("{}")
    assert "JAX (Orbax)" in message_of(orbax, env="CartPole-v1")
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R." + data)
    assert "wants to call os.system" in message_of(tmp_path / "evil.pkl", env="CartPole-v1")


def test_a_table_of_intervals_teaches_as_an_object(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    edges = [np.linspace(-1, 1, 3)] * 4
    namespace: dict[str, Any] = {"table": rng.normal(size=(4, 4, 4, 4, 2)), "edges": edges}
    text = documented("Arrays without a network", 1)
    exec(text[: text.index("rldistill.distill(")], namespace)
    teacher = namespace["Table"](namespace["table"], edges)
    assert teacher(torch.tensor([[-2.0, -0.5, 0.5, 2.0]])).tolist() == [
        namespace["table"][0, 1, 2, 3].astype(np.float32).tolist()
    ]
    assert distill(teacher, tmp_path / "run", QUICK).task.env == "CartPole-v1"


@pytest.mark.parametrize("new", [True, False])
def test_rllib_s_checkpoints_become_a_state_dict(tmp_path: Path, new: bool) -> None:
    folder = tmp_path / "checkpoint"
    if new:
        names = ("encoder.actor_encoder.net.mlp.0", "pi.net.mlp.0", "encoder.critic_encoder.net.mlp.0", "vf.net.mlp.0")
    else:
        names = (
            "_hidden_layers.0._model.0",
            "_logits._model.0",
            "_value_branch_separate.0._model.0",
            "_value_branch._model.0",
        )
    state = {**linear(names[1], 8, 2), **linear(names[0], 4, 8), **linear(names[2], 4, 8), **linear(names[3], 8, 1)}
    arrays: Any = {name: tensor.numpy() for name, tensor in state.items()}
    place = (
        "learner_group/learner/rl_module/default_policy/module_state.pkl"
        if new
        else "policies/default_policy/policy_state.pkl"
    )
    path = written(folder / place, arrays if new else {"weights": arrays, "global_timestep": 7})
    (folder / "rllib_checkpoint.json").write_text(json.dumps({"type": "Algorithm", "ray_version": "2.40.0"}))
    message = message_of(folder, env="CartPole-v1")
    assert "checkpoint of RLlib" in message
    for other in (path, path.parent):
        assert message_of(other, env="CartPole-v1").split(":")[1:] == message.split(":")[1:]
    with chdir(tmp_path):
        exec(re.findall(r"torch\.save\(.*'policy\.pth'\)", message)[0], {"torch": torch, "pickle": pickle})
    policy = read_state_dict(tmp_path / "policy.pth", architecture="mlp:8:tanh")
    assert policy.scores == "logits"
    expected = mlp_scores(state, names[:2], VECTORS, np.tanh)
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-5)


def test_sample_factory_s_folder_names_its_checkpoint(tmp_path: Path) -> None:
    state = {**linear("encoder.encoders.obs.mlp_head.0", 4, 8), **linear("critic_linear", 8, 1)}
    state |= linear("action_parameterization.distribution_linear", 8, 2)
    path = tmp_path / "run" / "checkpoint_p0" / "checkpoint_000000978_4005888.pth"
    path.parent.mkdir(parents=True)
    torch.save(
        {"train_step": 978, "env_steps": 4005888, "model": state, "optimizer": {"state": {}}, "curr_lr": 1e-4}, path
    )
    assert str(path) in message_of(tmp_path / "run", env="CartPole-v1")
    message = message_of(path, env="CartPole-v1")
    named = re.findall(r"mlp:[\w,:]+\w", message)[-1]
    load_teacher(path, env="CartPole-v1", options=TeacherOptions(named, "logits"))


def test_a_recurrent_network_is_refused_with_a_way_out_that_works(tmp_path: Path) -> None:
    gates = {f"lstm.{name}_l0": numbers(32, 8) for name in ("weight_ih", "weight_hh")}
    gates |= {f"lstm.{name}_l0": numbers(32) for name in ("bias_ih", "bias_hh")}
    torch.save({**linear("fc", 4, 8), **gates, **linear("pi", 8, 2)}, tmp_path / "lstm.pth")
    assert "'A policy with a memory'" in message_of(tmp_path / "lstm.pth", env="CartPole-v1")
    torch.save({"gru.weight_ih": numbers(24, 4), **linear("pi", 8, 2)}, tmp_path / "gru.pth")
    assert "'A policy with a memory'" in message_of(tmp_path / "gru.pth", env="CartPole-v1")
    text = documented("A policy with a memory", 0)
    namespace: dict[str, Any] = {}
    try:
        exec(text[: text.index("rldistill.distill(")], namespace)
        lstm, head = torch.nn.LSTM(4, 8, batch_first=True), torch.nn.Linear(8, 2)
        teacher = namespace["Window"](lstm, head)
        game = FrameStackObservation(gymnasium.make("CartPole-v1"), 8)
        window = torch.tensor(np.asarray(game.reset(seed=0)[0]))
        game.close()
        scores = head(lstm(window[None])[0][:, -1])
        torch.testing.assert_close(teacher(window.reshape(1, 32)), scores.detach())
        assert distill(teacher, tmp_path / "run", QUICK).task.observation_shape == (32,)
    finally:
        del gymnasium.registry["CartPoleWindow-v0"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("data", "parameters", "parameter_list"), "Stable-Baselines 2"),
        (("metadata.json", "config.json", "model.weights.h5"), "Keras: convert it to ONNX"),
    ],
)
def test_zips_of_other_tools_are_recognised(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    assert says in message_of(tmp_path / "x.zip", env="CartPole-v1")


def test_models_of_tensorflow_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert "ONNX" in message_of(tmp_path / "model.h5", env="CartPole-v1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert "ONNX" in message_of(tmp_path / "saved", env="CartPole-v1")


def test_copies_that_learn_slower_are_left_out(tmp_path: Path) -> None:
    """Tianshou's `model_old` beside `model`, and d3rlpy's `targ_q_funcs` beside `q_funcs`."""
    own = {**linear("model.model.0", 4, 8), **linear("model.model.2", 8, 2)}
    old = {name.replace("model.model", "model_old.model"): tensor + 1 for name, tensor in own.items()}
    torch.save({**own, **old}, tmp_path / "tianshou.pth")
    parts = {"0._encoder.0": "0", "0._fc": "2"}
    funcs = {name: own[f"model.model.{number}.{role}"] for part, number in parts.items() for role in ("weight", "bias")
             for name in [f"{part}.{role}"]}  # fmt: skip
    slow = {name: tensor + 1 for name, tensor in funcs.items()}
    torch.save({"q_funcs": funcs, "targ_q_funcs": slow, "optim": {"state": {}}}, tmp_path / "d3rlpy.pt")
    expected = mlp_scores(own, ("model.model.0", "model.model.2"), VECTORS, relu)
    for name in ("tianshou.pth", "d3rlpy.pt"):
        policy = read_state_dict(tmp_path / name, architecture="mlp:8", scores="q_values")
        np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
def test_an_id_whose_version_is_gone_says_what_is_played_wherever_it_is_named(tmp_path: Path, own: bool) -> None:
    progress = Recorder()
    path = own_folder(tmp_path) if own else balancing_zip(tmp_path / "ppo-CartPole-v1.zip")
    gymnasium.register("CartPole-v7", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=50)
    try:
        load_fitting(path, env="CartPole-v5", progress=progress)
        assert progress.lines[-1].endswith("CartPole-v5 is no longer there: played as CartPole-v7")
        task = distill(path, tmp_path / "run", changed(QUICK, env="CartPole-v5")).task
        assert task.env == "CartPole-v7"
    finally:
        del gymnasium.registry["CartPole-v7"]
    assert make_task("CartPole-v1").env == "CartPole-v1"
