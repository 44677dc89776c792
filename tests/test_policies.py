import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from rldistill.policies import SavedPolicy, card_checksum, load_policy, save_policy
from rldistill.students.networks import Architecture, Network, build
from rldistill.types import ScoreKind, Task, UserError

TASK = Task("ALE/Pong-v5", 6, (4, 84, 84), frame_skip=4, frame_stack=4, sticky_actions=0.25, random_score=-20.7)
CARTPOLE = Task("CartPole-v1", 2, (4,), "float32")
PROVENANCE = {
    "command": "rldistill train",
    "seed": 7,
    "score": {"mean": 19.5, "returns": [20.0, 19.0]},
    "by_rank": {2: 1},
}


def small(seed: int = 0) -> Network:
    network = build(Architecture("mlp:16", (4,), 2, dropout=0.1), seed, "logits")
    network.standardize(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.full((4,), 1 / 3))
    return network


def refused(folder: Path, says: str = "") -> None:
    with pytest.raises(UserError, match=says) as refusal:
        load_policy(folder)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "saved", small(), CARTPOLE, PROVENANCE)
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as path:
        save_policy(Path(path), small(), CARTPOLE, PROVENANCE)
        return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def test_a_policy_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = build(Architecture("net3", (4, 84, 84), 6, "layer"), 1)
    network.standardize(torch.tensor([90.0]), torch.tensor([3 / 255]))
    save_policy(tmp_path / "p", network, TASK, {"steps": 5})
    policy = load_policy(tmp_path / "p")
    assert policy.task == TASK
    assert policy.score_kind == "q_values"
    assert policy.provenance == {"steps": 5}
    assert policy.path == tmp_path / "p"
    assert policy.network.architecture == network.architecture
    for name, tensor in network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], tensor), name
    observations = torch.arange(2 * 4 * 84 * 84).remainder(251).to(torch.uint8).reshape(2, 4, 84, 84)
    with torch.no_grad():  # as the policy computes: for gradients images are laid out otherwise, and sums end otherwise
        assert torch.equal(policy(observations), network(observations))
    assert not policy(observations).requires_grad


def test_a_loaded_policy_is_sure_of_itself(folder: Path) -> None:
    policy = load_policy(folder)
    observations = torch.ones((3, 4))
    assert policy.score_kind == "logits"
    assert policy.network.architecture.dropout == 0.1
    assert torch.equal(policy(observations), policy(observations))
    assert not any(parameter.requires_grad for parameter in policy.network.parameters())


