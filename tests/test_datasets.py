"""The dataset folder: what goes in comes out, and what is damaged is refused by name while the rest stays readable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import played
from rldistill.datasets import (
    Dataset,
    DatasetWriter,
    Shard,
    append_shard,
    create_dataset,
    frame_shape,
    load_replay,
    open_dataset,
)
from rldistill.datasets.episodes import find_episodes
from rldistill.datasets.shards import write_card
from rldistill.play.actions import score_width, uniform_actions
from rldistill.types import ScoreKind, Task, UserError

STACKED = Task("stacked", 3, (4, 5, 6), "uint8", frame_stack=4)
GRID = Task("grid", 5, (2, 3, 3), "uint8")
VECTOR = Task("vector", 2, (4,), "float32")
ARM = Task("arm", 2, (4,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, np.inf))
LEVERS = Task("levers", 5, (4,), "float32", action_sizes=(2, 3))


def random_part(
    task: Task, length: int, seed: int, *, context: int = 0, environment: int = 0, kind: ScoreKind = "logits"
) -> Shard:
    generator = np.random.default_rng(seed)
    shape = (length, *frame_shape(task))
    pixels = task.observation_dtype == "uint8"
    frames = generator.integers(256, size=shape, dtype=np.uint8) if pixels else generator.normal(size=shape)
    labelled = np.arange(length) >= context
    return Shard(
        frames=frames.astype(task.observation_dtype),
        starts=generator.random(length) < 0.2,
        context=~labelled,
        environments=np.full(length, environment, np.int32),
        actions=uniform_actions(task, length, generator),
        rewards=generator.normal(size=length).astype(np.float32),
        terminated=generator.random(length) < 0.2,
        truncated=generator.random(length) < 0.2,
        values=generator.normal(size=(length, score_width(task, kind))).astype(np.float32),
    )


def three_shards(path: Path, task: Task = STACKED) -> Dataset:
    dataset = create_dataset(path, task, "q_values", {"sha256": "abc"})
    for number in range(3):
        dataset = append_shard(dataset, [random_part(task, 20, 2 * number + row, environment=row) for row in range(2)])
    return dataset


def edit_card(path: Path, **changes: Any) -> None:
    card = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize("task", [STACKED, GRID, VECTOR], ids=lambda task: task.env)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_what_is_read_is_what_was_written(task: Task, lengths: list[int], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            random_part(task, length, seed + row, context=row % 2, environment=row)
            for row, length in enumerate(lengths)
        ]
        append_shard(create_dataset(Path(folder) / "d", task, "logits", {}), parts)
        dataset = open_dataset(Path(folder) / "d")
        shard = dataset.read(0)
        assert (dataset.task, dataset.score_kind) == (task, "logits")
        assert dataset.control_steps == sum(length - min(row % 2, length) for row, length in enumerate(lengths))
        assert shard.masks is None
        for name, column in shard._asdict().items():
            if name == "masks":
                continue
            expected = np.concatenate([getattr(part, name) for part in parts])
            assert column.dtype == expected.dtype
            np.testing.assert_array_equal(column, expected, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    num_envs=st.integers(1, 3),
    shard_steps=st.integers(1, 30),
    steps=st.integers(1, 25),
    keep=st.integers(1, 3),
    restart=st.floats(0, 0.5),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_each_stack_comes_back_as_it_was_seen(
    num_envs: int, shard_steps: int, steps: int, keep: int, restart: float, seed: int
) -> None:
    """Stacks built here frame by frame, against those rebuilt from the shards; and again with only one shard there."""
    generator, keep = np.random.default_rng(seed), min(keep, num_envs)
    stacked = np.zeros((num_envs, 4, 5, 6), np.uint8)
    starts = np.ones(num_envs, np.bool_)
    expected: dict[float, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        writer = DatasetWriter(create_dataset(Path(folder) / "d", STACKED, "q_values", {}), num_envs, shard_steps)
        for time in range(steps):
            stacked = np.concatenate(
                [np.where(starts[:, None, None, None], 0, stacked[:, 1:]), np.zeros_like(stacked[:, :1])], 1
            )
            stacked[:, 3] = generator.integers(1, 256, size=(num_envs, 5, 6))
            values = np.zeros((num_envs, 3), np.float32)
            values[:, 0] = time * num_envs + np.arange(num_envs)  # a name for this time and row
            rows = keep if time == steps - 1 else num_envs
            for row in range(rows):
                expected[float(values[row, 0])] = (stacked[row].copy(), bool(starts[row]))
            zeros, none = np.zeros(num_envs), np.zeros(num_envs, np.bool_)
            ends = generator.random(num_envs) < restart
            actions, rewards = zeros.astype(np.int64), zeros.astype(np.float32)
            writer.add(stacked.copy(), starts, actions, rewards, ends, none, values, keep=rows)
            starts = ends
        writer.flush()
        dataset = open_dataset(Path(folder) / "d")
        assert dataset.control_steps == len(expected)
        result: list[float] = []
        for part in [dataset, *(dataclasses.replace(dataset, shards=(shard,)) for shard in dataset.shards)]:
            replay, times = load_replay(part)
            rows_of = np.zeros(len(times), np.int64)
            names = replay.column("values", times, rows_of)[:, 0]
            result += names.tolist()
            stacks, first = replay.observations(times, rows_of), replay.column("starts", times, rows_of)
            for name, stack, start in zip(names, stacks, first, strict=True):
                np.testing.assert_array_equal(stack, expected[float(name)][0])
                assert start == expected[float(name)][1]
        assert sorted(result) == sorted([*expected, *expected])  # once as a whole, once by shards


def test_context_reaches_back_to_the_start_of_the_episode_and_no_further(tmp_path: Path) -> None:
    """Two times a shard; episodes start at times 0 and 3, so the heads at 2, 4, 6 and 8 need 2, 1, 3 and 3 frames."""
    writer = DatasetWriter(create_dataset(tmp_path / "d", STACKED, "q_values", {}), 1, 2)
    one, none = np.zeros(1, np.int64), np.zeros(1, np.bool_)
    for time in range(9):
        ages = np.arange(3, -1, -1)  # of the frames in the stack
        stacked = np.where(ages <= (time if time < 3 else time - 3), time - ages, 0).astype(np.uint8)
        stack = np.broadcast_to(stacked[None, :, None, None], (1, 4, 5, 6))
        starts, rewards = np.array([time in (0, 3)]), np.zeros(1, np.float32)
        writer.add(stack, starts, one, rewards, none, none, np.zeros((1, 3), np.float32))
    writer.flush()
    shards = [writer.dataset.read(index) for index in range(5)]
    assert [shard.frames[:, 0, 0, 0].tolist() for shard in shards] == [
        [0, 1], [0, 1, 2, 3], [3, 4, 5], [3, 4, 5, 6, 7], [5, 6, 7, 8]]  # fmt: skip
    assert [np.flatnonzero(shard.starts).tolist() for shard in shards] == [[0], [0, 3], [0], [0], []]
    assert [shard.context.sum() for shard in shards] == [0, 2, 1, 3, 3]


def test_context_rows_are_never_drawn(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "d", STACKED, "q_values", {})
    dataset = append_shard(dataset, [random_part(STACKED, 6, 0, context=3), random_part(STACKED, 5, 1, context=1)])
    replay, times = load_replay(dataset)
    assert replay.added == 11
    assert times.tolist() == [3, 4, 5, 7, 8, 9, 10]


def damage_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_by_a_flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_exchange(path: Path) -> None:
    path.write_bytes(path.with_name("shard-00000.arrow").read_bytes())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_by_truncation, "bytes of"),
        (damage_by_a_flipped_bit, "checksum"),
        (damage_by_emptying, "0 bytes of"),
        (damage_by_exchange, "damaged"),
        (Path.unlink, "missing"),
    ],
)
def test_damaged_shard_is_refused_by_name_and_the_others_stay_readable(tmp_path: Path, damage: Any, words: str) -> None:
    written = three_shards(tmp_path / "d")
    damage(tmp_path / "d" / "shard-00001.arrow")
    dataset = open_dataset(tmp_path / "d")
    with pytest.raises(UserError, match=rf"shard-00001\.arrow.*{words}"):
        dataset.read(1)
    with pytest.raises(UserError, match=r"shard-00001\.arrow"):
        load_replay(dataset)
    np.testing.assert_array_equal(
        dataset.read(0).frames,
        random_part(STACKED, 20, 0).frames.tolist() + random_part(STACKED, 20, 1).frames.tolist(),
    )
    assert len(dataset.read(2).frames) == 40
    assert list(dataset.problems()) == ["shard-00001.arrow"]
    intact = dataset.intact()
    assert [shard.file for shard in intact.shards] == ["shard-00000.arrow", "shard-00002.arrow"]
    assert load_replay(intact)[0].added == 80
    assert written.control_steps == 120
    assert intact.control_steps == 80


@pytest.mark.parametrize(
    ("lost", "first", "steps"),
    [
        ([1], [0, 3, 5], {0: 12, 1: 8, 2: 8}),
        ([0, 5], [0, 3, 4], {0: 12, 1: 4, 2: 8}),
        ([4, 5], [0, 4, 4], {0: 16, 2: 8}),
        ([], [0, 4, 6], {0: 16, 1: 8, 2: 8}),
    ],
)
def test_what_is_intact_stays_with_its_own_recording(
    tmp_path: Path, lost: list[int], first: list[int], steps: dict[int, int]
) -> None:
    dataset = create_dataset(tmp_path / "d", VECTOR, "q_values", {})
    for length in (16, 8, 8):
        dataset, _ = played(dataset, length, num_envs=1, shard_steps=4)
    for place in lost:
        (tmp_path / "d" / dataset.shards[place].file).unlink()
    write_card(dataset.intact())
    intact = open_dataset(tmp_path / "d")
    assert [item["first_shard"] for item in intact.card["recordings"]] == first
    result: Counter[int] = Counter()
    for episode in find_episodes(intact)[0]:
        result[episode.recording] += episode.steps
    assert result == steps
    assert [item["first_shard"] for item in dataset.card["recordings"]] == [0, 4, 6], "what was opened is as it was"


@settings(max_examples=40, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(where: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = create_dataset(Path(folder) / "d", VECTOR, "q_values", {})
        dataset = append_shard(dataset, [random_part(VECTOR, 5, 0)])
        shard = Path(folder) / "d" / "shard-00000.arrow"
        data = bytearray(shard.read_bytes())
        data[int(where * len(data))] ^= 1 << bit
        shard.write_bytes(bytes(data))
        assert list(dataset.problems()) == ["shard-00000.arrow"]


def test_labels_with_nan_or_infinity_are_not_written(tmp_path: Path) -> None:
    dataset = three_shards(tmp_path / "d")
    before = (tmp_path / "d" / "dataset.json").read_bytes()
    for bad in (np.nan, np.inf, -np.inf):
        part = random_part(STACKED, 4, 9)
        part.values[2, 1] = bad
        with pytest.raises(UserError, match="NaN or infinity"):
            append_shard(dataset, [part])
    assert (tmp_path / "d" / "dataset.json").read_bytes() == before
    assert len(list((tmp_path / "d").iterdir())) == 4


def rewrite_shard(path: Path, change: Any) -> None:
    """A shard of somebody else's making: its columns changed, its checksum right."""
    card = json.loads((path / "dataset.json").read_text())
    file = path / card["shards"][0]["file"]
    with pa.ipc.open_file(pa.py_buffer(file.read_bytes())) as reader:
        table = change(reader.read_all())
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
    data = file.read_bytes()
    card["shards"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit_card(path, shards=card["shards"])


def with_nan(table: Any) -> Any:
    field = table.schema.field("values")
    flat = np.zeros(len(table) * field.type.list_size, np.float32)
    flat[5] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), field.type.list_size)
    return table.set_column(table.schema.get_field_index("values"), field, column)


