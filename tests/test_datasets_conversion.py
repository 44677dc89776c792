"""`dataset convert`: there and back nothing changes, others can read it, and what is damaged is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from recorded import ARM, IMAGE, LEVERS, STACKED, TEACHER, VECTOR, cut, flip, played, recorded, tree
from rldistill.datasets import Dataset, Shard, append_shard, convert, create_dataset, load_replay, open_dataset
from rldistill.datasets.episodes import find_episodes, read_episodes, stacked_observations
from rldistill.play.envs import make_task
from rldistill.policies import load_policy, save_policy
from rldistill.progress import Silent
from rldistill.students.networks import Architecture, build
from rldistill.teachers import TeacherOptions
from rldistill.types import ScoreKind, Task, UserError

TASKS: list[tuple[Task, ScoreKind]] = [
    (STACKED, "q_values"), (IMAGE, "logits"), (VECTOR, "logits"), (ARM, "gaussian"), (LEVERS, "logits")]  # fmt: skip
tasks = pytest.mark.parametrize(("task", "kind"), TASKS, ids=[task.env for task, _ in TASKS])


def same_episodes(one: Dataset, other: Dataset) -> None:
    """Every control step with all that is known of it, and the stack that was seen."""
    left, right = find_episodes(one)[0], find_episodes(other)[0]
    assert [(e.recording, e.environment, e.steps, e.score, e.begun, e.ended) for e in left] == [
        (e.recording, e.environment, e.steps, e.score, e.begun, e.ended) for e in right
    ]
    for (_, ours), (_, theirs) in zip(read_episodes(one, left), read_episodes(other, right), strict=True):
        assert (ours.masks, theirs.masks) == (None, None)
        for name, column in ours._asdict().items():
            if name == "masks":
                continue
            assert column.dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(column, getattr(theirs, name), err_msg=name)
        at = np.flatnonzero(~ours.context)
        np.testing.assert_array_equal(
            stacked_observations(ours, one.task, at), stacked_observations(theirs, one.task, at)
        )


# Parquet


@tasks
@pytest.mark.slow
def test_parquet_there_and_back_is_the_same_folder_byte_by_byte(tmp_path: Path, task: Task, kind: ScoreKind) -> None:
    dataset, _ = recorded(tmp_path / "a", task, kind)
    played(dataset, 20, seed=1, num_envs=2)
    convert(tmp_path / "a", tmp_path / "p", "parquet")
    done = convert(tmp_path / "p", tmp_path / "b", "rldistill")
    assert (done.format, done.source_format, done.notes) == ("rldistill", "parquet", ())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_parquet_reads_without_rldistill(tmp_path: Path) -> None:
    dataset, truth = recorded(tmp_path / "a")
    notes = convert(tmp_path / "a", tmp_path / "p", "parquet").notes
    assert "last 4 of its episode" in notes[0]
    table = pq.read_table(tmp_path / "p")
    assert pc.sum(pc.invert(table["context"])).as_py() == dataset.control_steps
    rows = table.filter(pc.invert(table["context"])).sort_by([("episode", "ascending"), ("step", "ascending")])
    flat = [
        (number, step, episode, row) for number, episode in enumerate(truth) for step, row in enumerate(episode.rows)
    ]
    assert rows["episode"].to_pylist() == [number for number, *_ in flat]
    assert rows["step"].to_pylist() == [step for _, step, *_ in flat]
    newest = [episode.observations[step][-1:].tobytes() for _, step, episode, _ in flat]
    assert rows["frame"].to_pylist() == newest, "a value is the bytes of a frame"
    np.testing.assert_array_equal(np.stack(rows["values"].to_pylist()).astype(np.float32), [row[4] for *_, row in flat])
    assert table["episode"].null_count == table["step"].null_count == pc.sum(table["context"]).as_py() > 0
    card = json.loads(pq.read_schema(next((tmp_path / "p").iterdir())).metadata[b"rldistill"])["card"]
    assert (card["task"], card["teacher"]) == (STACKED.as_dict(), TEACHER)


def test_one_parquet_file_is_a_dataset_where_it_is_the_only_one(tmp_path: Path) -> None:
    recorded(tmp_path / "a", steps=10)
    convert(tmp_path / "a", tmp_path / "p", "parquet")
    convert(tmp_path / "p" / "shard-00000.parquet", tmp_path / "b", "rldistill")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    recorded(tmp_path / "long", steps=70)
    convert(tmp_path / "long", tmp_path / "q", "parquet")
    with pytest.raises(UserError, match="holds 1 of the dataset's 4 files"):
        convert(tmp_path / "q" / "shard-00000.parquet", tmp_path / "c", "rldistill")


def another_dataset(folder: Path) -> None:
    recorded(folder.parent / "other", seed=5)
    convert(folder.parent / "other", folder.parent / "other-p", "parquet")
    (folder.parent / "other-p" / "shard-00001.parquet").rename(folder / "shard-00001.parquet")


def rewritten(folder: Path) -> None:
    """A row less, in a file that is whole."""
    file = folder / "shard-00001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


def without_a_column(folder: Path) -> None:
    file = folder / "shard-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["reward"]), file)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: cut(folder / "shard-00001.parquet"), "shard-00001.parquet is damaged"),
        (lambda folder: flip(folder / "shard-00001.parquet", 0.3), "shard-00001.parquet is damaged"),
        (lambda folder: (folder / "shard-00001.parquet").write_bytes(b""), "shard-00001.parquet is damaged"),
        (lambda folder: (folder / "shard-00001.parquet").unlink(), "holds 3 of the dataset's 4 files"),
        (another_dataset, "files of several datasets"),
        (rewritten, "it has not the .* rows of its card"),
        (without_a_column, "its columns are not those of the task"),
    ],
)
def test_damaged_parquet_is_refused_and_leaves_nothing(tmp_path: Path, damage: Any, text: str) -> None:
    recorded(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "p", "parquet")
    damage(tmp_path / "p")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=text) as refused:
        convert(tmp_path / "p", tmp_path / "deep" / "b", "rldistill")
    assert "\n" not in str(refused.value)
    assert tree(tmp_path) == before


# Minari


@tasks
@pytest.mark.slow
def test_minari_there_and_back_keeps_every_episode(tmp_path: Path, task: Task, kind: ScoreKind) -> None:
    pytest.importorskip("minari")
    dataset, _ = recorded(tmp_path / "a", task, kind)
    dataset, _ = played(dataset, 20, seed=1, num_envs=2)
    convert(tmp_path / "a", tmp_path / "m-v0", "minari")
    convert(tmp_path / "m-v0", tmp_path / "b", "rldistill")
    back = open_dataset(tmp_path / "b")
    assert not back.problems()
    same_episodes(dataset, back)
    left, right = ({**d.card, "recordings": None, "shards": None} for d in (dataset, back))
    assert left == right
    for ours, theirs in zip(dataset.card["recordings"], back.card["recordings"], strict=True):
        assert {**ours, "first_shard": None} == {**theirs, "first_shard": None}


def test_minari_itself_reads_what_was_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    dataset, truth = recorded(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    done = convert("a", "played-v0", "minari")
    assert "single frames: the policy saw the last 4" in done.notes[0]
    assert any(f"{sum(not episode.ended for episode in truth)} episodes" in note for note in done.notes)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    loaded = minari.load_dataset("played-v0")
    assert (loaded.total_steps, loaded.total_episodes) == (dataset.control_steps, len(truth))
    assert loaded.spec.observation_space == gymnasium.spaces.Box(0, 255, (1, 5, 6), np.uint8)
    for read, played_one in zip(loaded, truth, strict=True):
        observations = np.stack(played_one.observations)[:, -1:]
        np.testing.assert_array_equal(read.observations, np.concatenate([observations, observations[-1:]]))
        actions, rewards, terminated, _, values = (np.stack(column) for column in zip(*played_one.rows, strict=True))
        np.testing.assert_array_equal(read.actions, actions)
        np.testing.assert_array_equal(read.rewards, rewards)
        np.testing.assert_array_equal(read.terminations, terminated)
        assert read.terminations[-1] or read.truncations[-1], "an episode that was cut off is told as truncated"
        np.testing.assert_array_equal(read.infos["teacher_values"][:-1], values)
        assert np.isnan(read.infos["teacher_values"][-1]).all()


def test_images_are_not_made_jpegs(tmp_path: Path) -> None:
    """Noise, which JPEG alters: Minari's default does so to the same frames."""
    minari = pytest.importorskip("minari")
    _, truth = recorded(tmp_path / "a", IMAGE, steps=15)
    convert(tmp_path / "a", tmp_path / "m-v0", "minari")
    loaded = minari.MinariDataset(tmp_path / "m-v0" / "data")
    observations = np.stack(truth[0].observations)
    assert observations.std() > 50
    np.testing.assert_array_equal(loaded[0].observations[:-1], observations)
    from minari.dataset.minari_storage import MinariStorage

    default = MinariStorage.new(tmp_path / "jpeg", loaded.observation_space, loaded.action_space, data_format="parquet")
    default.update_episodes([minari.data_collector.EpisodeBuffer(
        observations=loaded[0].observations, actions=loaded[0].actions, rewards=loaded[0].rewards,
        terminations=loaded[0].terminations, truncations=loaded[0].truncations)])  # fmt: skip
    altered = next(iter(default.get_episodes([0])))["observations"]
    assert (altered[:-1] != observations).any()


