"""What a page says of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rldistill.types import Task


class Made(NamedTuple):
    """A policy without its network."""

    provenance: Mapping[str, Any]
    weights_sha256: str
    task: Task
