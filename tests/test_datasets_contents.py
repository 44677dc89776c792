"""`dataset info` and `dataset head`: episodes are put together again from shards, and what is said of them is so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import stats

from recorded import ARM, LEVERS, STACKED, TEACHER, VECTOR, cut, flip, played, recorded, tree
from rldistill.datasets import (
    Shard,
    append_shard,
    contents,
    create_dataset,
    head,
    head_table,
    info,
    info_lines,
    open_dataset,
)
from rldistill.datasets.episodes import find_episodes, read_episodes, stacked_observations
from rldistill.types import Task, UserError


@pytest.mark.parametrize("task", [STACKED, VECTOR, ARM, LEVERS], ids=lambda task: task.env)
def test_episodes_are_those_that_were_played(tmp_path: Path, task: Task) -> None:
    """Over shards of 20 steps an environment, and over two recordings: the second does not go on with the first's episodes."""
    kind = "gaussian" if task.continuous else "logits"
    dataset, first = played(create_dataset(tmp_path / "d", task, kind, TEACHER), 70)
    _, second = played(dataset, 45, seed=1, num_envs=2)
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset.shards) > 4
    episodes, damaged = find_episodes(dataset)
    assert not damaged
    expected = first + second
    assert [episode.recording for episode in episodes] == [0] * len(first) + [1] * len(second)
    assert [(episode.environment, episode.steps, episode.score, episode.ended) for episode in episodes] == [
        (truth.environment, len(truth.rows), truth.score, truth.ended) for truth in expected
    ]
    assert all(episode.begun and episode.lead is None for episode in episodes)
    for (_, rows), truth in zip(read_episodes(dataset, episodes), expected, strict=True):
        stacks = stacked_observations(rows, task, np.arange(len(rows.frames)))
        np.testing.assert_array_equal(stacks, np.stack(truth.observations))
        np.testing.assert_array_equal(rows.actions, np.stack([row[0] for row in truth.rows]))
        np.testing.assert_array_equal(rows.values, np.stack([row[4] for row in truth.rows]))


def test_time_does_not_go_on_over_a_missing_shard(tmp_path: Path) -> None:
    dataset, truth = played(
        create_dataset(tmp_path / "d", STACKED, "logits", TEACHER), 60, num_envs=1, shard_steps=20, end=0
    )
    assert len(truth) == 1
    hole = replace(dataset, shards=(dataset.shards[0], dataset.shards[2]))
    (before, after), _ = find_episodes(hole)
    assert (before.steps, before.begun, before.ended) == (20, True, False)
    assert (after.steps, after.begun, after.ended) == (20, False, False)
    (_, _), (_, rows) = read_episodes(hole, [before, after])
    assert rows.context.tolist() == [True] * 3 + [False] * 20
    observations = stacked_observations(rows, STACKED, np.arange(3, 23))
    np.testing.assert_array_equal(
        observations, np.stack(truth[0].observations[40:]), err_msg="context rows complete the first stacks"
    )


def test_info_has_the_returns_of_full_episodes_alone(tmp_path: Path) -> None:
    _, truth = recorded(tmp_path / "d")
    scores = [episode.score for episode in truth if episode.ended]
    assert 0 < len(scores) < len(truth)
    result = info(tmp_path / "d", json=tmp_path / "info.json")
    assert (result.episodes, result.unfinished) == (len(scores), len(truth) - len(scores))
    assert result.returns is not None
    assert result.returns.mean == pytest.approx(np.mean(scores))
    assert result.returns.iqm == pytest.approx(stats.trim_mean(scores, 0.25))
    assert result.returns.ci_low < result.returns.mean < result.returns.ci_high
    assert result.bytes == sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
    assert (result.control_steps, result.score_kind, result.damaged) == (210, "q_values", {})
    assert json.loads((tmp_path / "info.json").read_text()) == json.loads(json.dumps(result.as_dict()))
    lines = info_lines(result)
    assert ("teacher", "policies/one, dqn, sha256 aaaaaaaaaaaa") in lines
    assert ("recording", "driver teacher, epsilon 0.05, seed 0") in lines
    assert ("integrity", "all checksums fit") in lines


def test_info_names_damaged_shards_and_counts_the_others(tmp_path: Path) -> None:
    dataset, _ = recorded(tmp_path / "d")
    flip(tmp_path / "d" / "shard-00001.arrow")
    cut(tmp_path / "d" / "shard-00002.arrow")
    result = info(tmp_path / "d")
    assert sorted(result.damaged) == ["shard-00001.arrow", "shard-00002.arrow"]
    assert "checksum" in result.damaged["shard-00001.arrow"]
    assert result.episodes == len([e for e in find_episodes(dataset.intact())[0] if e.whole]) > 0
    quick = info(tmp_path / "d", verify=False)
    assert list(quick.damaged) == ["shard-00002.arrow"], "without checksums lengths are looked at"
    assert "of no use" in quick.damaged["shard-00002.arrow"]


def test_info_of_a_dataset_without_steps(tmp_path: Path) -> None:
    create_dataset(tmp_path / "d", VECTOR, "logits", {})
    result = info(tmp_path / "d")
    assert (result.control_steps, result.episodes, result.returns) == (0, 0, None)
    assert ("teacher", "unknown") in info_lines(result)