def test_an_episode_without_its_beginning_survives_minari(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    dataset, truth = played(
        create_dataset(tmp_path / "a", STACKED, "logits", TEACHER), 60, num_envs=1, shard_steps=20, end=0
    )
    (tmp_path / "a" / dataset.shards[1].file).unlink()
    hole, _ = played(dataset.intact(), 20, num_envs=1, end=0, seed=3)
    notes = convert(tmp_path / "a", tmp_path / "m-v0", "minari").notes
    assert any("2 episodes lack their beginning" in note or "1 episodes lack their beginning" in note for note in notes)
    convert(tmp_path / "m-v0", tmp_path / "b", "rldistill")
    same_episodes(hole, open_dataset(tmp_path / "b"))
    replay, times = load_replay(open_dataset(tmp_path / "b"))
    stacks = replay.observations(times[20:23], np.zeros(3, np.int64))
    np.testing.assert_array_equal(stacks, np.stack(truth[0].observations[40:43]))


def stacked_rows(length: int, *, context: int = 0, environment: int = 0) -> Shard:
    """Of an episode that starts in the first row."""
    labelled = np.arange(length) >= context
    return Shard(
        frames=np.random.default_rng(length).integers(1, 256, size=(length, 1, 5, 6), dtype=np.uint8),
        starts=np.arange(length) == 0,
        context=~labelled,
        environments=np.full(length, environment, np.int32),
        actions=np.zeros(length, np.int64),
        rewards=labelled.astype(np.float32),
        terminated=labelled & (np.arange(length) == length - 1) & (context > 0),
        truncated=np.zeros(length, np.bool_),
        values=np.zeros((length, 3), np.float32),
    )


def test_an_episode_whose_start_is_among_its_context_rows_is_not_glued_to_the_one_before(tmp_path: Path) -> None:
    """Its first two frames were control steps of the shard that is missing."""
    pytest.importorskip("minari")
    first = append_shard(create_dataset(tmp_path / "a", STACKED, "q_values", TEACHER), [stacked_rows(5)])
    hole = append_shard(first, [stacked_rows(9, context=2)], number=2)
    assert [(e.steps, e.whole) for e in find_episodes(hole)[0]] == [(5, False), (7, False)]
    convert(tmp_path / "a", tmp_path / "m-v0", "minari")
    convert(tmp_path / "m-v0", tmp_path / "b", "rldistill")
    same_episodes(hole, open_dataset(tmp_path / "b"))


@pytest.mark.slow
def test_a_shard_out_of_minari_has_a_record_batch_for_each_environment(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    dataset, truth = recorded(tmp_path / "a", steps=400)
    assert len(truth) > 20
    convert(tmp_path / "a", tmp_path / "m-v0", "minari")
    convert(tmp_path / "m-v0", tmp_path / "b", "rldistill")
    back = open_dataset(tmp_path / "b")
    batches = [part.environments for shard in back.shards for part in back.parts(shard)]
    assert [np.unique(batch).tolist() for batch in batches] == [[0], [1], [2]]
    same_episodes(dataset, back)


def alter_minari(folder: Path) -> None:
    """Another pixel, in a file that is whole: Minari's own files have no checksums."""
    file = next((folder / "data" / "1").glob("*.parquet"))
    table = pq.read_table(file)
    column = table["observations"].combine_chunks()
    data = column.flatten().to_numpy().copy()
    data[0] ^= 1
    kind = pa.list_(pa.uint8(), column.type.list_size)
    table = table.set_column(0, "observations", pa.FixedSizeListArray.from_arrays(pa.array(data), type=kind))
    pq.write_table(table, file)


def edit_minari(folder: Path, **changes: Any) -> None:
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (alter_minari, "episode 1 of .* cannot be read: its checksum does not fit"),
        (lambda folder: cut(next((folder / "data" / "1").glob("*.parquet"))), "episode 1 of .* cannot be read"),
        (lambda folder: next((folder / "data" / "1").glob("*.parquet")).unlink(), "episode 1 of .* cannot be read"),
        (lambda folder: (folder / "data" / "1" / "metadata.json").unlink(), "episode 1 of .* cannot be read"),
        (lambda folder: cut(folder / "data" / "metadata.json"), "metadata.json is damaged"),
        (lambda folder: edit_minari(folder, total_episodes=2), "its metadata say"),
        (lambda folder: edit_minari(folder, rldistill=[1]), "is no card"),
        (lambda folder: edit_minari(folder, observation_space=None), "does not say its spaces"),
        (lambda folder: edit_minari(folder, data_format="tape"), "cannot be read"),
    ],
)
@pytest.mark.slow
def test_damaged_minari_is_refused_and_leaves_nothing(tmp_path: Path, damage: Any, text: str) -> None:
    pytest.importorskip("minari")
    recorded(tmp_path / "a", steps=30)
    convert(tmp_path / "a", tmp_path / "m-v0", "minari")
    damage(tmp_path / "m-v0")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=text) as refused:
        convert(tmp_path / "m-v0", tmp_path / "b", "rldistill")
    assert "\n" not in str(refused.value)
    assert tree(tmp_path) == before


