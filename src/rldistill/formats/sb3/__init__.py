"""Stable-Baselines3's policies, and which files they consist of.

`model.save` writes a zip, which may be unpacked to a folder; `policy.save` writes a file of PyTorch.
"""

from __future__ import annotations

from pathlib import Path

from rldistill.files import read_regular

PARAMETERS = "policy.pth"
"""The member with the policy's tensors."""
NEEDED = ("data", PARAMETERS)
"""Members that every zip has."""
SAVED_POLICY = frozenset({"state_dict", "data", "observation_space", "action_space"})
"""Texts in the pickle of every file of `policy.save`."""


def is_unpacked(folder: Path) -> bool:
    """Whether a folder is a zip of Stable-Baselines3 that was unpacked."""
    return all((folder / name).is_file() for name in NEEDED)


def content_of(path: Path) -> bytes:
    """The bytes of a policy: of its file, or of the files of an unpacked zip that are read."""
    if not path.is_dir():
        return read_regular(path)
    return b"".join(read_regular(path / name) for name in NEEDED)