def test_head_gives_the_first_rows_of_the_first_episodes(tmp_path: Path) -> None:
    _, truth = recorded(tmp_path / "d")
    flat = [(number, step, row) for number, episode in enumerate(truth) for step, row in enumerate(episode.rows)]
    listed = head(tmp_path / "d", rows=40)
    assert len(listed) == 40
    assert listed[-1].episode > 0, "over more than one episode"
    for row, (number, step, (action, reward, terminated, truncated, values)) in zip(listed, flat, strict=False):
        assert (row.episode, row.step, row.action, row.reward) == (number, step, action, reward)
        assert row.end == ("terminated" if terminated else "truncated" if truncated else "")
        assert row.values == values.tolist()
    assert {row.end for row in listed} == {"", "terminated", "truncated"}
    one = head(tmp_path / "d", rows=1000, episode=2)
    assert [row.step for row in one] == list(range(len(truth[2].rows)))
    assert {row.episode for row in one} == {2}
    assert head_table(one)[0]["action"] == str(one[0].action)


def test_head_names_the_actions_of_games(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    grid = Task("MinAtar/Breakout-v1", 3, (4, 10, 10), "uint8")
    recorded(tmp_path / "d", grid)
    names = {row.action: row.name for row in head(tmp_path / "d", rows=30)}
    assert names == {0: "NOOP", 1: "LEFT", 2: "RIGHT"}


@pytest.mark.slow
def test_picture_has_a_panel_for_each_frame(tmp_path: Path) -> None:
    recorded(tmp_path / "d")
    head(tmp_path / "d", rows=2, picture=tmp_path / "two.png")
    head(tmp_path / "d", rows=9, picture=tmp_path / "nine.png")
    two, nine = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("two.png", "nine.png"))
    assert nine.shape[0] == pytest.approx(2 * two.shape[0], rel=0.02), "four rows at most"
    assert two.shape[1] == nine.shape[1]
    ink = (two < 250).any(axis=0).astype(int)
    assert (np.diff(ink, prepend=0) == 1).sum() >= 4, "frames stand side by side"


@pytest.mark.parametrize("rows", [90, 2, 100_000])
def test_a_picture_takes_the_stacks_of_what_it_shows_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    _, truth = recorded(tmp_path / "d")
    observations = [stack for episode in truth for stack in episode.observations][:rows]
    copied: list[int] = []
    drawn: list[npt.NDArray[Any]] = []

    def counted(part: Shard, task: Task, at: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        copied.append(len(part.frames))
        return stacked_observations(part, task, at)

    def kept(stacks: list[npt.NDArray[Any]], labels: list[str]) -> bytes:
        drawn.extend(stacks)
        return b"a picture"

    monkeypatch.setattr(contents, "stacked_observations", counted)
    monkeypatch.setattr(contents, "observation_panels", kept)
    assert len(head(tmp_path / "d", rows=rows, picture=tmp_path / "p.png")) == len(observations)
    places = sorted({round(share * (len(observations) - 1) / 3) for share in range(4)})
    np.testing.assert_array_equal(drawn, [observations[place] for place in places])
    assert len(copied) == len(places)
    assert max(copied) <= STACKED.frame_stack


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (dict(rows=0), "--rows is at least 1, not 0"),
        (dict(episode=999), "there is no episode 999 in .*: they go from 0 to"),
        (dict(episode=-1), "there is no episode -1"),
        (dict(picture="{there}"), "exists: choose another --picture"),
        (dict(picture="{nowhere}/p.png"), "there is no folder"),
    ],
)
def test_head_refuses_in_one_line(tmp_path: Path, words: dict[str, object], text: str) -> None:
    recorded(tmp_path / "d")
    (tmp_path / "there").write_text("mine")
    places = {"there": tmp_path / "there", "nowhere": tmp_path / "nowhere"}
    given = {name: value.format(**places) if isinstance(value, str) else value for name, value in words.items()}
    before = tree(tmp_path)
    with pytest.raises(UserError, match=text):
        head(tmp_path / "d", **given)  # type: ignore[arg-type]  # words of a case
    assert tree(tmp_path) == before


def test_vectors_are_not_drawn_and_damaged_shards_not_shown(tmp_path: Path) -> None:
    recorded(tmp_path / "v", VECTOR)
    with pytest.raises(UserError, match="nothing to draw"):
        head(tmp_path / "v", picture=tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
    flip(tmp_path / "v" / "shard-00000.arrow")
    with pytest.raises(UserError, match=r"shard-00000\.arrow is damaged"):
        head(tmp_path / "v")


def test_info_never_overwrites(tmp_path: Path) -> None:
    recorded(tmp_path / "d")
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(UserError, match="exists: choose another --json"):
        info(tmp_path / "d", json=tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_two_parts_of_an_environment_in_one_shard_go_on(tmp_path: Path) -> None:
    """As `convert` wrote them before it joined them."""
    dataset, truth = recorded(tmp_path / "d", VECTOR)
    episodes, _ = find_episodes(dataset)
    parts = [rows for _, rows in read_episodes(dataset, episodes)]
    again = append_shard(create_dataset(tmp_path / "again", VECTOR, "q_values", TEACHER), parts)
    result, _ = find_episodes(again)
    assert [episode.score for episode in result] == [episode.score for episode in truth]