# Minari datasets of others


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CartPole as Minari's users collect it: HDF5, float64 rewards, infos, no teacher's values."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    episodes = []
    for seed in range(4):
        observations, actions, rewards, ends, cuts = [env.reset(seed=seed)[0]], [], [], [], []
        while not (ends and (ends[-1] or cuts[-1])):
            actions.append(env.action_space.sample())
            observation, reward, ended, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            ends.append(ended)
            cuts.append(truncated)
        infos = {"luck": np.arange(len(observations))}
        episodes.append(minari.data_collector.EpisodeBuffer(
            seed=seed, observations=np.stack(observations), actions=np.array(actions), rewards=rewards, terminations=ends,
            truncations=cuts, infos=infos))  # fmt: skip
    with pytest.warns(UserWarning, match="is set to None"):
        minari.create_dataset_from_buffers("cartpole/random-v0", episodes, env=env, data_format="hdf5")
    return tmp_path / "minari" / "cartpole" / "random-v0"


def balancer(path: Path, env: str = "CartPole-v1") -> Path:
    task = make_task(env)
    network = build(Architecture("mlp:8", task.observation_shape, task.num_actions), 0)
    save_policy(path, network, task, {"score": {"mean": 1.0}})
    return path


def test_a_strangers_dataset_is_labelled_by_the_teacher(tmp_path: Path, strangers: Path) -> None:
    import minari

    teacher = balancer(tmp_path / "teacher")
    done = convert(strangers, tmp_path / "d", "rldistill", teacher=teacher)
    assert any("infos are left out: luck" in note for note in done.notes)
    dataset = open_dataset(tmp_path / "d")
    policy = load_policy(teacher)
    assert dataset.card["teacher"]["sha256"] == policy.sha256
    assert dataset.card["recordings"][0]["converted_from"]["dataset_id"] == "cartpole/random-v0"
    episodes = find_episodes(dataset)[0]
    theirs = list(minari.MinariDataset(strangers / "data"))
    assert len(episodes) == len(theirs) == 4
    assert all(episode.whole for episode in episodes)
    for (_, rows), raw in zip(read_episodes(dataset, episodes), theirs, strict=True):
        np.testing.assert_array_equal(rows.frames, raw.observations[:-1])
        np.testing.assert_array_equal(rows.actions, raw.actions)
        np.testing.assert_array_equal(rows.rewards, raw.rewards)
        np.testing.assert_array_equal(rows.terminated, raw.terminations)
        with torch.no_grad():
            labels = policy(torch.from_numpy(raw.observations[:-1])).numpy()
        np.testing.assert_allclose(rows.values, labels, rtol=1e-5, atol=1e-6)
        assert np.abs(rows.values).max() > 0
    convert(tmp_path / "d", tmp_path / "again-v0", "minari")
    again = minari.MinariDataset(tmp_path / "again-v0" / "data")
    assert again.recover_environment().spec.id == "CartPole-v1"
    np.testing.assert_array_equal(again[2].observations[:-1], theirs[2].observations[:-1])


