"""State dicts, TorchScript, ONNX, CleanRL's checkpoints, the hub's folders, and telling them apart."""

import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rldistill.formats.beside import statistics_files
from rldistill.formats.chain import parse_architecture
from rldistill.formats.cleanrl.reading import read_cleanrl
from rldistill.formats.hub.download import Card, fetch, find_policy_file, parse_ref, read_card
from rldistill.formats.onnx.contents import contents_of
from rldistill.formats.onnx.reading import read_onnx
from rldistill.formats.tensors.state_dict import read_state_dict
from rldistill.formats.torchscript.reading import read_torchscript
from rldistill.policies import save_policy
from rldistill.students.networks import Architecture, build
from rldistill.teachers.detect import kind_of
from rldistill.types import Task, UserError

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8))
VECTORS = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32))


def refused(read: Callable[..., Any], *args: Any, says: str, **options: Any) -> str:
    with pytest.raises(UserError, match=says) as refusal:
        read(*args, **options)
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)) / 10


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": numbers(outputs, inputs), f"{name}.bias": numbers(outputs, seed=1)}


def conv(name: str, inputs: int, outputs: int, kernel: int) -> dict[str, Tensor]:
    return {f"{name}.weight": numbers(outputs, inputs, kernel, kernel), f"{name}.bias": numbers(outputs, seed=1)}


def nature(
    *names: str, channels: tuple[int, int, int] = (8, 8, 8), hidden: int = 16, actions: int = 6
) -> dict[str, Tensor]:
    """The Nature CNN's tensors under five names."""
    a, b, c = channels
    return {
        **conv(names[0], 4, a, 8),
        **conv(names[1], a, b, 4),
        **conv(names[2], b, c, 3),
        **linear(names[3], c * 49, hidden),
        **linear(names[4], hidden, actions),
    }


def nature_scores(state: dict[str, Tensor], names: tuple[str, ...], images: Tensor) -> Tensor:
    """What Mnih et al.'s network gives, written out."""
    x = images.float() / 255
    for name, stride in zip(names[:3], (4, 2, 1), strict=True):
        x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride))
    x = F.relu(F.linear(x.flatten(1), state[f"{names[3]}.weight"], state[f"{names[3]}.bias"]))
    return F.linear(x, state[f"{names[4]}.weight"], state[f"{names[4]}.bias"])


def mlp_scores(
    state: dict[str, Tensor], names: tuple[str, ...], x: Tensor, activation: Callable[..., Any]
) -> np.ndarray[Any, Any]:
    """Written out in float64."""
    out = x.numpy().astype(np.float64)
    for name in names:
        out = out @ state[f"{name}.weight"].numpy().T.astype(np.float64) + state[f"{name}.bias"].numpy()
        out = out if name == names[-1] else activation(out)
    return cast("np.ndarray[Any, Any]", out)


def relu(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.maximum(x, 0)


MLP = {**linear("q.0", 4, 8), **linear("q.2", 8, 5), **linear("q.4", 5, 2)}
MLP_NAMES = ("q.0", "q.2", "q.4")
NATURE = ("c1", "c2", "c3", "f", "pi")


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


# --- plain state dicts ---


@pytest.mark.parametrize(("file", "actions"), [("pong-acktr.pth", 6), ("breakout-a2c.pth", 4)])
def test_an_actor_critic_of_2018_is_read_without_its_value_head(teachers: Path, file: str, actions: int) -> None:
    policy = read_state_dict(teachers / "atari" / file, num_actions=actions)
    state = torch.load(teachers / "atari" / file, weights_only=True)
    assert policy.scores == "logits"
    assert policy.provenance["left_out"] == ["v"]
    assert policy.observation_space is not None
    assert (policy.observation_space.shape, policy.observation_space.dtype) == ((4, 84, 84), "uint8")
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(state, NATURE, IMAGES))


def test_a_pqn_network_is_read_with_its_layer_norms(teachers: Path) -> None:
    policy = read_state_dict(teachers / "atari" / "pong-pqn.pth", num_actions=6, architecture="dqn", scores="q_values")
    state = torch.load(teachers / "atari" / "pong-pqn.pth", weights_only=True)
    x = IMAGES.float() / 255
    for name, norm, stride in (("0", "1.ln", 4), ("3", "4.ln", 2), ("6", "7.ln", 1)):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride)
        weight = state[f"{norm}.weight"]
        x = F.relu(F.layer_norm(x, weight.shape, weight, state[f"{norm}.bias"]))
    x = F.linear(x.flatten(1), state["10.weight"], state["10.bias"])
    x = F.relu(F.layer_norm(x, (512,), state["11.ln.weight"], state["11.ln.bias"]))
    torch.testing.assert_close(policy.network(IMAGES), F.linear(x, state["13.weight"], state["13.bias"]))
    assert policy.scores == "q_values"


def test_where_the_head_has_no_name_the_file_s_name_may_say_the_algorithm(teachers: Path) -> None:
    policy = read_state_dict(teachers / "atari" / "pong-pqn.pth")
    assert (policy.scores, policy.provenance["scores_told_by"]) == ("q_values", "the file's name 'pong-pqn.pth'")


@pytest.mark.parametrize("ending", [".pth", ".bin", ".safetensors"])
def test_a_multilayer_perceptron_gives_what_its_formula_gives(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"policy{ending}"
    if ending == ".safetensors":
        safetensors.torch.save_file(MLP, path)
    else:
        torch.save(MLP, path)
    for architecture, activation in (("mlp:8,5", relu), ("mlp:8,5:tanh", np.tanh)):
        policy = read_state_dict(path, architecture=architecture)
        expected = mlp_scores(MLP, MLP_NAMES, VECTORS, activation)
        np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)
        assert policy.scores == "q_values"
        assert policy.provenance["architecture"] == architecture


def test_safetensors_forgets_the_order_and_the_shapes_tell_it(tmp_path: Path) -> None:
    state = {
        **linear("torso.first", 4, 8),
        **linear("torso.second", 8, 5),
        **linear("head.q", 5, 2),
    }  # head sorts first
    safetensors.torch.save_file(state, tmp_path / "p.safetensors")
    policy = read_state_dict(tmp_path / "p.safetensors", architecture="mlp:8,5")
    expected = mlp_scores(state, ("torso.first", "torso.second", "head.q"), VECTORS, relu)
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)


def test_more_than_nine_layers_of_safetensors_stay_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sizes = [4, *[6] * 11, 2]
    state: dict[str, Tensor] = {}
    for i in range(12):
        state |= {
            f"q.{i}.weight": numbers(sizes[i + 1], sizes[i], seed=i),
            f"q.{i}.bias": numbers(sizes[i + 1], seed=i),
        }
    safetensors.torch.save_file(state, tmp_path / "p.safetensors")
    policy = read_state_dict(tmp_path / "p.safetensors", architecture="mlp:" + ",".join(["6"] * 11))
    expected = mlp_scores(state, tuple(f"q.{i}" for i in range(12)), VECTORS, relu)
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_a_network_of_the_house_s_own_goes_out_as_a_state_dict_and_comes_back(
    tmp_path: Path, normalization: Any
) -> None:
    network = build(Architecture("cnn:8,8,8:16", (4, 84, 84), 6, normalization), 1)
    network.standardize(torch.tensor([90.0]), torch.tensor([3 / 255]))
    torch.save(network.state_dict(), tmp_path / "dqn.pth")
    policy = read_state_dict(tmp_path / "dqn.pth", architecture="cnn:8,8,8:16", num_actions=6)
    torch.testing.assert_close(policy.network(IMAGES), network(IMAGES).detach())


