"""`dataset merge`: what was in the datasets is in the merged one, what does not go together is said, nothing is half made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recorded import STACKED, TEACHER, VECTOR, flip, played, recorded, tree
from rldistill.datasets import create_dataset, info, load_replay, merge, open_dataset
from rldistill.datasets.episodes import find_episodes
from rldistill.progress import Silent
from rldistill.types import UserError


def test_merged_rows_are_those_of_the_one_and_then_those_of_the_other(tmp_path: Path) -> None:
    a, in_a = recorded(tmp_path / "a")
    a, more = played(a, 30, seed=7)
    b, in_b = recorded(tmp_path / "b", seed=1)
    before = tree(tmp_path)
    merged = merge([tmp_path / "a", str(tmp_path / "b")], tmp_path / "c")
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("c")} == before
    assert merged.control_steps == a.control_steps + b.control_steps
    for index, shard in enumerate(
        [*(a.read(n) for n in range(len(a.shards))), *(b.read(n) for n in range(len(b.shards)))]
    ):
        for ours, theirs in zip(merged.read(index), shard, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert [item["first_shard"] for item in merged.card["recordings"]] == [0, len(a.shards) - 2, len(a.shards)]
    assert merged.card["teacher"] == TEACHER
    episodes, _ = find_episodes(merged)
    assert [episode.score for episode in episodes] == [episode.score for episode in [*in_a, *more, *in_b]]
    assert load_replay(merged)[0].added > merged.control_steps


def test_shards_are_links_and_copies_where_there_can_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "a")
    recorded(tmp_path / "b", seed=1)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "linked")
    assert os.path.samefile(tmp_path / "linked" / merged.shards[0].file, tmp_path / "a" / "shard-00000.arrow")

    def no_links(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    copied = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "copied")
    assert not os.path.samefile(tmp_path / "copied" / copied.shards[0].file, tmp_path / "a" / "shard-00000.arrow")
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked")


def test_other_teachers_are_listed_and_each_recording_says_which_was_its(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        teacher = {"path": f"policies/{name}", "sha256": name * 64}
        recorded(tmp_path / name, seed=number, teacher=teacher)
    with pytest.raises(
        UserError, match=r"labelled by policies/a \(sha256 a{12}\) and policies/b \(sha256 b{12}\): --mixed"
    ):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    two = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m", mixed_teachers=True)
    assert [teacher["path"] for teacher in two.card["teacher"]["teachers"]] == ["policies/a", "policies/b"]
    assert two.card["teacher"]["sha256"] not in (None, "a" * 64, "b" * 64), "who asks for one of them hears no"
    three = merge([tmp_path / "c", tmp_path / "m"], tmp_path / "n", mixed_teachers=True)
    teachers = three.card["teacher"]["teachers"]
    assert [teachers[item["teacher"]]["path"] for item in three.card["recordings"]] == [
        "policies/c", "policies/a", "policies/b"]  # fmt: skip
    assert [teacher["path"] for teacher in info(tmp_path / "n").teachers] == [f"policies/{name}" for name in "cab"]


def test_a_gap_between_shards_stays_one(tmp_path: Path) -> None:
    a, _ = played(create_dataset(tmp_path / "a", VECTOR, "logits", TEACHER), 60, num_envs=1, shard_steps=20, end=0)
    (tmp_path / "a" / a.shards[1].file).unlink()
    whole, _ = played(a.intact(), 20, num_envs=1, end=0, seed=3)
    assert [shard.file for shard in whole.shards] == ["shard-00000.arrow", "shard-00002.arrow", "shard-00003.arrow"]
    b, _ = played(create_dataset(tmp_path / "b", VECTOR, "logits", TEACHER), 20, num_envs=1, end=0, seed=1)
    lengths = [episode.steps for episode in find_episodes(whole)[0]]
    assert lengths == [20, 20, 20]
    merged = merge([tmp_path / "b", tmp_path / "a"], tmp_path / "c")
    assert [episode.steps for episode in find_episodes(merged)[0]] == [b.control_steps, *lengths]


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        (dict(noop_max=30), "q_values", "task.noop_max is 0 in the one and 30 in the other"),
        (dict(num_actions=4), "q_values", "task.num_actions is 3 in the one and 4 in the other"),
        (dict(action_sizes=(1, 2)), "logits", r"task.action_sizes is None in the one and \[1, 2\] in the other"),
        (dict(), "logits", "score_kind is q_values in the one and logits in the other"),
    ],
)
def test_what_differs_is_named_with_both_values(tmp_path: Path, changes: dict[str, Any], kind: Any, text: str) -> None:
    recorded(tmp_path / "a")
    recorded(tmp_path / "b", replace(STACKED, **changes), kind, seed=1)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=text):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "deep" / "c", mixed_teachers=True)
    assert tree(tmp_path) == before


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    recorded(tmp_path / "a")
    recorded(tmp_path / "b", seed=1)
    (tmp_path / "there").mkdir()
    before = tree(tmp_path)
    for sources, out, text in (
        ("a", "c", "two datasets or more"),
        ("ab", "there", "exists: choose another --out"),
        ("aa", "c", "are the same play"),
        ("ax", "c", "no dataset folder at"),
    ):
        with pytest.raises(UserError, match=text):
            merge([tmp_path / name for name in sources], tmp_path / out)
        assert tree(tmp_path) == before
    flip(tmp_path / "b" / "shard-00002.arrow")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"b/shard-00002\.arrow is damaged"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "deep" / "c")
    assert tree(tmp_path) == before


class Interrupted(Silent):
    """Ctrl-C in the middle."""

    def __init__(self, after: int) -> None:
        self.after = after

    def update(self, done: int, **figures: float) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


def test_an_interrupted_merge_leaves_nothing(tmp_path: Path) -> None:
    recorded(tmp_path / "a")
    recorded(tmp_path / "b", seed=1)
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c", progress=Interrupted(250))
    assert tree(tmp_path) == before
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not open_dataset(tmp_path / "c").problems()