def test_a_strangers_dataset_needs_a_teacher_that_fits(tmp_path: Path, strangers: Path) -> None:
    three = balancer(tmp_path / "three", "Acrobot-v1")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="has no teacher's values.*--teacher REF"):
        convert(strangers, tmp_path / "d", "rldistill")
    with pytest.raises(UserError, match="--env and the teacher's options .*--teacher"):
        convert(strangers, tmp_path / "d", "rldistill", env="CartPole-v1")
    with pytest.raises(UserError, match="has the actions Discrete.2., Acrobot-v1 has 3 discrete actions"):
        convert(strangers, tmp_path / "d", "rldistill", teacher=three)
    assert tree(tmp_path) == before


def test_observations_that_do_not_fit_are_said(tmp_path: Path, strangers: Path) -> None:
    task = replace(make_task("CartPole-v1"), observation_shape=(5,))
    network = build(Architecture("mlp:8", (5,), 2), 0)
    save_policy(tmp_path / "five", network, task, {"score": {"mean": 1.0}})
    with pytest.raises(
        UserError, match=r"has observations of shape \(4,\) float32, CartPole-v1 has frames of shape \(5,\)"
    ):
        convert(strangers, tmp_path / "d", "rldistill", teacher=tmp_path / "five")
    assert not (tmp_path / "d").exists()