def with_wild_action(table: Any) -> Any:
    field = table.schema.field("action")
    return table.set_column(table.schema.get_field_index("action"), field, pa.array([7] * len(table), field.type))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_nan, "NaN or infinity"),
        (with_wild_action, "action"),
        (lambda table: table.drop_columns(["reward"]), "columns"),
        (lambda table: table.slice(3), "rows"),
    ],
    ids=["nan", "action", "column", "rows"],
)
def test_shard_of_wrong_content_is_refused_though_its_checksum_is_right(
    tmp_path: Path, change: Any, words: str
) -> None:
    three_shards(tmp_path / "d")
    rewrite_shard(tmp_path / "d", lambda table: table)
    assert open_dataset(tmp_path / "d").problems() == {}
    rewrite_shard(tmp_path / "d", change)
    with pytest.raises(UserError, match=rf"shard-00000\.arrow is of no use.*{words}"):
        open_dataset(tmp_path / "d").read(0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "version 2, this rldistill reads version 1"),
        ({"format": "other"}, "not of the format"),
        ({"score_kind": "votes"}, "votes"),
        (
            {"shards": [{"file": "../../x", "rows": 1, "control_steps": 1, "sha256": "", "bytes": 1}]},
            "no name of a shard",
        ),
        ({"shards": [{"file": "shard-00000.arrow"}]}, "damaged"),
        ({"shards": 3}, "damaged"),
        ({"shards": [dict(file="shard-00000.arrow", rows=1, control_steps=1, sha256=[1], bytes=1)]}, "checksum"),
        ({"task": {"env": "x"}}, "damaged"),
    ],
)
def test_card_of_another_version_or_damaged_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    three_shards(tmp_path / "d")
    edit_card(tmp_path / "d", **changes)
    with pytest.raises(UserError, match=words):
        open_dataset(tmp_path / "d")