def test_small_grids_have_3x3_kernels_and_no_division(tmp_path: Path) -> None:
    network = build(Architecture("cnn:8:16", (4, 10, 10), 3), 1)
    state = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("layers")}
    torch.save(state, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth", observation_shape=(4, 10, 10), scores="q_values")
    grid = (IMAGES[:, :, :10, :10] > 128).float()
    torch.testing.assert_close(policy.network(grid), network(grid).detach())
    refused(read_state_dict, tmp_path / "p.pth", scores="q_values", says="size of its images")


def test_unusual_strides_are_found_where_only_they_fit(tmp_path: Path) -> None:
    # 84 -> 39 by 8/2 and 39 -> 9 by 4/4, with 4/1 to 36 and others not: 4 * 81 numbers.
    state = {**conv("a", 4, 4, 8), **conv("b", 4, 4, 4), **linear("f", 4 * 81, 8), **linear("q", 8, 3)}
    torch.save(state, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth")  # 8/4 and 4/2 give 9 x 9 as well: the usual ones win
    strides = [module.stride for module in policy.network.modules() if isinstance(module, nn.Conv2d)]
    assert strides == [(4, 4), (2, 2)]
    state = {**conv("a", 4, 4, 5), **linear("f", 4 * 27 * 27, 8), **linear("q", 8, 3)}
    torch.save(state, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth")
    assert [module.stride for module in policy.network.modules() if isinstance(module, nn.Conv2d)] == [(3, 3)]


def test_a_checkpoint_around_the_state_dict_and_data_parallel_s_prefix_are_seen_through(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in nature(*NATURE).items()}
    torch.save({"epoch": 3, "state_dict": OrderedDict(state), "loss": 0.5}, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth")
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(nature(*NATURE), NATURE, IMAGES))


def test_heads_and_networks_beside_the_policy_are_left_out_and_named(tmp_path: Path) -> None:
    torso = {**linear("mlp_extractor.policy_net.0", 4, 8), **linear("mlp_extractor.value_net.0", 4, 8)}
    torch.save({**torso, **linear("action_net", 8, 2), **linear("value_net", 8, 1)}, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth", architecture="mlp:8:tanh")
    expected = mlp_scores(
        {**torso, **linear("action_net", 8, 2)}, ("mlp_extractor.policy_net.0", "action_net"), VECTORS, np.tanh
    )
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)
    assert (policy.scores, policy.provenance["left_out"]) == ("logits", ["mlp_extractor.value_net.0", "value_net"])
    nets = {**linear("q_net.0", 4, 8), **linear("q_net.2", 8, 2)}
    targets = {name.replace("q_net", "q_net_target"): tensor + 1 for name, tensor in nets.items()}
    torch.save({**nets, **targets}, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth", architecture="mlp:8")
    np.testing.assert_allclose(
        policy.network(VECTORS).numpy(), mlp_scores(nets, ("q_net.0", "q_net.2"), VECTORS, relu), atol=1e-6
    )
    assert policy.scores == "q_values"
    # DQN's tutorial calls its online network a policy.
    renamed = {
        name.replace("q_net", "policy_net").replace("_target", "_copy_target"): t
        for name, t in (nets | targets).items()
    }
    torch.save(renamed, tmp_path / "p.pth")
    refused(read_state_dict, tmp_path / "p.pth", architecture="mlp:8", says="Q-values.* logits")


def test_a_file_from_before_pytorch_1_6_is_read(tmp_path: Path) -> None:
    torch.save(nature(*NATURE), tmp_path / "p.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "p.pth").scores == "logits"


@pytest.mark.parametrize(
    ("state", "options", "says"),
    [
        (MLP, {}, "activation stands.*mlp:8,5 for ReLU.* mlp:8,5:tanh"),
        (MLP, {"architecture": "mlp:8,6"}, "holds mlp:8,5"),
        (MLP, {"architecture": "net2"}, "holds mlp:8,5"),
        (MLP, {"architecture": "resnet"}, "unknown network"),
        (MLP, {"architecture": "mlp:8,5", "num_actions": 3}, "gives 2 numbers, but there are 3 actions"),
        (MLP, {"architecture": "mlp:8,5", "observation_shape": (3,)}, "takes 4 numbers"),
        (MLP, {"architecture": "mlp:8,5", "scores": "gaussian"}, "log standard deviations"),
        (MLP, {"architecture": "mlp:8,5", "scores": "values"}, "unknown kind of scores"),
        ({**linear("0", 4, 8), **linear("2", 8, 2)}, {"architecture": "mlp:8"}, "Q-values.* logits"),
        (nature("c1", "c2", "c3", "f", "A") | linear("V", 16, 1), {}, "heads 'A' and 'V': of a dueling network"),
        (MLP, {"architecture": "mlp:8,5:relu:tanh"}, "over the range of the actions; they have none here"),
        (MLP, {"architecture": "mlp:8,5:relu:tanh", "scores": "logits"}, "gives actions, not logits"),
        (MLP, {"architecture": "mlp:8,5:relu:tanh", "action_range": ((-1,), (1,))}, "gives 2 actions, the .* takes 1"),
        (nature(*NATURE), {"num_actions": 2}, "quantiles or atoms are not understood"),
        (nature(*NATURE), {"observation_shape": (1, 84, 84)}, "sees 4 channels"),
        (nature(*NATURE), {"observation_shape": (84,)}, "sees images"),
        (nature(*NATURE), {"observation_shape": (4, 64, 64)}, "no strides"),
        (nature(*NATURE) | {"extra": numbers(3)}, {}, "'extra' is left over"),
        (nature(*NATURE) | {"norm.bias": numbers(3)}, {}, "'norm.bias' is left over"),
        (nature(*NATURE) | linear("other", 16, 3), {}, "make no chain"),
        (nature(*NATURE) | {"n.weight": numbers(7), "n.bias": numbers(7)}, {}, "before the first layer or after"),
        (nature(*NATURE) | {"f.bias": numbers(15)}, {}, "'f.bias' has shape"),
        (nature(*NATURE) | {"pi.bias": torch.full((6,), torch.nan)}, {}, "NaN or infinity"),
        (nature(*NATURE) | {"pi.bias": torch.zeros(6, dtype=torch.int64)}, {}, "which is no weight"),
        (nature(*NATURE) | {"lstm.weight_ih_l0": numbers(3, 3)}, {}, "recurrent"),
        (nature(*NATURE) | {"bn.running_mean": numbers(8)}, {}, "BatchNorm"),
        (nature("c1", "c2", "c3", "f", "advantage") | linear("value", 16, 1), {}, "dueling"),
        ({"a": {"w": 1}}, {}, "holds none"),
        ([1, 2], {}, "holds no state dict but a list"),
        ({"pi.weight": 3}, {}, "holds none"),
        ({"a": nature(*NATURE), "b": MLP}, {}, "several: a, b"),
        ({}, {}, "holds none"),
    ],
)
def test_what_a_file_does_not_say_or_does_not_fit_is_one_clear_line(
    tmp_path: Path, state: Any, options: dict[str, Any], says: str
) -> None:
    torch.save(state, tmp_path / "p.pth")
    refused(read_state_dict, tmp_path / "p.pth", says=says, **options)


def test_a_tanh_behind_the_last_layer_is_spread_over_the_range_of_the_actions(tmp_path: Path) -> None:
    """As in the authors' own TD3, whose files hold its linear layers alone."""
    torch.save(MLP, tmp_path / "p.pth")
    bounds = ((-2.0, 0.0), (2.0, 1.0))
    policy = read_state_dict(tmp_path / "p.pth", architecture="mlp:8,5:relu:tanh", action_range=bounds)
    wanted = np.tanh(mlp_scores(MLP, MLP_NAMES, VECTORS, relu)) * [2, 0.5] + [0, 0.5]
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), wanted, atol=1e-6)
    assert policy.scores == "deterministic"
    assert not any("units" in supposed for supposed in policy.provenance["supposed"])
    plain = read_state_dict(tmp_path / "p.pth", architecture="mlp:8,5", scores="deterministic", action_range=bounds)
    np.testing.assert_allclose(plain.network(VECTORS).numpy(), mlp_scores(MLP, MLP_NAMES, VECTORS, relu), atol=1e-6)
    assert any("in the environment's units" in supposed for supposed in plain.provenance["supposed"])


def test_an_actor_named_a_beside_a_critic_is_taken_where_it_is_said_to_give_logits(tmp_path: Path) -> None:
    state = nature("c1", "c2", "c3", "f", "A") | linear("V", 16, 1)
    torch.save(state, tmp_path / "p.pth")
    policy = read_state_dict(tmp_path / "p.pth", scores="logits")
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(state, ("c1", "c2", "c3", "f", "A"), IMAGES))
    assert policy.provenance["left_out"] == ["V"]


def test_a_tensor_of_petabytes_out_of_one_number_is_refused(tmp_path: Path) -> None:
    torch.save({"q.weight": torch.zeros(1).expand(10**9, 10**6)}, tmp_path / "p.pth")
    assert (tmp_path / "p.pth").stat().st_size < 10_000
    refused(read_state_dict, tmp_path / "p.pth", says="p.pth")


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_with_a_payload_runs_nothing(tmp_path: Path, old: bool) -> None:
    witness = tmp_path / "ran"
    torch.save(
        {"q.weight": Payload(witness)}, tmp_path / "p.pth", _use_new_zipfile_serialization=not old, pickle_protocol=2
    )
    refused(read_state_dict, tmp_path / "p.pth", says="p.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(witness)))
    refused(read_state_dict, tmp_path / "plain.pth", says="plain.pth")
    refused(read_cleanrl, tmp_path / "p.pth", says="p.pth")
    assert not witness.exists()


def test_a_network_pickled_as_a_whole_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 2), tmp_path / "p.pth")
    refused(read_state_dict, tmp_path / "p.pth", says="p.pth")


@pytest.mark.parametrize(
    "name",
    ["resnet", "mlp:", "mlp:8,", "cnn:8", "mlp:8:softmax", "mlp:999999", "mlp:8\n", ""],
)
def test_an_architecture_that_is_none_is_refused(name: str) -> None:
    refused(parse_architecture, name, says="unknown network")


# --- damaged files of every kind ---


class Scripted(nn.Module):
    def __init__(self, divide: bool = True, floats: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(400, 6))
        self.divide, self.floats = divide, floats

    def forward(self, x: Tensor) -> Tensor:
        if self.floats:
            x = x.float()
        if self.divide:
            x = x / 255.0
        out: Tensor = self.layers(x)
        return out


def script(module: nn.Module, path: Path, *, trace: Tensor | None = None) -> Path:
    module = module.eval()
    made = torch.jit.script(module) if trace is None else torch.jit.trace(module, trace)
    torch.jit.save(made, str(path))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return path


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    torch.save(nature(*NATURE), folder / "a2c.pth")
    torch.save(nature(*NATURE), folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(nature(*NATURE), folder / "a2c.safetensors")
    script(Scripted(), folder / "script.pt")
    torch.save({"actor_logstd": numbers(1, 2), **linear("actor_mean.0", 4, 2)}, folder / "ppo.cleanrl_model")
    return {path.name: path for path in folder.iterdir()}


READERS: dict[str, Callable[[Path], Any]] = {
    "a2c.pth": read_state_dict,
    "old.pth": read_state_dict,
    "a2c.safetensors": read_state_dict,
    "script.pt": lambda path: read_torchscript(path, observation_shape=(4, 84, 84), scores="q_values"),
    "ppo.cleanrl_model": read_cleanrl,
}


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read_and_a_damaged_one_is_one_clear_line(
    tmp_path: Path, good: dict[str, Path], name: str
) -> None:
    data = good[name].read_bytes()
    READERS[name](good[name])
    damages = {
        "empty": b"",
        "text": b"not a policy\n" * 100,
        "half": data[: len(data) // 2],
        "end lost": data[:-10],
        "start lost": data[10:],
        "another kind": good["a2c.safetensors" if name == "script.pt" else "script.pt"].read_bytes(),
        "zip of nothing": b"PK\x05\x06" + b"\0" * 18,
        "header of petabytes": b"\xff\xff\xff\xff\xff\xff\x00\x00{",
    }
    for damaged in damages.values():
        path = tmp_path / name
        path.write_bytes(damaged)
        refused(READERS[name], path, says=name)
    refused(READERS[name], tmp_path / "missing", says="missing")
    refused(READERS[name], tmp_path, says=".")


@pytest.mark.parametrize("name", READERS)
def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path, good: dict[str, Path], name: str) -> None:
    data = good[name].read_bytes()
    generator = np.random.default_rng(3)
    for _ in range(25):
        flipped = bytearray(data)
        # Headers are where flips hurt, so half of them go to the first or last kilobyte.
        region = [(0, len(data)), (0, 1000), (len(data) - 1000, len(data))][int(generator.integers(3))]
        flipped[int(generator.integers(max(region[0], 0), min(region[1], len(data))))] ^= 1 << int(
            generator.integers(8)
        )
        (tmp_path / name).write_bytes(flipped)
        kind_of(tmp_path / name)
        try:
            READERS[name](tmp_path / name)
        except UserError as error:
            assert len(str(error).splitlines()) == 1


# --- TorchScript ---


@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_that_takes_bytes_is_fed_with_bytes(tmp_path: Path, traced: bool) -> None:
    module = Scripted()
    path = script(module, tmp_path / "p.pt", trace=IMAGES if traced else None)
    policy = read_torchscript(path, observation_shape=(4, 84, 84), num_actions=6, scores="logits")
    torch.testing.assert_close(policy.network(IMAGES), module(IMAGES).detach())
    assert not policy.network(IMAGES).requires_grad
    assert policy.provenance["parameters"] == 4 * 4 * 64 + 4 + 400 * 6 + 6


@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_with_a_255_in_it_is_fed_with_floats_up_to_255(tmp_path: Path, traced: bool) -> None:
    module = Late()
    path = script(module, tmp_path / "p.pt", trace=IMAGES.float() if traced else None)
    policy = read_torchscript(path, observation_shape=(4, 84, 84), scores="logits")
    torch.testing.assert_close(policy.network(IMAGES), module(IMAGES.float()).detach())


class Late(nn.Module):
    """Divides after its convolution, so it takes no bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 8, 8), nn.Linear(400, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear((self.conv(x) / 255.0).flatten(1))
        return out


def test_torchscript_that_only_casts_bytes_is_asked_for_their_range(tmp_path: Path) -> None:
    """It runs on bytes, and may have been trained on 0 to 1 all the same."""
    module = Scripted(divide=False)
    path = script(module, tmp_path / "p.pt")
    refused(read_torchscript, path, observation_shape=(4, 84, 84), scores="logits", says="of which range")
    as_bytes = read_torchscript(path, observation_shape=(4, 84, 84), scores="logits", pixels="bytes")
    torch.testing.assert_close(as_bytes.network(IMAGES), module(IMAGES.float()).detach())
    unit = read_torchscript(path, observation_shape=(4, 84, 84), scores="logits", pixels="unit")
    torch.testing.assert_close(unit.network(IMAGES), module(IMAGES.float() / 255).detach())


def test_probabilities_become_logits(tmp_path: Path) -> None:
    """A softmax of a softmax would be another policy, of the same best action."""
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(dim=1))
    path = script(module, tmp_path / "p.pt")
    policy = read_torchscript(path, observation_shape=(4,), num_actions=3, scores="logits")
    torch.testing.assert_close(policy.network(VECTORS).softmax(dim=1), module(VECTORS).detach())
    assert any("gives probabilities" in supposed for supposed in policy.provenance["supposed"])
    sure = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1))
    with torch.no_grad():
        sure[0].bias.copy_(torch.tensor([300.0, -300.0]))
    policy = read_torchscript(script(sure, tmp_path / "sure.pt"), observation_shape=(4,), scores="logits")
    assert bool(torch.isfinite(policy.network(VECTORS)).all())
    values = read_torchscript(path, observation_shape=(4,), num_actions=3, scores="q_values")
    torch.testing.assert_close(values.network(VECTORS), module(VECTORS).detach())


def test_what_units_a_programs_actions_have_is_said_to_be_supposed(tmp_path: Path) -> None:
    """Stable-Baselines3's recipe for an ONNX file of SAC gives -1 to 1, whatever the environment takes."""
    path = script(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), tmp_path / "p.pt")
    policy = read_torchscript(path, observation_shape=(4,), num_actions=2, scores="deterministic")
    assert policy.provenance["supposed"] == ["actions are in the environment's units"]


def test_torchscript_with_batchnorm_is_told_how_it_can_be_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    path = script(module, tmp_path / "p.pt")
    refused(read_torchscript, path, observation_shape=(4,), scores="logits", says=r"has a loop .* torch.jit.freeze")
    frozen = torch.jit.freeze(torch.jit.script(module.eval()))
    torch.jit.save(frozen, str(path))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    policy = read_torchscript(path, observation_shape=(4,), scores="logits")
    torch.testing.assert_close(policy.network(VECTORS), module(VECTORS).detach())


def test_torchscript_that_takes_floats_of_an_unknown_range_asks_for_it(tmp_path: Path) -> None:
    module = Scripted(divide=False, floats=False)
    path = script(module, tmp_path / "p.pt")
    refused(read_torchscript, path, observation_shape=(4, 84, 84), scores="logits", says="of which range")
    unit = read_torchscript(path, observation_shape=(4, 84, 84), scores="logits", pixels="unit")
    torch.testing.assert_close(unit.network(IMAGES), module(IMAGES.float() / 255).detach())
    whole = read_torchscript(path, observation_shape=(4, 84, 84), scores="logits", pixels="bytes")
    torch.testing.assert_close(whole.network(IMAGES), module(IMAGES.float()).detach())


def test_torchscript_of_vectors_needs_no_range_and_a_tuple_s_first_is_taken(tmp_path: Path) -> None:
    path = script(ActorCritic(), tmp_path / "p.pt")
    policy = read_torchscript(path, observation_shape=(4,), num_actions=2, scores="logits")
    assert policy.network(VECTORS).shape == (5, 2)


class Indexes(nn.Module):
    """Features in another order, and each row's largest score once more."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x[:, self.order])
        return out + out[torch.arange(x.shape[0]), out.argmax(1)][:, None]


@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_may_index_by_numbers(tmp_path: Path, traced: bool) -> None:
    """A mask gives as many rows as it has ones; numbers give as many rows as there are numbers."""
    module = Indexes()
    path = script(module, tmp_path / "p.pt", trace=VECTORS if traced else None)
    policy = read_torchscript(path, observation_shape=(4,), scores="logits")
    torch.testing.assert_close(policy.network(VECTORS), module(VECTORS).detach())


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pi, self.v = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pi(x), self.v(x)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"observation_shape": (4, 84, 84)}, "Q-values or logits"),
        ({"scores": "logits"}, "what it sees"),
        ({"observation_shape": (4, 64, 64), "scores": "logits"}, "does not run on observations"),
        ({"observation_shape": (4, 84, 84), "scores": "logits", "num_actions": 3}, "gives 6 numbers"),
    ],
)
def test_torchscript_asks_for_what_it_does_not_say(good: dict[str, Path], options: dict[str, Any], says: str) -> None:
    refused(read_torchscript, good["script.pt"], says=says, **options)


class Writes(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.where)
        return x


class Maps(Writes):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.where, True, 4)


class Loops(Writes):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() < 1):
            x = x * 1
        return x


class Loading(nn.Module):
    """Its program writes when it is loaded, not when it is run."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.where, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.where = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.where)


@pytest.mark.parametrize("module", [Writes, Maps, Loops, Loading])
def test_torchscript_that_touches_files_or_loops_is_refused_before_it_is_loaded(
    tmp_path: Path, module: type[Any]
) -> None:
    witness = tmp_path / "written"
    path = script(module(str(witness)), tmp_path / "p.pt")
    refused(read_torchscript, path, observation_shape=(4,), scores="logits", says="is refused: its program")
    assert not witness.exists()


def test_torchscript_with_nan_is_refused(tmp_path: Path) -> None:
    module = Scripted()
    nn.init.constant_(module.layers[3].bias, torch.nan)  # type: ignore[arg-type]  # a Linear's
    path = script(module, tmp_path / "p.pt")
    refused(read_torchscript, path, observation_shape=(4, 84, 84), scores="logits", says="NaN")


# --- ONNX ---


def onnx_mlp(
    path: Path,
    *,
    batch: Any = "batch",
    output: str = "q_values",
    dtype: str = "FLOAT",
    external: str | None = None,
    metadata: dict[str, str] | None = None,
    poison: bool = False,
) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind = getattr(onnx.TensorProto, dtype)
    tensors = [
        numpy_helper.from_array(
            MLP[f"q.{i}.{role}"].numpy() * np.float32(np.nan if poison and i == 0 else 1), f"q{i}{role}"
        )
        for i in (0, 2, 4)
        for role in ("weight", "bias")
    ]
    if external is not None:
        weight = tensors[0]
        data = weight.raw_data
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(len(data)))):
            weight.external_data.add(key=key, value=value)
        if "/" not in external:
            (path.parent / external).write_bytes(data)
    nodes = [
        helper.make_node("Cast", ["observations"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gemm", ["x", "q0weight", "q0bias"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "q2weight", "q2bias"], ["c"], transB=1),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "q4weight", "q4bias"], [output], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("observations", kind, [batch, 4])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [batch, 2])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def onnx_images(path: Path, *, divisor: float | None, channels_last: bool = False, dtype: str = "FLOAT") -> Path:
    """The mean of each of the 4 channels of (B, 4, 84, 84) or (B, 84, 84, 4), over a divisor."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    shape = ["batch", 84, 84, 4] if channels_last else ["batch", 4, 84, 84]
    constants = [] if divisor is None else [onnx.numpy_helper.from_array(np.array(divisor, np.float32), "divisor")]
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2] if channels_last else [2, 3], keepdims=0),
        helper.make_node("Identity", ["m"], ["logits"])
        if divisor is None
        else helper.make_node("Div", ["m", "divisor"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info("images", getattr(onnx.TensorProto, dtype), shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_an_onnx_model_gives_what_its_formula_gives_whatever_its_batch(tmp_path: Path, batch: Any) -> None:
    policy = read_onnx(onnx_mlp(tmp_path / "p.onnx", batch=batch), num_actions=2)
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), mlp_scores(MLP, MLP_NAMES, VECTORS, relu), atol=1e-6)
    assert policy.scores == "q_values"
    assert policy.observation_space is not None
    assert policy.observation_space.shape == (4,)
    assert policy.provenance["parameters"] == 4 * 8 + 8 + 8 * 5 + 5 + 5 * 2 + 2


def test_an_onnx_model_of_double_or_half_precision_is_fed_with_it(tmp_path: Path) -> None:
    expected = mlp_scores(MLP, MLP_NAMES, VECTORS, relu)
    for dtype, tolerance in (("DOUBLE", 1e-6), ("FLOAT16", 1e-2)):
        policy = read_onnx(onnx_mlp(tmp_path / "p.onnx", dtype=dtype))
        np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=tolerance)


def test_an_onnx_model_s_metadata_may_say_the_kind_of_scores(tmp_path: Path) -> None:
    path = onnx_mlp(tmp_path / "p.onnx", output="out")
    refused(read_onnx, path, says="Q-values or logits")
    assert read_onnx(path, scores="logits").scores == "logits"
    path = onnx_mlp(tmp_path / "p.onnx", output="out", metadata={"score_kind": "logits"})
    assert read_onnx(path).scores == "logits"


def test_onnx_weights_beside_the_model_are_read_and_those_elsewhere_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "p.onnx"
    policy = read_onnx(onnx_mlp(path, external="p.onnx.data"))
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), mlp_scores(MLP, MLP_NAMES, VECTORS, relu), atol=1e-6)
    (tmp_path / "outside").write_bytes(b"\0" * 128)
    for location in ("../outside", str(tmp_path / "outside"), "a/../../outside"):
        refused(read_onnx, onnx_mlp(path, external=location), says="outside of its folder")
    (tmp_path / "model" / "p.onnx.data").unlink()
    path.write_bytes(onnx_mlp(path, external="x.data").read_bytes())
    (tmp_path / "model" / "x.data").unlink()
    refused(read_onnx, path, says="lacks the file")
    (tmp_path / "model" / "x.data").symlink_to(tmp_path / "outside")
    refused(read_onnx, path, says="behind a link")


def test_onnx_images_are_scaled_once(tmp_path: Path) -> None:
    means = IMAGES.float().mean(dim=(2, 3))
    inside = read_onnx(onnx_images(tmp_path / "p.onnx", divisor=255.0))
    torch.testing.assert_close(inside.network(IMAGES), means / 255)
    as_bytes = read_onnx(onnx_images(tmp_path / "p.onnx", divisor=None, dtype="UINT8"))
    torch.testing.assert_close(as_bytes.network(IMAGES), means)
    path = onnx_images(tmp_path / "p.onnx", divisor=None)
    refused(read_onnx, path, says="of which range")
    torch.testing.assert_close(read_onnx(path, pixels="unit").network(IMAGES), means / 255)
    torch.testing.assert_close(read_onnx(path, pixels="bytes").network(IMAGES), means)


def test_onnx_images_with_channels_last_are_turned_round(tmp_path: Path) -> None:
    path = onnx_images(tmp_path / "p.onnx", divisor=255.0, channels_last=True)
    for shape in (None, (4, 84, 84)):
        policy = read_onnx(path, observation_shape=shape)
        assert policy.observation_space is not None
        assert policy.observation_space.shape == (4, 84, 84)
        torch.testing.assert_close(policy.network(IMAGES), IMAGES.float().mean(dim=(2, 3)) / 255)
    refused(read_onnx, path, observation_shape=(4, 64, 64), says="takes observations of shape")


@pytest.mark.slow
def test_an_onnx_model_of_torch_s_exporter_is_read(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    module = Scripted().eval()
    torch.onnx.export(
        module,
        (IMAGES,),
        str(tmp_path / "p.onnx"),
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    policy = read_onnx(tmp_path / "p.onnx")
    torch.testing.assert_close(policy.network(IMAGES), module(IMAGES).detach(), atol=1e-5, rtol=1e-4)
    assert kind_of(tmp_path / "p.onnx") == "onnx"


def test_an_endless_onnx_model_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info("i", kind.INT64, []), helper.make_tensor_value_info("go", kind.BOOL, [])],
        [helper.make_tensor_value_info("on", kind.BOOL, [])],
    )
    nodes = [
        helper.make_node("Loop", ["", ""], [], body=body),
        helper.make_node("Identity", ["x"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("x", kind.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["n", 2])],
    )
    (tmp_path / "p.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    refused(read_onnx, tmp_path / "p.onnx", says="whose end nobody can foresee")


@pytest.mark.parametrize("count", [10**9, 10**12])
def test_an_onnx_model_of_kilobytes_that_takes_gigabytes_to_run_is_refused(tmp_path: Path, count: int) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bomb",
        [helper.make_tensor_value_info("x", kind.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["n", 4])],
        [helper.make_tensor("count", kind.INT64, [1], [count])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "p.onnx").write_bytes(model.SerializeToString())
    refused(read_onnx, tmp_path / "p.onnx", says="does not run on observations")


def test_a_damaged_onnx_model_is_one_clear_line(tmp_path: Path) -> None:
    data = onnx_mlp(tmp_path / "good.onnx").read_bytes()
    path = tmp_path / "p.onnx"
    generator = np.random.default_rng(5)
    for damaged in (b"", b"text\n" * 50, data[:100], data[:-10], data[10:], b"\x08\x08" * 50, b"\xff" * 100):
        path.write_bytes(damaged)
        refused(read_onnx, path, says="p.onnx")
    for _ in range(40):
        flipped = bytearray(data)
        flipped[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        kind_of(path)
        try:
            read_onnx(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
    refused(read_onnx, onnx_mlp(path, poison=True), says="NaN")
    refused(read_onnx, onnx_mlp(path), observation_shape=(3,), says="takes observations of shape")
    refused(read_onnx, onnx_mlp(path), num_actions=3, says="gives 2 numbers")
    refused(read_onnx, onnx_mlp(path), output="logits", says="has no output")


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    # A model by hand: ir_version 8 and an empty graph.
    (tmp_path / "p.onnx").write_bytes(b"\x08\x08\x3a\x00")
    refused(read_onnx, tmp_path / "p.onnx", says=r"pip install 'rldistill\[onnx\]'")
    assert kind_of(tmp_path / "p.onnx") == "onnx"


def test_a_nest_of_a_thousand_graphs_ends_in_one_line(tmp_path: Path) -> None:
    inner = b""
    for _ in range(300):  # graph > node > attribute > graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size = len(inner)
            length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
            inner = tag + length + inner
            if len(inner) > 16_000:
                break
    size = len(inner)
    model = b"\x08\x08\x3a" + bytes([size & 127 | 128, size >> 7]) + inner
    refused(contents_of, model, tmp_path / "p.onnx", says="p.onnx")


# --- CleanRL ---


def saved(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def write_script(path: Path, layer: str, activation: str, forward: str = "") -> Path:
    """Writes a script such as CleanRL puts beside its policies, and returns the policy's path."""
    text = (
        "class QNetwork(nn.Module):\n    def __init__(self, env):\n"
        "        super().__init__()\n"
        f"        self.{layer} = nn.Sequential(nn.Linear(np.array(env.shape).prod(), 64), {activation}, nn.Linear(64, 2))\n"
        f"    def forward(self, x):\n        {forward or f'return self.{layer}(x)'}\n"
    )
    path.with_suffix(".py").write_text(text)
    return path


def test_cleanrl_dqn_has_relus_and_ppo_has_tanhs(tmp_path: Path) -> None:
    names = ("network.0", "network.2", "network.4")
    state = {**linear("network.0", 4, 12), **linear("network.2", 12, 8), **linear("network.4", 8, 2)}
    path = saved(OrderedDict(state), tmp_path / "CartPole-v1__dqn__1__1700000000" / "dqn.cleanrl_model")
    policy = read_cleanrl(write_script(path, "network", "nn.ReLU()"))
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), mlp_scores(state, names, VECTORS, relu), atol=1e-6)
    assert (policy.algorithm, policy.scores, policy.env) == ("DQN", "q_values", "CartPole-v1")
    assert not policy.normalization_expected
    names = ("actor.0", "actor.2", "actor.4")
    actor = {**linear("actor.0", 4, 12), **linear("actor.2", 12, 8), **linear("actor.4", 8, 2)}
    critic = {**linear("critic.0", 4, 12), **linear("critic.2", 12, 8), **linear("critic.4", 8, 1)}
    path = saved({**critic, **actor}, tmp_path / "ppo.cleanrl_model")
    policy = read_cleanrl(write_script(path, "actor", "nn.Tanh()"))
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), mlp_scores(actor, names, VECTORS, np.tanh), atol=1e-6)
    assert (policy.algorithm, policy.scores, policy.env) == ("PPO", "logits", None)