def test_actions_that_the_task_does_not_take_are_said(tmp_path: Path, strangers: Path) -> None:
    import h5py

    with h5py.File(strangers / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/actions"][0] = 2
    with pytest.raises(
        UserError, match="episode 1 of .* has an action that CartPole-v1 does not take: it has 2 discrete"
    ):
        convert(strangers, tmp_path / "d", "rldistill", teacher=balancer(tmp_path / "teacher"))
    assert not (tmp_path / "d").exists()


# Both


def test_without_minari_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "a", steps=10)
    before = tree(tmp_path)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'rldistill\[minari\]'"):
        convert(tmp_path / "a", tmp_path / "a-v0", "minari")
    assert tree(tmp_path) == before


def test_refusals_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    recorded(tmp_path / "a", steps=30)
    convert(tmp_path / "a", tmp_path / "p", "parquet")
    create_dataset(tmp_path / "none", VECTOR, "logits", {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no dataset")
    (tmp_path / "strange").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "strange" / "a.parquet")
    recorded(tmp_path / "broken", steps=70)
    flip(tmp_path / "broken" / "shard-00003.arrow")
    before = tree(tmp_path)
    for source, to, out, words, text in (
        ("a", "parquet", "p", {}, "exists: choose another --out"),
        ("a", "rldistill", "x", {}, "is in the format rldistill already"),
        ("p", "minari", "x-v0", {}, "is in the format parquet: convert it to rldistill first"),
        ("a", "minari", "x", {}, "names of Minari datasets end in a version"),
        ("a", "parquet", "x", {"teacher": "t"}, "has its teacher's values"),
        ("a", "parquet", "x", {"env": "Pong"}, "--env and the teacher's options .*--teacher"),
        ("p", "rldistill", "x", {"options": TeacherOptions(trust_pickle=True)}, "--env and the teacher's options"),
        ("a", "tar", "x", {}, "rldistill, parquet, minari, not 'tar'"),
        ("absent", "parquet", "x", {}, "there is nothing at"),
        ("notes", "parquet", "x", {}, "is no dataset: it has neither dataset.json"),
        ("notes/notes.txt", "parquet", "x", {}, "is no dataset"),
        ("strange", "rldistill", "x", {}, "is no dataset"),
        ("none", "parquet", "x", {}, "holds no control steps"),
        ("broken", "parquet", "x", {}, r"shard-00003\.arrow is damaged"),
        ("broken", "minari", "x-v0", {}, r"shard-00003\.arrow is damaged"),
    ):
        with pytest.raises(UserError, match=text) as refused:
            convert(tmp_path / source, tmp_path / out, to, **words)  # type: ignore[arg-type]  # words of a case
        assert "\n" not in str(refused.value)
        assert tree(tmp_path) == before


def test_options_that_say_nothing_need_no_teacher(tmp_path: Path) -> None:
    """As the command line gives them."""
    recorded(tmp_path / "a", steps=10)
    assert convert(tmp_path / "a", tmp_path / "p", "parquet", options=TeacherOptions()).format == "parquet"


class Interrupted(Silent):
    """Ctrl-C while it writes."""

    def update(self, done: int, **figures: float) -> None:
        if self.stage.startswith("write"):
            raise KeyboardInterrupt

    def start(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.stage = what


@pytest.mark.parametrize(("to", "out"), [("parquet", "x"), ("minari", "x-v0")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, to: Any, out: str) -> None:
    pytest.importorskip("minari")
    recorded(tmp_path / "a", steps=30)
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "a", tmp_path / "deep" / out, to, progress=Interrupted())
    assert tree(tmp_path) == before
