"""Statistics of VecNormalize, read without running their pickles."""

import collections
import contextlib
import pickle
import random
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation
from numpy.testing import assert_array_equal

from hostile_pickles import payload, pickle_bomb
from rldistill.formats.arrays import admits_statistics, array
from rldistill.formats.pickles import Inert, interpret
from rldistill.formats.statistics import read_normalization, read_statistics
from rldistill.types import UserError

VEC_NORMALIZE = "stable_baselines3.common.vec_env.vec_normalize"
MOMENTS = "stable_baselines3.common.running_mean_std"
MEAN = np.array([0.5, -2.0, 1e6])
VARIANCE = np.array([1.0, 0.0, 4.0])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Makes empty objects of classes of packages that are not installed, which pickle as the real ones do."""

    def make(module: str, name: str, **state: Any) -> Any:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            if prefix not in sys.modules:
                monkeypatch.setitem(sys.modules, prefix, types.ModuleType(prefix))
        home = sys.modules[module]
        if not hasattr(
            getattr(home, name, None), "is_fake"
        ):  # the real one, where it was imported, wants to be made whole
            kind = type(name, (), {"__module__": module, "is_fake": True})
            monkeypatch.setattr(home, name, kind, raising=False)
        made = getattr(home, name)()
        made.__dict__.update(state)
        return made

    return make


def normalizer(fake: Any, **changes: Any) -> Any:
    moments = fake(MOMENTS, "RunningMeanStd", mean=MEAN, var=VARIANCE, count=1e3)
    rewards = fake(MOMENTS, "RunningMeanStd", mean=np.float64(3), var=np.float64(2), count=1e3)
    state = {
        "num_envs": 2,
        "observation_space": spaces.Box(-1, 1, (3,)),
        "action_space": spaces.Discrete(3, seed=1),
        "obs_rms": moments,
        "ret_rms": rewards,
        "clip_obs": 5.0,
        "epsilon": 1e-8,
        "norm_obs": True,
        "old_obs": np.zeros((2, 3), dtype=np.float32),
        "infos": collections.deque([collections.OrderedDict(a=1)], 10),
    }
    return fake(VEC_NORMALIZE, "VecNormalize", **{**state, **changes})


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_statistics_of_every_protocol_are_read(tmp_path: Path, fake: Any, protocol: int) -> None:
    path = write(tmp_path / "s.pkl", normalizer(fake), protocol)
    statistics = read_statistics(path)
    assert_array_equal(statistics.mean, MEAN)
    assert_array_equal(statistics.variance, VARIANCE)
    assert (statistics.epsilon, statistics.limit, statistics.source) == (1e-8, 5.0, str(path))


def test_statistics_of_the_gym_days_are_read(tmp_path: Path, fake: Any) -> None:
    space = fake("gym.spaces.box", "Box", shape=(3,), low=np.zeros(3), np_random=np.random.RandomState(0))
    data = pickle.dumps(normalizer(fake, observation_space=space), 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in data
    assert b"gym.spaces.box" in data
    path = tmp_path / "s.pkl"
    path.write_bytes(data)
    assert_array_equal(read_statistics(path).mean, MEAN)


def test_statistics_beside_the_files_given_are_read(teachers: Path) -> None:
    statistics = read_statistics(teachers / "sb3" / "ppo-Acrobot-v1.vecnormalize.pkl")
    assert statistics.mean.shape == (6,)
    assert statistics.limit == 10.0
    np.testing.assert_allclose(statistics.mean[0], 0.538600954, rtol=1e-8)


def test_an_observation_is_normalized_in_double_precision(tmp_path: Path, fake: Any) -> None:
    statistics = read_statistics(write(tmp_path / "s.pkl", normalizer(fake)))
    observations = np.array([[0.0, -2.0, 1e6 + 1], [2.0, -2.0 + 1e-4, 0.0]], dtype=np.float32)
    wanted = np.clip((observations - MEAN) / np.sqrt(VARIANCE + 1e-8), -5, 5).astype(np.float32)
    assert_array_equal(statistics(torch.from_numpy(observations)).numpy(), wanted)


@pytest.mark.parametrize("trust", [False, True])
def test_rewards_alone_are_no_normalization(tmp_path: Path, fake: Any, trust: bool) -> None:
    path = write(tmp_path / "s.pkl", normalizer(fake, norm_obs=False))
    assert read_normalization(path, trust_pickle=trust) is None
    with pytest.raises(UserError, match="observations were not normalized"):
        read_statistics(path, trust_pickle=trust)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"obs_rms": {}}, "dictionary"),
        ({"obs_rms": None}, "no VecNormalize"),
        ({"epsilon": -1.0}, "no such numbers"),
        ({"clip_obs": 0}, "no such numbers"),
        ({"clip_obs": "ten"}, "missing or damaged"),
    ],
)
def test_statistics_that_cannot_be_used_say_why(tmp_path: Path, fake: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=f"s.pkl.*{text}"):
        read_statistics(write(tmp_path / "s.pkl", normalizer(fake, **changes)))


@pytest.mark.parametrize(
    ("mean", "variance"), [([np.nan], [1.0]), ([0.0], [-1.0]), ([0.0], [np.inf]), ([0.0, 1], [1.0])]
)
def test_moments_that_are_none_are_refused(tmp_path: Path, fake: Any, mean: list[float], variance: list[float]) -> None:
    moments = fake(MOMENTS, "RunningMeanStd", mean=np.array(mean), var=np.array(variance))
    with pytest.raises(UserError, match="no statistics that can be used"):
        read_statistics(write(tmp_path / "s.pkl", normalizer(fake, obs_rms=moments)))


@pytest.mark.parametrize("trust_pickle", [False, True])
def test_moments_of_gymnasiums_own_wrapper_are_statistics_too(tmp_path: Path, trust_pickle: bool) -> None:
    """CleanRL's continuous PPO plays in `NormalizeObservation`, then clips to 10, and keeps neither in its checkpoint."""
    wrapped = NormalizeObservation(gymnasium.make("Pendulum-v1"))
    wrapped.reset(seed=0)
    for _ in range(50):
        wrapped.step(np.array([1.0], dtype=np.float32))
    path = write(tmp_path / "obs_rms.pkl", wrapped.obs_rms)
    statistics = read_statistics(path, trust_pickle=trust_pickle)
    wrapped.update_running_mean = False
    observation = np.array([0.3, -0.9, 4.0])
    expected = wrapped.observation(observation)
    normalized = statistics(torch.from_numpy(observation)[None])[0].numpy()
    np.testing.assert_allclose(normalized, expected, rtol=1e-5)
    assert statistics.limit == 10


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