def test_cleanrl_s_atari_networks_divide_pixels_themselves(tmp_path: Path) -> None:
    names = ("network.0", "network.2", "network.4", "network.7", "network.9")
    state = nature(*names)
    policy = read_cleanrl(saved(state, tmp_path / "dqn_atari.cleanrl_model"))
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(state, names, IMAGES))
    assert policy.scores == "q_values"
    names = ("network.0", "network.2", "network.4", "network.7", "actor")
    state = nature(*names)
    policy = read_cleanrl(saved({**state, **linear("critic", 16, 1)}, tmp_path / "ppo_atari.cleanrl_model"))
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(state, names, IMAGES))
    assert policy.scores == "logits"
    names = ("conv.0", "conv.2", "conv.4", "fc1", "fc_logits")
    policy = read_cleanrl(saved((nature(*names), {}), tmp_path / "sac_atari.cleanrl_model"))
    torch.testing.assert_close(policy.network(IMAGES), nature_scores(nature(*names), names, IMAGES))
    assert (policy.algorithm, policy.scores) == ("SAC", "logits")


def test_cleanrl_s_c51_is_the_mean_of_its_atoms(tmp_path: Path) -> None:
    state = {
        "atoms": torch.linspace(-100, 100, 11),
        **linear("network.0", 4, 12),
        **linear("network.2", 12, 8),
        **linear("network.4", 8, 3 * 11),
    }
    args = {"env_id": "CartPole-v1", "exp_name": "c51", "seed": 1, "track": False, "tau": 1.0, "hf_entity": ""}
    policy = read_cleanrl(
        saved({"model_weights": state, "args": args}, tmp_path / "c51.cleanrl_model"), architecture="mlp:12,8"
    )
    logits = mlp_scores(state, ("network.0", "network.2", "network.4"), VECTORS, relu).reshape(5, 3, 11)
    odds = np.exp(logits)
    expected = (odds / odds.sum(axis=2, keepdims=True) * np.linspace(-100, 100, 11)).sum(axis=2)
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-4)
    assert (policy.algorithm, policy.env, policy.provenance["script"]) == ("C51", "CartPole-v1", "c51")
    assert json.dumps(policy.provenance)


