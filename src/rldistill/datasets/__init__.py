"""Datasets: the folder, and the verbs that describe, merge and convert datasets.

`rows` has the columns, `arrow` one file, `shards` the folder. `writing` fills it, `episodes` finds the episodes in it.
`info`, `head`, `merge` and `convert` are the verbs `rldistill dataset ...`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from rldistill.datasets.contents import Info, Row, head, head_table, info, info_lines
    from rldistill.datasets.merging import merge
    from rldistill.datasets.rows import FORMAT, VERSION, Shard, frame_shape
    from rldistill.datasets.shards import (
        CARD,
        Dataset,
        ShardEntry,
        append_shard,
        create_dataset,
        load_replay,
        open_dataset,
    )
    from rldistill.datasets.writing import DatasetWriter
    from rldistill.verbs.convert import Conversion, Target, convert
else:
    # A module is imported when one of its names is first used, as in `rldistill` itself.
    _NAMES_OF = {
        "datasets.contents": ("Info", "Row", "head", "head_table", "info", "info_lines"),
        "datasets.merging": ("merge",),
        "datasets.rows": ("FORMAT", "VERSION", "Shard", "frame_shape"),
        "datasets.shards": (
            "CARD",
            "Dataset",
            "ShardEntry",
            "append_shard",
            "create_dataset",
            "load_replay",
            "open_dataset",
        ),
        "datasets.writing": ("DatasetWriter",),
        "verbs.convert": ("Conversion", "Target", "convert"),
    }
    _MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'rldistill.datasets' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"rldistill.{_MODULE_OF[name]}"), name)