def test_missing_and_truncated_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset folder at"):
        open_dataset(tmp_path / "d")
    three_shards(tmp_path / "d")
    card = tmp_path / "d" / "dataset.json"
    card.write_bytes(card.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        open_dataset(tmp_path / "d")
    card.unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        open_dataset(tmp_path / "d")


def test_dataset_without_control_steps_is_not_loaded(tmp_path: Path) -> None:
    create_dataset(tmp_path / "d", VECTOR, "q_values", {})
    with pytest.raises(UserError, match="no control steps"):
        load_replay(open_dataset(tmp_path / "d"))


def test_existing_folder_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists"):
        create_dataset(tmp_path, VECTOR, "q_values", {})


def test_shard_that_no_card_names_is_overwritten(tmp_path: Path) -> None:
    """A process killed between shard and card leaves such a file."""
    three_shards(tmp_path / "d")
    (tmp_path / "d" / "shard-00003.arrow").write_bytes(b"half")
    dataset = open_dataset(tmp_path / "d")
    assert dataset.problems() == {}
    append_shard(dataset, [random_part(STACKED, 7, 5)])
    after = open_dataset(tmp_path / "d")
    assert [shard.file for shard in after.shards][3:] == ["shard-00003.arrow"]
    np.testing.assert_array_equal(after.read(3).frames, random_part(STACKED, 7, 5).frames)


def test_loading_a_damaged_dataset_leaves_no_thread_behind(tmp_path: Path) -> None:
    import threading

    three_shards(tmp_path / "d")
    damage_by_truncation(tmp_path / "d" / "shard-00000.arrow")
    before = threading.active_count()
    with pytest.raises(UserError):
        load_replay(open_dataset(tmp_path / "d"))
    assert threading.active_count() == before


# Continuous actions, and several at once


@pytest.mark.parametrize(
    ("task", "kind", "width"),
    [(ARM, "gaussian", 4), (ARM, "squashed_gaussian", 4), (ARM, "actions", 2), (LEVERS, "logits", 5)],
    ids=lambda value: value.env if isinstance(value, Task) else str(value),
)
def test_actions_of_several_dimensions_come_back_as_they_were(
    tmp_path: Path, task: Task, kind: ScoreKind, width: int
) -> None:
    parts = [random_part(task, 6, row, context=row, environment=row, kind=kind) for row in range(2)]
    append_shard(create_dataset(tmp_path / "d", task, kind, {}), parts[:1])
    dataset = append_shard(open_dataset(tmp_path / "d"), parts[1:])
    assert open_dataset(tmp_path / "d") == dataset
    assert (dataset.task, dataset.score_kind, dataset.control_steps) == (task, kind, 11)
    assert dataset.problems() == {}
    for index, part in enumerate(parts):
        for name, column in dataset.read(index)._asdict().items():
            if name == "masks":
                continue
            expected = getattr(part, name)
            assert column.dtype == expected.dtype
            np.testing.assert_array_equal(column, expected, err_msg=name)
    replay, times = load_replay(dataset)
    rows = np.zeros(len(times), np.int64)
    labelled = np.concatenate([part.actions[~part.context] for part in parts])
    assert labelled.shape == (11, 2)
    np.testing.assert_array_equal(replay.column("actions", times, rows), labelled)
    assert replay.column("values", times, rows).shape == (11, width)


def test_writer_puts_frames_of_context_before_actions_of_several_dimensions(tmp_path: Path) -> None:
    task = dataclasses.replace(ARM, observation_shape=(4, 5, 6), observation_dtype="uint8", frame_stack=4)
    writer = DatasetWriter(create_dataset(tmp_path / "d", task, "actions", {}), 1, 2)
    none, stack = np.zeros(1, np.bool_), np.ones((1, 4, 5, 6), np.uint8)
    actions: list[Any] = [uniform_actions(task, 1, np.random.default_rng(time)) for time in range(5)]
    for time in range(5):
        rewards = np.zeros(1, np.float32)
        writer.add(stack, np.array([time == 0]), actions[time], rewards, none, none, actions[time])
    writer.flush()
    shards = [writer.dataset.read(index) for index in range(3)]
    assert [shard.context.sum() for shard in shards] == [0, 2, 3]
    played = np.concatenate([shard.actions[~shard.context] for shard in shards])
    np.testing.assert_array_equal(played, np.concatenate(actions))


@pytest.mark.parametrize(
    ("task", "kind", "wrong"),
    [(ARM, "gaussian", wrong) for wrong in (np.nan, np.inf, -2.5)] + [(LEVERS, "logits", wrong) for wrong in (3, -1)],
)
def test_an_action_that_is_none_of_the_tasks_is_not_written(
    tmp_path: Path, task: Task, kind: ScoreKind, wrong: float
) -> None:
    dataset = create_dataset(tmp_path / "d", task, kind, {})
    part = random_part(task, 4, 0, kind=kind)
    part.actions[2, 0] = wrong
    with pytest.raises(UserError, match="nothing was written .* an action is none of the task's"):
        append_shard(dataset, [part])
    flat = random_part(task, 4, 0, kind=kind)
    with pytest.raises(UserError, match="an action is none of the task's"):
        append_shard(dataset, [flat._replace(actions=flat.actions[:, 0])])
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["dataset.json"]


def with_wild_torque(table: Any) -> Any:
    field = table.schema.field("action")
    flat = np.zeros(len(table) * 2, np.float32)
    flat[4] = 2.001
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
    return table.set_column(table.schema.get_field_index("action"), field, column)


def with_one_dimension(table: Any) -> Any:
    column = pa.array(np.zeros(len(table), np.float32))
    field = pa.field("action", pa.float32(), nullable=False)
    return table.set_column(table.schema.get_field_index("action"), field, column)


@pytest.mark.parametrize(
    ("change", "words"), [(with_wild_torque, "an action is none of the task's"), (with_one_dimension, "columns")]
)
def test_shard_with_damaged_continuous_actions_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    append_shard(create_dataset(tmp_path / "d", ARM, "gaussian", {}), [random_part(ARM, 6, 0, kind="gaussian")])
    rewrite_shard(tmp_path / "d", lambda table: table)
    assert open_dataset(tmp_path / "d").problems() == {}
    rewrite_shard(tmp_path / "d", change)
    with pytest.raises(UserError, match=rf"shard-00000\.arrow is of no use.*{words}"):
        open_dataset(tmp_path / "d").read(0)


def test_labels_of_a_wrong_width_are_not_written(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "d", ARM, "gaussian", {})
    with pytest.raises(UserError, match=r"labels of shape \(4, 2\), expected \(4, 4\)"):
        append_shard(dataset, [random_part(ARM, 4, 0, kind="actions")])
