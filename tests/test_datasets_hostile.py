"""Shards of a stranger: lengths that lie, columns packed to almost nothing, files listed twice. The card's checksums always fit."""

import hashlib
import json
import os
import random
import resource
import struct
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recorded import STACKED, TEACHER, VECTOR, played
from rldistill.datasets import create_dataset, open_dataset
from rldistill.datasets.arrow import row_schema
from rldistill.datasets.episodes import find_episodes
from rldistill.datasets.shards import Dataset
from rldistill.types import Task, UserError
from rldistill.verbs.convert import convert


def made(folder: Path, task: Task) -> Dataset:
    """A dataset of one shard with two record batches."""
    return played(create_dataset(folder, task, "q_values", TEACHER), 40, num_envs=2, shard_steps=1000)[0]


def sign(folder: Path, data: bytes) -> None:
    """Puts other bytes in the place of the first shard, and their checksum into the card."""
    card = json.loads((folder / "dataset.json").read_text())
    (folder / card["shards"][0]["file"]).write_bytes(data)
    card["shards"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "dataset.json").write_text(json.dumps(card))


def read_all(folder: Path) -> str:
    """Reads everything, as `distill --dataset` and `dataset info` do; gives a checksum of it."""
    dataset, content = open_dataset(folder), hashlib.sha256()
    for shard in dataset.shards:
        for part in dataset.parts(shard):
            for column in part:
                content.update(np.ascontiguousarray(column).tobytes())
        for columns in dataset.columns(shard, ("context", "environment", "reward"), verify=False):
            assert all(np.isfinite(column).all() for column in columns.values())
    _, damaged = find_episodes(dataset, verify=False)
    return "damaged" if damaged else content.hexdigest()


def in_a_process(works: Iterable[Callable[[], str]]) -> tuple[list[str], int]:
    """What each gives, a refusal or a traceback, and the most memory in MiB. The last is `died` where the process does."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for work in works:
            try:
                text = work()
            except UserError as error:
                text = f"refused: {error}"
            except BaseException:
                text = traceback.format_exc()
            os.write(
                here, json.dumps([text, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]).encode() + b"\n"
            )
        os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        answers = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    died = [f"died: {os.waitstatus_to_exitcode(status)}"] if status else []
    return [text for text, _ in answers] + died, max([peak for _, peak in answers], default=0)


def metadata_of(data: bytes) -> list[int]:
    """Places of the bytes of an Arrow file that are no column: heads of messages and the footer."""
    places, at = [], 8
    while struct.unpack_from("<i", data, at + 4)[0]:
        size = struct.unpack_from("<i", data, at + 4)[0]
        places += range(at, at + 8 + size)
        body = pa.ipc.read_message(pa.py_buffer(data[at:])).body
        at += 8 + size + (len(body) if body is not None else 0)
    (footer,) = struct.unpack_from("<i", data, len(data) - 10)
    return [*places, *range(len(data) - 10 - footer, len(data))]


def patched(data: bytes, places: list[int], rng: random.Random) -> bytes:
    """Some numbers in these places become others."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(places)
        match rng.randrange(3):
            case 0:
                content[at] = (content[at] + rng.choice((1, 7, 8, 64, 127, 128, 255))) % 256
            case 1:
                content[at & ~7 : (at & ~7) + 8] = struct.pack(
                    "<q", rng.choice((2**40, -1, 2**62, 100_000, 1, 0, 5000))
                )
            case _:
                content[at & ~3 : (at & ~3) + 4] = struct.pack("<i", rng.choice((2**30, -1, 100_000, 0, 1, 64)))
    return bytes(content[: len(data)])


@pytest.mark.parametrize("task", [VECTOR, STACKED], ids=["vector", "stacked"])
@pytest.mark.slow
def test_no_change_to_the_lengths_of_a_shard_reads_beyond_a_column(task: Task, tmp_path: Path) -> None:
    """Whatever is read is what was written: no row comes from elsewhere, and no process dies."""
    made(tmp_path / "d", task)
    good = next((tmp_path / "d").glob("*.arrow")).read_bytes()
    right, places, rng = read_all(tmp_path / "d"), metadata_of(good), random.Random(20)

    def changed() -> str:
        sign(tmp_path / "d", patched(good, places, rng))
        return read_all(tmp_path / "d")

    texts, peak = in_a_process([changed] * 120)
    refused = [text for text in texts if text.startswith("refused: ")]
    assert [text for text in texts if text != right and text not in refused] == []
    assert (len(texts), max(len(text.splitlines()) for text in refused)) == (120, 1)
    assert len(refused) > 40
    assert peak < 1024


@pytest.mark.parametrize("field", ["rows", "values", "offset", "length", "unpacked"])
def test_a_length_in_the_table_of_columns_that_lies_is_refused(field: str, tmp_path: Path) -> None:
    dataset = made(tmp_path / "d", VECTOR)
    data = bytearray(next((tmp_path / "d").glob("*.arrow")).read_bytes())
    rows = dataset.shards[0].rows // 2  # of each of the two record batches
    # The list of frames has four numbers a row; its node (values, missing) is known by that.
    node = data.index(struct.pack("<qqqq", rows, 0, 4 * rows, 0))
    last = data.index(struct.pack("<qq", 4 * rows, 0), node + 16)
    match field:
        case "rows":
            data[node : node + 8] = struct.pack("<q", 1_000_000)
        case "values":
            data[last : last + 8] = struct.pack("<q", 4_000_000)
        case "offset" | "length":
            # A list has one buffer, which is empty, any other column two, and the third of the twenty holds the numbers.
            table = data.index(struct.pack("<Iqqqqq", 20, 0, 0, 0, 0, 0)) + 4
            place = table + 32 + (8 if field == "length" else 0)
            data[place : place + 8] = struct.pack("<q", 1 << 20)
        case _:
            size = struct.pack("<q", 16 * rows)  # of the numbers, unpacked
            place = data.index(size + b"\x28\xb5\x2f\xfd")
            data[place : place + 8] = struct.pack("<q", 1 << 33)
    sign(tmp_path / "d", bytes(data))
    (text,), peak = in_a_process([partial(read_all, tmp_path / "d")])
    assert text.startswith("refused: ")
    assert peak < 1024


