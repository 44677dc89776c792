"""Records of a run: what is written is read again, and what strangers or kills leave is no record."""

import json
from pathlib import Path
from typing import Any

import pytest

from rldistill.runs.folder import RunFolder
from rldistill.runs.records import Evaluation, FinalScore, Fit, Other, Record, TeacherScore, Train, parse, written

RECORDS: list[tuple[Record, dict[str, Any]]] = [
    (
        Fit(temperature=0.5, shift=[1.0], scale=[2.0]),
        {"event": "fit", "temperature": 0.5, "shift": [1.0], "scale": [2.0]},
    ),
    (TeacherScore(mean=9.5, episodes=3), {"event": "teacher", "mean": 9.5, "episodes": 3}),
    (Train(control_steps=8, loss=0.25), {"event": "train", "control_steps": 8, "loss": 0.25}),
    (
        Evaluation(lesson="pong", updates=4, mean=1.5, returns=[1.0, 2.0]),
        {"event": "evaluation", "lesson": "pong", "updates": 4, "mean": 1.5, "returns": [1.0, 2.0]},
    ),
    (FinalScore(mean=2.0, distinct=1), {"event": "final_score", "mean": 2.0, "distinct": 1}),
    (Other("random", {"mean": 0.5}), {"event": "random", "mean": 0.5}),
]


@pytest.mark.parametrize(("record", "data"), RECORDS, ids=lambda part: getattr(part, "event", ""))
def test_a_record_is_a_line_of_what_it_has_and_the_line_is_the_record(record: Record, data: dict[str, Any]) -> None:
    line = written(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == data
    assert parse(json.loads(line)) == record


def test_lines_of_train_had_no_event() -> None:
    assert parse({"control_steps": 512, "loss": None, "returns": [3.0]}) == Train(control_steps=512, returns=[3.0])


@pytest.mark.parametrize(
    ("data", "record"),
    [
        ({"event": "train", "loss": "low", "updates": 2}, Train(updates=2)),
        ({"event": "train", "updates": 2.5, "seconds": 3}, Train(seconds=3)),
        ({"event": "train", "updates": True, "control_steps": 1}, Train(control_steps=1)),
        ({"event": "evaluation", "returns": [1.0, "2"], "mean": 1.0}, Evaluation(mean=1.0)),
        ({"event": "evaluation", "returns": 3.0, "lesson": 4}, Evaluation()),
        ({"event": ["train"], "loss": 1.0}, Other("['train']", {"loss": 1.0})),
        ({"event": "fit", "invented": 1.0}, Fit()),
    ],
)
def test_a_value_of_another_kind_is_left_out(data: dict[str, Any], record: Record) -> None:
    assert parse(data) == record


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.records() == ([], 0)
    first, second, third = (written(Train(updates=number)) for number in (1, 2, 3))
    folder.metrics_path.write_bytes(first + second[:-5])  # the writer is in the middle of a line
    records, end = folder.records()
    assert (records, end) == ([Train(updates=1)], len(first))
    folder.metrics_path.write_bytes(first + second + third)
    records, end = folder.records(end)
    assert (records, end) == ([Train(updates=2), Train(updates=3)], len(first + second + third))
    assert folder.records(end) == ([], end)
    # A resumed run goes back to its checkpoint: the file is shorter, and is read from its beginning.
    folder.metrics_path.write_bytes(first)
    assert folder.records(end) == ([Train(updates=1)], len(first))