def test_cleanrl_s_continuous_ppo_says_that_its_normalization_is_lost(tmp_path: Path) -> None:
    names = ("actor_mean.0", "actor_mean.2", "actor_mean.4")
    actor = {**linear(names[0], 4, 12), **linear(names[1], 12, 8), **linear(names[2], 8, 3)}
    log_std = numbers(1, 3)
    state = {"actor_logstd": log_std, **linear("critic.0", 4, 1), **actor}
    policy = read_cleanrl(
        saved(state, tmp_path / "Hopper-v4-ppo_continuous_action-seed1" / "ppo_continuous_action.cleanrl_model"),
        architecture="mlp:12,8:tanh",
    )
    expected = np.hstack([mlp_scores(actor, names, VECTORS, np.tanh), np.repeat(log_std.numpy(), 5, axis=0)])
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)
    assert policy.normalization_expected
    assert policy.normalization is None
    assert (policy.scores, policy.squashed, policy.env) == ("gaussian", False, "Hopper-v4")


def test_cleanrl_s_td3_gives_actions_in_the_environment_s_units(tmp_path: Path) -> None:
    actor = {**linear("fc1", 4, 12), **linear("fc2", 12, 8), **linear("fc_mu", 8, 2)}
    scale, bias = torch.tensor([2.0, 0.5]), torch.tensor([0.0, 1.5])
    value = ({**actor, "action_scale": scale, "action_bias": bias}, linear("fc1", 6, 12), linear("fc1", 6, 12))
    policy = read_cleanrl(saved(value, tmp_path / "td3_continuous_action.cleanrl_model"), architecture="mlp:12,8")
    means = mlp_scores(actor, ("fc1", "fc2", "fc_mu"), VECTORS, relu)
    expected = np.tanh(means) * scale.numpy() + bias.numpy()
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)
    assert policy.scores == "deterministic"
    space = cast(Any, policy.action_space)
    assert (space.low.tolist(), space.high.tolist()) == ([-2.0, 1.0], [2.0, 2.0])


