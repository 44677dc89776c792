"""Datasets: the folder, and the verbs that look at it, merge several and convert them.

`shards` is the folder itself, `writing` fills it, `episodes` finds the episodes in it. `info`, `head`, `merge` and `convert`
are the verbs `rldistill dataset ...`.
"""

from __future__ import annotations

from rldistill.datasets.contents import Info, Row, head, head_table, info, info_lines
from rldistill.datasets.conversion import Conversion, Target, convert
from rldistill.datasets.merging import merge
from rldistill.datasets.shards import (
    CARD,
    FORMAT,
    VERSION,
    Dataset,
    Shard,
    ShardEntry,
    append_shard,
    create_dataset,
    frame_shape,
    load_replay,
    open_dataset,
)
from rldistill.datasets.writing import DatasetWriter

__all__ = [
    "CARD",
    "FORMAT",
    "VERSION",
    "Conversion",
    "Dataset",
    "DatasetWriter",
    "Info",
    "Row",
    "Shard",
    "ShardEntry",
    "Target",
    "append_shard",
    "convert",
    "create_dataset",
    "frame_shape",
    "head",
    "head_table",
    "info",
    "info_lines",
    "load_replay",
    "merge",
    "open_dataset",
]