def test_a_payload_is_refused_by_name_and_not_run(tmp_path: Path, fake: Any) -> None:
    canary = tmp_path / "canary"
    path = write(tmp_path / "s.pkl", normalizer(fake, hidden=Payload(canary)))
    with pytest.raises(UserError, match=r"s.pkl is refused: its pickle wants to call _?io.open; .* --trust-pickle"):
        read_statistics(path)
    assert not canary.exists()


def test_a_trusted_payload_is_run(tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    path = write(tmp_path / "s.pkl", normalizer(fake, hidden=Payload(canary)))
    monkeypatch.delitem(sys.modules, VEC_NORMALIZE)  # and the packages need not be there
    assert_array_equal(read_statistics(path, trust_pickle=True).mean, MEAN)
    assert canary.exists()


def test_a_trusted_file_that_fails_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "s.pkl"
    path.write_bytes(b"cnowhere\nnothing\n.")
    with pytest.raises(UserError, match="cannot be unpickled: No module named 'nowhere'"):
        read_statistics(path, trust_pickle=True)


def test_no_form_of_payload_is_run(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "s.pkl"
    for _ in range(200):
        path.write_bytes(payload(rng, tmp_path / "canary"))
        with pytest.raises(UserError, match="wants to call"):
            read_statistics(path)
        assert not (tmp_path / "canary").exists()


def test_payloads_of_the_generator_would_run() -> None:
    """So that the canary means something."""
    ran = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(40):
            canary = Path(folder) / f"canary{seed}"
            with contextlib.suppress(Exception):
                pickle.loads(payload(random.Random(seed), canary))
            ran += canary.exists()
    assert ran >= 10


@pytest.mark.slow
def test_bombs_are_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "s.pkl"
    for seed in range(60):
        path.write_bytes(pickle_bomb(b"", random.Random(seed), path))
        begin = time.perf_counter()
        with pytest.raises(UserError):
            read_statistics(path)
        assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x04", b"N", b"0.", b"(.", b"a.", b"(N", b"h\x00.", b"}NN.", b"Nb.", b"](Nu.", b"NNR.", b"NN\x81.", b"t.",
        b"\x80\x04K\x01K\x02\x93.", b"\x82\x01.", b"\x97.", b"Pabc\n.", b"NQ.", b"})Nsq", b"}(KKu.", b"I9" + b"9" * 5000 + b"\n.",
        b"ccollections\nOrderedDict\nK\x01\x85R.", b"ccollections\ndeque\nN\x85R.", b"c_codecs\nencode\nNN\x86R.",
        b"(i\n.", b"(o.", b"(No.", b"copyreg", b"ccopyreg\n_reconstructor\n)R.",
    ],
)  # fmt: skip
def test_nonsense_is_a_user_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="s.pkl"):
        read_statistics(path)


VALUES = [
    None, True, 3, -(2**100), 1.5, "text", b"bytes", (), (1, 2, 3, 4), [1, [2]], {"a": {"b": 1}}, bytearray(b"x"),
    {1, 2}, frozenset({3}), collections.OrderedDict(a=1), collections.deque([1, 2], 5),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_are_read_as_python_does(value: Any, protocol: int) -> None:
    read, _ = interpret(pickle.dumps(value, protocol), admits_statistics, source="x")
    assert read == (list(value) if isinstance(value, set | frozenset | collections.deque) else value)


ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3.0), np.zeros((0, 3)),
    np.arange(3, dtype=">i4"), np.array([True, False]), np.arange(4, dtype=np.float16),
    np.float32(2.5), np.int64(7), np.uint8(200), np.bool_(True),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("value", ARRAYS, ids=repr)
def test_arrays_are_read_as_numpy_does(value: Any, protocol: int) -> None:
    read, _ = interpret(pickle.dumps(value, protocol), admits_statistics, source="x")
    made = array(read)
    assert made.dtype == np.float64
    assert_array_equal(made, np.asarray(value, dtype=np.float64))


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array(["a"]), np.zeros(2, complex), np.zeros(1, "V8"), np.datetime64(0, "s")]
)
def test_arrays_of_anything_but_numbers_are_refused(value: Any) -> None:
    with pytest.raises(UserError):
        array(interpret(pickle.dumps(value), admits_statistics, source="x")[0])


def test_spaces_are_inert() -> None:
    read, _ = interpret(pickle.dumps(spaces.Discrete(5, seed=3)), admits_statistics, source="x")
    assert isinstance(read, Inert)
    assert read.name == "gymnasium.spaces.discrete.Discrete"