def test_cleanrl_s_sac_squeezes_its_deviations(tmp_path: Path) -> None:
    torso = {**linear("fc1", 4, 12), **linear("fc2", 12, 8)}
    state = {**torso, **linear("fc_mean", 8, 2), **linear("fc_logstd", 8, 2)}
    state |= {"action_scale": torch.full((1, 2), 2.0), "action_bias": torch.zeros(1, 2)}
    policy = read_cleanrl(saved(state, tmp_path / "sac_continuous_action.cleanrl_model"), architecture="mlp:12,8")
    means = mlp_scores(state, ("fc1", "fc2", "fc_mean"), VECTORS, relu)
    raw = mlp_scores(state, ("fc1", "fc2", "fc_logstd"), VECTORS, relu)
    expected = np.hstack([means, -5 + 3.5 * (np.tanh(raw) + 1)])
    np.testing.assert_allclose(policy.network(VECTORS).numpy(), expected, atol=1e-6)
    assert (policy.scores, policy.squashed) == ("gaussian", True)
    assert cast(Any, policy.action_space).high.tolist() == [2.0, 2.0]


def test_cleanrl_s_pqn_is_told_by_its_layer_norms(tmp_path: Path) -> None:
    state = {
        **linear("network.0", 4, 12),
        "network.1.weight": numbers(12, seed=5),
        "network.1.bias": numbers(12, seed=6),
        **linear("network.3", 12, 2),
    }
    policy = read_cleanrl(saved(state, tmp_path / "pqn.cleanrl_model"), architecture="mlp:12")
    x = F.linear(VECTORS, state["network.0.weight"], state["network.0.bias"])
    x = F.layer_norm(x, (12,), state["network.1.weight"], state["network.1.bias"])
    expected = F.linear(F.relu(x), state["network.3.weight"], state["network.3.bias"])
    torch.testing.assert_close(policy.network(VECTORS), expected)
    assert policy.algorithm == "PQN"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (linear("body", 4, 2), "of no CleanRL script"),
        ((), "is an empty tuple"),
        ({"network.0.res_block0.conv0.weight": numbers(2, 2, 3, 3), **linear("actor", 4, 2)}, "IMPALA"),
        ({**linear("actor_mean.0", 4, 3), "actor_logstd": numbers(1, 2)}, "3 means, but has 2"),
        ({**linear("actor_mean.0", 4, 3), "actor_logstd": numbers(1, 3), "extra": numbers(2)}, "left over"),
        ({**linear("fc_mu", 4, 3), "action_scale": numbers(2), "action_bias": numbers(3)}, "3 dimensions"),
        ({**linear("fc_mean", 4, 3), **linear("fc_logstd", 4, 2)}, "differ in shape"),
        ({"atoms": numbers(7), **linear("network.0", 4, 10)}, "no multiple of 7 atoms"),
        ({"network.0.weight": numbers(3, 4), "lstm.weight_ih_l0": numbers(3, 3)}, "recurrent"),
    ],
)  # fmt: skip
def test_a_cleanrl_file_that_is_not_understood_is_one_clear_line(tmp_path: Path, value: Any, says: str) -> None:
    refused(read_cleanrl, saved(value, tmp_path / "x.cleanrl_model"), says=says)


