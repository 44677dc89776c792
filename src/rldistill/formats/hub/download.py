"""Models of the Hugging Face hub, and local folders of the same layout."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from rldistill.files import open_regular
from rldistill.formats.sb3 import is_unpacked
from rldistill.types import UserError, first_line

PREFIX = "hf://"
# What is fetched of a repository: policies, statistics, settings, the card and scripts (whose text says the activation of
# CleanRL's networks); not videos, logs and replay buffers.
_PATTERNS = [
    "*.zip",
    "*.pkl",
    "*.pickle",
    "*.cleanrl_model",
    "*.onnx",
    "*.onnx.data",
    "*.safetensors",
    "*.pth",
    "*.pt",
    "*.bin",
    "*.json",
    "*.yml",
    "*.py",
    "README.md",
    "policy/*",
    "data",
    "*/data",
    "*_stable_baselines3_version",
    "*system_info.txt",
]
# `train_eval_metrics.zip` lies beside every policy that the zoo put there.
_UNWANTED = ["*replay_buffer*", "*.mp4", "*optimizer*", "*events.out*", "*train_eval_metrics*"]
# In the order in which a folder's policy is looked for: the first of them that is there is taken.
_KINDS = (".zip", ".cleanrl_model", ".onnx", ".safetensors", ".pth", ".pt", ".bin")
_MAX_CARD = 1 << 20


class Card(NamedTuple):
    """What a model's README says of it."""

    env: str | None = None
    """Environment id."""
    tool: str | None = None
    """`stable-baselines3`, `cleanrl` or another."""
    algorithm: str | None = None


def fetch(ref: str) -> Path:
    """The local copy of `hf://owner/name`, a folder, or of `hf://owner/name/file`, a file.

    `huggingface_hub` keeps what it fetched, so a second call is free.

    Raises:
        UserError: the reference is malformed, the package is not installed, or the model cannot be fetched.
    """
    owner, name, file = parse_ref(ref)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(f"{ref} needs huggingface_hub: pip install 'rldistill[hub]'") from None
    try:
        patterns = _PATTERNS if file is None else [file, f"{file}.data", "README.md", "*.pkl", "*.yml", "*.py"]
        unwanted = [*_UNWANTED, "exports/*"] if file is None else _UNWANTED  # what `push` puts beside a policy
        folder = huggingface_hub.snapshot_download(f"{owner}/{name}", allow_patterns=patterns, ignore_patterns=unwanted)
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise UserError(
            f"no model {owner}/{name} on the hub, or it is not public; see https://huggingface.co"
        ) from None
    except Exception as error:  # of the network, of whatever client the package uses this year
        raise UserError(f"cannot fetch {ref}: {first_line(error)}; fetch it by hand and name its folder") from None
    if file is None:
        return Path(folder)
    place = Path(folder, *file.split("/"))
    if not place.is_file():
        raise UserError(f"the model {owner}/{name} has no file {file}")
    return place


def parse_ref(ref: str) -> tuple[str, str, str | None]:
    """Owner, name and file of `hf://owner/name[/file]`.

    Raises:
        UserError: it is not of that form.
    """
    part = r"[A-Za-z0-9][\w.-]*"
    match = re.fullmatch(rf"{PREFIX}({part})/({part})((?:/{part})*)/?", ref)
    if match is None or ".." in ref:
        raise UserError(f"{ref!r} names no model of the hub: write hf://owner/name or hf://owner/name/file")
    return match.group(1), match.group(2), match.group(3).removeprefix("/") or None


def find_policy_file(folder: Path) -> Path:
    """The policy of a model's folder.

    SB3's folders hold `<algorithm>-<env>.zip`, CleanRL's `<script>.cleanrl_model`.

    Raises:
        UserError: there is no policy, or several of a kind.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _unwanted(file))
    for kind in _KINDS:
        policies = [file for file in files if file.name.endswith(kind)]
        if len(policies) > 1:
            names = ", ".join(file.name for file in policies[:5])
            raise UserError(f"{folder} has several policies ({names}); name one of them")
        if policies:
            return policies[0]
    unpacked = sorted(inner for inner in folder.iterdir() if is_unpacked(inner))
    if len(unpacked) > 1:
        names = ", ".join(inner.name for inner in unpacked[:5])
        raise UserError(f"{folder} has several policies ({names}); name one of them")
    if unpacked:
        return unpacked[0]
    raise UserError(f"{folder} has no policy: no file that ends in {', '.join(_KINDS)}")


def read_card(folder: Path) -> Card:
    """What the block of metadata at the top of the folder's README says, as far as it is of use; nothing if it has none.

    The block is YAML, of which only the lines that the hub's own tools write are understood; nothing is parsed as YAML.
    """
    try:
        with open_regular(folder / "README.md") as file:
            text = file.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return Card()
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return Card()
    block = match.group(1)
    tool = _value(block, "library_name")
    dataset = re.search(r"^[ \t-]*dataset:[ \t]*\r?\n((?:[ \t].*(?:\r?\n|$))+)", block, re.MULTILINE)
    env = None
    if dataset:
        env = _value(dataset.group(1), "name") or _value(dataset.group(1), "type")
    index = re.search(r"^model-index:[ \t]*\r?\n((?:[ \t-].*(?:\r?\n|$))+)", block, re.MULTILINE)
    algorithm = _value(index.group(1), "name") if index else None
    if env is None:  # CleanRL's first tag is the environment
        tags = re.search(r"^tags:[ \t]*\r?\n((?:[ \t]*-.*(?:\r?\n|$))+)", block, re.MULTILINE)
        named = re.findall(r"^[ \t]*-[ \t]*(\S+)", tags.group(1), re.MULTILINE) if tags else []
        env = next((_bare(tag) for tag in named if re.search(r"-v\d+$", _bare(tag))), None)
    return Card(env, tool, algorithm)


def _value(block: str, name: str) -> str | None:
    """Of the first line `name: value`."""
    match = re.search(rf"^[ \t-]*{name}:[ \t]*(\S[^\r\n]*?)[ \t]*\r?$", block, re.MULTILINE)
    value = _bare(match.group(1)) if match else ""
    return value if value and value.isprintable() and len(value) <= 200 else None


def _bare(value: str) -> str:
    return value.strip("\"'")


def _unwanted(file: Path) -> bool:
    return file.name.startswith(".") or any(fnmatch(file.name, pattern) for pattern in _UNWANTED)