def test_a_column_that_is_packed_to_almost_nothing_is_not_unpacked(tmp_path: Path) -> None:
    """A shard of some kilobytes whose columns would be some hundred megabytes: its record batch says so, the card does not."""
    dataset = made(tmp_path / "d", VECTOR)
    schema, rows = row_schema(dataset), 3_000_000
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        zeros = np.zeros(4 * rows, np.float32)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(zeros[: rows * field.type.list_size]), field.type.list_size)
            if pa.types.is_fixed_size_list(field.type)
            else pa.array(np.zeros(rows, field.type.to_pandas_dtype()), field.type)
            for field in schema
        ]
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    sign(tmp_path / "d", bytes(sink.getvalue()))
    with pytest.raises(UserError, match="rows"):
        read_all(tmp_path / "d")


def test_missing_values_in_a_shard_are_refused(tmp_path: Path) -> None:
    dataset = made(tmp_path / "d", VECTOR)
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / "d" / dataset.shards[0].file))) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, row_schema(dataset)) as writer:
        for batch in batches:
            holes = pa.array([None] * batch.num_rows, pa.float32())
            writer.write_batch(batch.set_column(5, batch.schema.field(5), holes))
    sign(tmp_path / "d", bytes(sink.getvalue()))
    with pytest.raises(UserError, match="missing values"):
        read_all(tmp_path / "d")


def test_a_shard_without_compression_is_read(tmp_path: Path) -> None:
    dataset = made(tmp_path / "d", STACKED)
    right = read_all(tmp_path / "d")
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / "d" / dataset.shards[0].file))) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, row_schema(dataset)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    sign(tmp_path / "d", bytes(sink.getvalue()))
    assert read_all(tmp_path / "d") == right


@pytest.mark.parametrize(
    "file", ["shard-00000.arrow", "shard-000000.arrow", "./shard-00000.arrow", "../d/shard-00000.arrow"]
)
def test_a_card_that_lists_a_shard_twice_is_refused(file: str, tmp_path: Path) -> None:
    made(tmp_path / "d", VECTOR)
    card = json.loads((tmp_path / "d" / "dataset.json").read_text())
    card["shards"].append(card["shards"][0] | {"file": file})
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="twice|no name of a shard"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_card_that_lists_a_shard_and_a_link_to_it_is_refused(link: Any, tmp_path: Path) -> None:
    made(tmp_path / "d", VECTOR)
    link(tmp_path / "d" / "shard-00000.arrow", tmp_path / "d" / "shard-00001.arrow")
    card = json.loads((tmp_path / "d" / "dataset.json").read_text())
    card["shards"].append(card["shards"][0] | {"file": "shard-00001.arrow"})
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="twice"):
        open_dataset(tmp_path / "d")


def test_no_change_to_a_parquet_file_kills_the_process(tmp_path: Path) -> None:
    made(tmp_path / "d", STACKED)
    convert(tmp_path / "d", tmp_path / "p", "parquet")
    file = next((tmp_path / "p").glob("*.parquet"))
    good, rng = file.read_bytes(), random.Random(21)
    (footer,) = struct.unpack_from("<i", good, len(good) - 8)

    def changed(number: int) -> str:
        places = [*range(len(good) - 8 - footer, len(good))] if number % 2 else [*range(4, len(good))]
        file.write_bytes(patched(good, places, rng))
        convert(tmp_path / "p", tmp_path / f"out-{number}", "rldistill")
        return read_all(tmp_path / f"out-{number}")

    texts, peak = in_a_process([partial(changed, number) for number in range(60)])
    assert [text for text in texts if len(text.splitlines()) > 1] == []
    assert len(texts) == 60, texts[-1]
    assert peak < 1024


def test_a_parquet_file_with_more_rows_than_its_card_says_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    made(tmp_path / "d", VECTOR)
    convert(tmp_path / "d", tmp_path / "p", "parquet")
    file = next((tmp_path / "p").glob("*.parquet"))
    table = pq.read_table(file)
    more = pa.concat_tables([table] * 1000).replace_schema_metadata(table.schema.metadata)
    pq.write_table(more, file, compression="zstd")
    with pytest.raises(UserError, match="rows"):
        convert(tmp_path / "p", tmp_path / "out", "rldistill")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["frames", "rewards"])
def test_rows_of_nan_or_infinity_are_neither_written_nor_read(column: str, value: float, tmp_path: Path) -> None:
    from rldistill.datasets import append_shard
    from rldistill.datasets.arrow import encoded

    dataset = made(tmp_path / "d", VECTOR)
    rows = dataset.read(0)
    getattr(rows, column)[3] = value
    with pytest.raises(UserError, match="NaN or infinity"):
        append_shard(dataset, [rows])
    sign(tmp_path / "d", encoded([rows], dataset))
    with pytest.raises(UserError, match="NaN or infinity"):
        read_all(tmp_path / "d")
