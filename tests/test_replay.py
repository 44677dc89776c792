"""The ring of frames: what comes out is what the environment showed, and nothing else is ever drawn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rldistill.play.envs import Environments, make_task
from rldistill.play.replay import Replay
from rldistill.types import Observations, Task, UserError

VECTOR = Task("a", 2, (2,), "float32")
STACKED = Task("b", 2, (4, 1, 1), "uint8", frame_stack=4)
DQN_COLUMNS = {
    "actions": ((), np.int64),
    "rewards": ((), np.float32),
    "terminated": ((), np.bool_),
    "truncated": ((), np.bool_),
}


@pytest.mark.slow
def test_stacks_are_those_that_pong_showed_across_ends_and_around_the_ring() -> None:
    task = make_task("PongNoFrameskip-v4", max_frames=120, noop_max=5)  # an episode is 29 or 30 control steps
    environments = Environments(task, 3, 0)
    replay = Replay(task, 3, 3 * 40, {"actions": ((), np.int64)})
    generator = np.random.default_rng(0)
    past: list[Observations] = []
    taken: list[npt.NDArray[np.int64]] = []
    starts = 0
    for _ in range(101):
        actions = generator.integers(task.num_actions, size=3)
        past.append(environments.observations)
        taken.append(actions)
        starts += int(environments.starts.sum())
        replay.add(environments.observations, environments.starts, actions=actions)
        environments.step(actions)
    environments.close()
    assert starts >= 9  # several episodes began
    assert len(replay) == 3 * 40
    times, rows = (
        a.flatten() for a in np.meshgrid(np.arange(64, 101), np.arange(3))
    )  # 61 is the oldest, its stack is not
    sampled = replay.observations(times, rows)
    assert len({frame.tobytes() for frame in sampled}) > 60  # the pictures do differ
    for number, (time, row) in enumerate(zip(times, rows, strict=True)):
        np.testing.assert_array_equal(sampled[number], past[time][row])
    np.testing.assert_array_equal(replay.column("actions", times, rows), np.stack(taken)[times, rows])


@given(
    num_envs=st.integers(1, 3),
    capacity=st.integers(1, 40),
    added=st.integers(5, 60),
    ahead=st.integers(0, 3),
    starts=st.integers(1, 9),
)
def test_every_draw_can_be_rebuilt_in_full(num_envs: int, capacity: int, added: int, ahead: int, starts: int) -> None:
    replay = Replay(STACKED, num_envs, max(capacity, 8) * num_envs, {"time": ((), np.int64)})
    for time in range(added):
        stack = [time - back if time % starts >= back else 0 for back in (3, 2, 1, 0)]
        observations = np.repeat(np.array(stack, dtype=np.uint8)[None, :, None, None], num_envs, axis=0)
        replay.add(observations, np.full(num_envs, time % starts == 0), time=np.full(num_envs, time))
    times, rows = replay.sample(np.random.default_rng(0), 400, ahead=ahead)
    assert times.min() >= max(added - max(capacity, 8), 0)
    assert times.max() == added - 1 - ahead
    assert set(rows) == set(range(num_envs))
    np.testing.assert_array_equal(replay.column("time", times + ahead, rows), times + ahead)
    for time, stack in zip(times, replay.observations(times, rows)[:, :, 0, 0], strict=True):
        assert stack.tolist() == [time - back if time % starts >= back else 0 for back in (3, 2, 1, 0)]


def test_all_that_is_kept_is_drawn_equally_often() -> None:
    replay = Replay(VECTOR, 2, 20, {})
    for _ in range(25):
        replay.add(np.zeros((2, 2), dtype=np.float32), np.zeros(2, dtype=np.bool_))
    times, rows = replay.sample(np.random.default_rng(0), 20_000)
    _, counts = np.unique(times * 2 + rows, return_counts=True)
    assert len(counts) == 20  # a vector needs nothing before it
    assert np.square(counts - 1_000).sum() / 1_000 < 43.8  # chi-square with 19 degrees of freedom, 0.1 %


def filled(replay: Replay, times: range) -> None:
    for time in times:
        replay.add(
            np.full((2, 2), time, dtype=np.float32), np.zeros(2, dtype=np.bool_), rewards=np.array([time, -time])
        )


COLUMNS = {"rewards": ((), np.float32)}


def test_files_hold_what_the_last_position_needs_whatever_was_written_since(tmp_path: Path) -> None:
    replay = Replay(VECTOR, 2, 20, COLUMNS, scratch=tmp_path, slack=8)
    filled(replay, range(37))
    state = replay.state_dict()
    filled(replay, range(100, 104))  # all the slack; then the process is gone
    del replay
    replay = Replay(VECTOR, 2, 20, COLUMNS, scratch=tmp_path, slack=8)
    replay.load_state_dict(state)
    times, rows = (a.flatten() for a in np.meshgrid(np.arange(27, 37), np.arange(2)))
    np.testing.assert_array_equal(replay.observations(times, rows)[:, 0], times)
    np.testing.assert_array_equal(replay.column("rewards", times, rows), np.where(rows == 0, times, -times))
    assert len(replay) == 20


@pytest.mark.parametrize("damage", ["flip", "remove", "cut"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    replay = Replay(VECTOR, 2, 20, COLUMNS, scratch=tmp_path, slack=8)
    filled(replay, range(37))
    state = replay.state_dict()
    del replay
    path = tmp_path / "replay-frames"
    data = bytearray(path.read_bytes())
    data[30 * 16 % len(data)] ^= 1
    if damage == "flip":
        path.write_bytes(data)
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    replay = Replay(VECTOR, 2, 20, COLUMNS, scratch=tmp_path, slack=8)
    with pytest.raises(UserError, match="damaged"):
        replay.load_state_dict(state)


def test_a_replay_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    for scratch in (None, tmp_path):
        with pytest.raises(UserError, match="no room for a replay of .* GiB"):
            Replay(make_task("PongNoFrameskip-v4"), 1, 10**12, {}, scratch=scratch)
    assert not list(tmp_path.iterdir())


def test_ten_hours_of_atari_fit_into_four_gibibytes() -> None:
    replay = Replay(make_task("PongNoFrameskip-v4"), 16, 540_000, DQN_COLUMNS)
    assert 540_000 * 84 * 84 < replay.nbytes < 4.0 * 2**30  # what lies in memory once it is full
    assert replay.capacity * 16 == 540_000


@given(
    capacity=st.integers(2, 6), slack=st.integers(0, 6), saved=st.integers(1, 20), since=st.integers(0, 20),
    ahead=st.integers(0, 8),
)  # fmt: skip
def test_a_ring_must_be_saved_when_what_the_last_checkpoint_needs_would_be_overwritten(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, slack: int, saved: int, since: int, ahead: int
) -> None:
    replay = Replay(VECTOR, 1, capacity, {}, scratch=tmp_path_factory.mktemp("ring"), slack=slack)

    def add(times: int) -> None:
        for _ in range(times):
            replay.add(np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.bool_))

    add(saved)
    replay.state_dict()
    add(since)
    # Places of the ring that the checkpoint needs, and the time that stands in each of them later.
    needed = {time % (capacity + slack): time for time in range(max(saved - capacity, 0), saved)}
    later = {time % (capacity + slack): time for time in range(saved + since + ahead)}
    assert replay.must_save(ahead) == any(later[place] != time for place, time in needed.items())


def test_a_ring_in_memory_is_never_saved() -> None:
    replay = Replay(VECTOR, 2, 20, COLUMNS)
    filled(replay, range(50))
    assert not replay.must_save(100)