def test_cleanrl_s_jax_files_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "dqn_jax.cleanrl_model"
    path.write_bytes(b"\x81\xa6params\x82\xa7Dense_0\x80\xa7Dense_1\x80")  # MessagePack, as Flax writes it
    assert kind_of(path) == "cleanrl"
    refused(read_cleanrl, path, says="JAX")


# --- the hub ---

CLEANRL_CARD = """---
tags:
- CartPole-v1
- deep-reinforcement-learning
- reinforcement-learning
- custom-implementation
library_name: cleanrl
model-index:
- name: DQN
  results:
  - task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      name: CartPole-v1
      type: CartPole-v1
    metrics:
    - type: mean_reward
      value: 500.00 +/- 0.00
      name: mean_reward
      verified: false
---

# (CleanRL) **DQN** Agent Playing **CartPole-v1**
"""
SB3_CARD = """---
library_name: stable-baselines3
tags:
- LunarLander-v2
- deep-reinforcement-learning
- stable-baselines3
model-index:
- name: PPO
  results:
  - metrics:
    - type: mean_reward
      value: 233.40 +/- 46.80
      name: mean_reward
    task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      name: 'LunarLander-v2'
      type: LunarLander-v2
---
  # **PPO** Agent playing **LunarLander-v2**
dataset:
  name: not this one
"""