def test_half_precision_halves_the_file_and_moves_the_scores_little(tmp_path: Path) -> None:
    network = build(Architecture("net3", (4, 84, 84), 6), 1).eval()
    save_policy(tmp_path / "full", network, TASK, {})
    save_policy(tmp_path / "half", network, TASK, {}, dtype="float16")
    full, half = ((tmp_path / name / "weights.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.51 * full + 2_000
    policy = load_policy(tmp_path / "half")
    assert torch.equal(policy.network.scale, network.scale), "1 / 255 needs its digits"
    observations = torch.full((1, 4, 84, 84), 100, dtype=torch.uint8)
    torch.testing.assert_close(policy(observations), network(observations), rtol=1e-2, atol=1e-3)
    assert not torch.equal(policy(observations), network(observations))


def test_a_run_folder_stands_for_its_policy(tmp_path: Path) -> None:
    save_policy(tmp_path / "run" / "policy", small(), CARTPOLE, {})
    assert load_policy(tmp_path / "run").path == tmp_path / "run" / "policy"


def test_what_is_no_policy_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no policy folder at .*nowhere")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "it has no policy.json")
    refused(folder / "policy.json", "no policy folder")


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
def test_a_missing_or_empty_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    refused(folder, name)
    (folder / name).unlink()
    refused(folder, name)
    (folder / name).mkdir()
    refused(folder, name)


def test_weights_of_another_policy_are_refused(tmp_path: Path, folder: Path) -> None:
    save_policy(tmp_path / "other", small(seed=1), CARTPOLE, PROVENANCE)
    shutil.copy(tmp_path / "other" / "weights.safetensors", folder)
    refused(folder, "checksum")


def altered(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def with_files(files: dict[str, bytes], **changed: bytes) -> SavedPolicy:
    """The policy of a folder with these files, `policy` and `weights` changed."""
    names = {"policy": "policy.json", "weights": "weights.safetensors"}
    with tempfile.TemporaryDirectory() as path:
        for name, data in (files | {names[key]: data for key, data in changed.items()}).items():
            (Path(path) / name).write_bytes(data)
        return load_policy(path)


@given(data=st.data())
def test_truncated_or_altered_weights_are_refused(files: dict[str, bytes], data: st.DataObject) -> None:
    weights = files["weights.safetensors"]
    at = data.draw(st.integers(0, len(weights) - 1))
    for wrong in (altered(weights, at, data.draw(st.integers(1, 255))), weights[:at], weights + b"\0"):
        with pytest.raises(UserError, match="weights.safetensors is damaged"):
            with_files(files, weights=wrong)


@given(data=st.data())
def test_a_truncated_card_is_refused(files: dict[str, bytes], data: st.DataObject) -> None:
    card = files["policy.json"].rstrip()
    at = data.draw(st.integers(0, len(card) - 1))
    with pytest.raises(UserError, match="policy.json is damaged") as refusal:
        with_files(files, policy=card[:at])
    assert len(str(refusal.value).splitlines()) == 1


@given(data=st.data())
def test_an_altered_card_is_refused_or_says_the_same(files: dict[str, bytes], data: st.DataObject) -> None:
    card = files["policy.json"]
    wrong = altered(card, data.draw(st.integers(0, len(card) - 1)), data.draw(st.integers(1, 255)))
    try:
        policy = with_files(files, policy=wrong)
    except UserError as error:
        assert "policy.json" in str(error)
        assert len(str(error).splitlines()) == 1
    else:  # a blank for another blank
        assert json.loads(wrong) == json.loads(card)
        assert policy.task == CARTPOLE


def test_a_card_without_its_checksum_is_refused(folder: Path) -> None:
    card = json.loads((folder / "policy.json").read_bytes())
    del card["card_sha256"]
    (folder / "policy.json").write_text(json.dumps(card))
    refused(folder, "its checksum does not fit")


TORSO = {"observation_shape": [4], "normalization": "none", "dropout": 0.1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "not of the format rldistill-policy"),
        ({"format_version": 99}, "not of the format rldistill-policy version 1"),
        ({"kind": "forest"}, "it is a 'forest'"),
        ({"head": {"score_kind": "votes"}}, "score_kind is 'votes'"),
        ({"head": {"task": Task("CartPole-v1", 3, (4,), "float32").as_dict()}}, "does not fit its task"),
        ({"head": {"task": {}}}, "a task lacks a field"),
        ({"head": {"num_scores": 3}}, "does not fit its task|damaged"),
        ({"heads": []}, "it has no head"),
        ({"heads": {}}, "damaged"),
        ({"heads": ["CartPole-v1"]}, "damaged"),
        ({"provenance": [1]}, "its provenance is no JSON object"),
        ({"architecture": {"name": "mlp:16"}}, "damaged"),
        ({"architecture": {"name": "mlp:17"} | TORSO}, "damaged"),
        ({"architecture": {"name": "what"} | TORSO}, "unknown network"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any], says: str) -> None:
    card = json.loads((folder / "policy.json").read_bytes())
    card["heads"][0] |= change.get("head", {})
    card |= {name: value for name, value in change.items() if name != "head"}
    (folder / "policy.json").write_text(json.dumps(card | {"card_sha256": card_checksum(card)}))
    refused(folder, says)


def test_a_folder_of_version_1_is_read_as_before(folder: Path) -> None:
    """One head, whose architecture, kind of scores and task stood in the card itself."""
    now = load_policy(folder)
    card = json.loads((folder / "policy.json").read_bytes())
    (head,) = card.pop("heads")
    del card["kind"]
    architecture = card["architecture"]
    card |= {
        "format_version": 1,
        "architecture": {name: architecture[name] for name in ("name", "observation_shape")}
        | {"num_actions": head["num_scores"], "normalization": "none", "dropout": 0.1},
        "score_kind": head["score_kind"],
        "task": head["task"],
    }
    (folder / "policy.json").write_text(json.dumps(card | {"card_sha256": card_checksum(card)}))
    before = load_policy(folder)
    assert (before.task, before.network.architecture, before.sha256) == (now.task, now.network.architecture, now.sha256)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_when_saved_and_when_loaded(
    folder: Path, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small()
    head = network.layers[-1]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.bias[1] = number
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"NaN or infinity \(in layers"):
        save_policy(folder, network, CARTPOLE, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with monkeypatch.context() as patch:  # as another program may write it
        patch.setattr("rldistill.policies.check_finite", lambda tensors, path: None)
        save_policy(folder, network, CARTPOLE, {})
    refused(folder, "NaN or infinity")


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    network = small()
    with torch.no_grad():
        next(network.parameters()).mul_(1e6)
    with pytest.raises(UserError, match="NaN or infinity"):
        save_policy(tmp_path / "p", network, CARTPOLE, {}, dtype="float16")
    assert not (tmp_path / "p").exists()


def test_a_policy_is_not_saved_where_a_file_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot make the policy folder"):
        save_policy(tmp_path / "file", small(), CARTPOLE, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_the_weights_can_be_read_without_this_library(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in small().state_dict().items()
    }


ARM = Task("arm", 2, (4,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, float("inf")))
LEVERS = Task("levers", 5, (4,), "float32", action_sizes=(2, 3))


@pytest.mark.parametrize(
    ("task", "kind", "width"),
    [(ARM, "gaussian", 4), (ARM, "squashed_gaussian", 4), (ARM, "actions", 2), (LEVERS, "logits", 5)],
    ids=lambda value: value.env if isinstance(value, Task) else str(value),
)
def test_a_policy_of_other_actions_comes_back_and_another_width_is_refused(
    tmp_path: Path, task: Task, kind: ScoreKind, width: int
) -> None:
    network = build(Architecture("mlp:8", (4,), width), 0, kind)
    save_policy(tmp_path / "p", network, task, {})
    policy = load_policy(tmp_path / "p")
    assert (policy.task, policy.score_kind) == (task, kind)
    observations = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(policy(observations), network(observations))
    save_policy(tmp_path / "wrong", build(Architecture("mlp:8", (4,), width + 1), 0, kind), task, {})
    refused(tmp_path / "wrong", "its network does not fit its task")


@pytest.mark.parametrize(
    ("task", "kind"), [(ARM, "logits"), (LEVERS, "q_values"), (LEVERS, "gaussian"), (CARTPOLE, "actions")]
)
def test_scores_that_do_not_suit_the_actions_are_refused(tmp_path: Path, task: Task, kind: ScoreKind) -> None:
    save_policy(tmp_path / "p", build(Architecture("mlp:8", (4,), task.num_actions), 0, kind), task, {})
    refused(tmp_path / "p", "its network does not fit its task")


def test_a_policy_of_part_of_the_observation_comes_back(tmp_path: Path) -> None:
    network = build(Architecture("mlp:3", (4,), 2, reads=(3, 0)), 2)
    network.standardize(torch.tensor([0.5, 1.0]), torch.tensor([2.0, 3.0]))
    save_policy(tmp_path / "p", network, CARTPOLE, {})
    loaded = load_policy(tmp_path / "p")
    assert loaded.network.architecture == network.architecture
    observations = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(observations), network(observations).detach())
    assert loaded.sha256 == SavedPolicy(network, CARTPOLE).sha256
    other = build(Architecture("mlp:3", (4,), 2, reads=(2, 0)), 2)
    other.load_state_dict(network.state_dict())
    assert loaded.sha256 != SavedPolicy(other, CARTPOLE).sha256, "the same numbers, of other features"


@pytest.mark.parametrize("reads", [[4], [-1, 0]])
def test_a_card_that_reads_features_that_are_not_there_is_refused(tmp_path: Path, reads: list[int]) -> None:
    network = build(Architecture("mlp:3", (4,), 2, reads=tuple(range(len(reads)))), 2)
    save_policy(tmp_path / "p", network, CARTPOLE, {})
    card = json.loads((tmp_path / "p" / "policy.json").read_text())
    card["heads"][0]["reads"] = reads
    card["card_sha256"] = card_checksum(card)
    (tmp_path / "p" / "policy.json").write_text(json.dumps(card))
    refused(tmp_path / "p", r"reads features that observations of shape \(4,\) do not have")