def sb3_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data", "policy.pth", "pytorch_variables.pth", "_stable_baselines3_version"):
            archive.writestr(name, b"{}")
    return path


def test_the_card_of_a_model_says_environment_tool_and_algorithm(tmp_path: Path) -> None:
    assert read_card(tmp_path) == Card()
    (tmp_path / "README.md").write_text(CLEANRL_CARD)
    assert read_card(tmp_path) == Card("CartPole-v1", "cleanrl", "DQN")
    (tmp_path / "README.md").write_bytes(SB3_CARD.replace("\n", "\r\n").encode())
    assert read_card(tmp_path) == Card("LunarLander-v2", "stable-baselines3", "PPO")
    (tmp_path / "README.md").write_text("---\ntags:\n- PongNoFrameskip-v4\n- atari\n---\n# Pong\n")
    assert read_card(tmp_path) == Card("PongNoFrameskip-v4", None, None)
    for text in ("# no metadata\nlibrary_name: cleanrl\n", "---\nlibrary_name: cleanrl\n", "", "---\n" * 3, "\0\xff"):
        (tmp_path / "README.md").write_text(text)
        assert read_card(tmp_path) == Card()


def test_the_policy_of_a_model_s_folder_is_found(tmp_path: Path) -> None:
    refused(find_policy_file, tmp_path / "missing", says="no folder")
    refused(find_policy_file, tmp_path, says="has no policy")
    (tmp_path / "replay.mp4").write_bytes(b"video")
    (tmp_path / "config.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "train_eval_metrics.zip", "w") as archive:  # the zoo puts one beside every policy
        archive.writestr("0.monitor.csv", b"r,l,t")
    sb3_zip(tmp_path / "ppo-LunarLander-v2.zip")
    assert find_policy_file(tmp_path).name == "ppo-LunarLander-v2.zip"
    assert not list(statistics_files([tmp_path]))
    (tmp_path / "vec_normalize.pkl").write_bytes(b"x")
    (tmp_path / "sac_replay_buffer.pkl").write_bytes(b"x")
    assert [file.name for file in statistics_files([tmp_path])] == ["vec_normalize.pkl"]
    sb3_zip(tmp_path / "dqn-LunarLander-v2.zip")
    refused(find_policy_file, tmp_path, says="several policies .dqn-LunarLander-v2.zip, ppo-LunarLander-v2.zip.")


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("hf://sb3/ppo-CartPole-v1", ("sb3", "ppo-CartPole-v1", None)),
        ("hf://sb3/ppo-CartPole-v1/", ("sb3", "ppo-CartPole-v1", None)),
        ("hf://cleanrl/x.y/dqn.cleanrl_model", ("cleanrl", "x.y", "dqn.cleanrl_model")),
        ("hf://a/b/folder/file.zip", ("a", "b", "folder/file.zip")),
    ],
)
def test_a_reference_to_the_hub_has_an_owner_a_name_and_perhaps_a_file(ref: str, expected: Any) -> None:
    assert parse_ref(ref) == expected


@pytest.mark.parametrize(
    "ref",
    ["hf://", "hf://a", "hf:///b", "hf://a/../b", "hf://a/b/../c", "https://a/b", "hf://a/b c", "hf://a/b\n"],
)
def test_a_reference_that_is_none_is_refused(ref: str) -> None:
    refused(parse_ref, ref, says="names no model of the hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of one model, in the place of the package: it notes what it was asked for."""
    asked: dict[str, Any] = {}
    errors = types.ModuleType("huggingface_hub.errors")
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]  # a module made here
    errors.GatedRepoError = type("GatedRepoError", (Exception,), {})  # type: ignore[attr-defined]  # a module made here

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        if repo == "no/such":
            raise errors.RepositoryNotFoundError("404 Client Error\nof many lines")
        if repo == "no/network":
            raise OSError("Connection refused\nat length")
        return str(tmp_path)

    package = types.ModuleType("huggingface_hub")
    package.snapshot_download = snapshot_download  # type: ignore[attr-defined]  # a module made here
    package.errors = errors  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_a_model_of_the_hub_is_fetched_without_its_videos(tmp_path: Path, hub: dict[str, Any]) -> None:
    assert fetch("hf://sb3/ppo-CartPole-v1") == tmp_path
    assert hub["repo"] == "sb3/ppo-CartPole-v1"
    assert "*.zip" in hub["allow_patterns"]
    assert not any("mp4" in pattern for pattern in hub["allow_patterns"])
    assert "*train_eval_metrics*" in hub["ignore_patterns"]
    refused(fetch, "hf://sb3/ppo-CartPole-v1/x.zip", says="has no file x.zip")
    sb3_zip(tmp_path / "x.zip")
    assert fetch("hf://sb3/ppo-CartPole-v1/x.zip") == tmp_path / "x.zip"
    assert "*.yml" in hub["allow_patterns"]  # which say whether observations were normalized
    refused(fetch, "hf://no/such", says="no model no/such on the hub")
    refused(fetch, "hf://no/network", says="Connection refused; fetch it by hand")


def test_the_hub_s_own_package_has_what_is_asked_of_it() -> None:
    package = pytest.importorskip("huggingface_hub")
    import inspect

    from huggingface_hub import errors

    assert {"allow_patterns", "ignore_patterns"} <= set(inspect.signature(package.snapshot_download).parameters)
    assert issubclass(errors.RepositoryNotFoundError, Exception)
    assert issubclass(errors.GatedRepoError, Exception)


def test_without_the_hub_s_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(fetch, "hf://a/b", says=r"pip install 'rldistill\[hub\]'")


# --- telling them apart ---


def test_every_kind_is_told_by_its_content_and_not_by_its_name(tmp_path: Path, good: dict[str, Path]) -> None:
    expected = {
        "a2c.pth": "state dict",
        "old.pth": "state dict",
        "a2c.safetensors": "state dict",
        "script.pt": "torchscript",
        "ppo.cleanrl_model": "cleanrl",
    }
    for name, kind in expected.items():
        assert kind_of(good[name]) == kind
        if name != "old.pth":
            (tmp_path / "renamed.zip").write_bytes(good[name].read_bytes())
            assert kind_of(tmp_path / "renamed.zip") == kind
    assert kind_of(sb3_zip(tmp_path / "x.bin")) == "sb3"
    task = Task("CartPole-v1", 2, (4,), "float32")
    save_policy(tmp_path / "run" / "policy", build(Architecture("mlp:4", (4,), 2), 0), task, {})
    assert kind_of(tmp_path / "run" / "policy") == "policy folder"
    assert kind_of(tmp_path / "run") == "run folder"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text(SB3_CARD)
    assert kind_of(tmp_path / "model") == "hub folder"
    (tmp_path / "model" / "README.md").unlink()
    assert kind_of(tmp_path / "model") == "unknown"
    sb3_zip(tmp_path / "model" / "ppo-CartPole-v1.zip")
    assert kind_of(tmp_path / "model") == "hub folder"


def test_the_teachers_from_elsewhere_are_told(teachers: Path) -> None:
    assert {kind_of(path) for path in (teachers / "sb3").glob("*.zip")} == {"sb3"}
    assert {kind_of(path) for path in (teachers / "atari").glob("*.pth")} == {"state dict"}


def test_an_onnx_model_is_told_by_its_outermost_fields(tmp_path: Path) -> None:
    assert kind_of(onnx_mlp(tmp_path / "p.bin")) == "onnx"


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"PK\x03\x04", b"text", b"\x08", b"\x08\x08", b"\x08\x08\x3a\xff\xff\xff\x7f", b"\x80", b"\x81\xa6params"]
)  # fmt: skip
def test_what_is_nothing_known_is_unknown(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert kind_of(tmp_path / "x") == "unknown"
    assert kind_of(tmp_path / "missing") == "unknown"


def test_telling_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    torch.save({"q": Payload(witness)}, tmp_path / "a.pth")
    torch.save({"q": Payload(witness)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    assert [kind_of(tmp_path / name) for name in ("a.pth", "b.pth")] == ["state dict", "state dict"]
    assert not witness.exists()
