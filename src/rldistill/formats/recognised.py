"""Policies of other tools that are not read: what they are, and how they can be converted.

Nothing in a file is executed: pickles are read as data (`pickles`), of other formats the first bytes and the names of members.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rldistill.files import open_regular
from rldistill.formats.archives import read_file, read_members
from rldistill.formats.arrays import MOST_PICKLE_BYTES, admits_statistics
from rldistill.formats.pickles import Inert, interpret
from rldistill.types import UserError

_START = 32
_MOST_FILES = 2000  # of a folder that is searched
# How a file of torch.save from before 1.6 begins: a pickle of this number.
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
# What pickles of arrays name besides NumPy's own: JAX's arrays, and the containers of Flax and of Python.
_ARRAY_NAMES = re.compile(
    r"(jax|jaxlib|flax|ml_dtypes|haiku|brax|chex|optax)\.[\w.]+|builtins\.(int|float|list|dict|set)"
)
_JAX = re.compile(r"(jax|jaxlib|flax|haiku|brax|chex|optax)\.")
_TABLE = re.compile(r"(?i)(^|[^a-z])q[-_ ]?(table|values?|learning)([^a-z]|$)|^q$")
_RLLIB_STATES = ("module_state.pkl", "policy_state.pkl")
_ARRAYS_SECTION = "as docs/inspect.md shows under 'Arrays without a network'"


def refuse_recognised(path: Path) -> None:
    """Refuses a file or folder that is another tool's and not read, and names the way out.

    Args:
        path: what no reader takes, or what begins as a pickle.

    Raises:
        UserError: it is recognised; the message says what it is and what to do.
    """
    name = str(path)
    try:
        refusal = _folder(path, name) if path.is_dir() else _file(path, name)
    except OSError:  # whoever reads it says so
        return
    if refusal is not None:
        raise UserError(refusal)


def _folder(folder: Path, name: str) -> str | None:
    held = set(os.listdir(folder))
    if {"rllib_checkpoint.json", ".is_checkpoint", *_RLLIB_STATES} & held:
        return _rllib(folder, name)
    checkpoints = sorted(folder.glob("checkpoint_p*/*.pth"))
    if checkpoints:
        best = next((file for file in checkpoints if file.name.startswith("best")), checkpoints[-1])
        return f"{name} is a folder of Sample-Factory's: name one of its checkpoints, {best}"
    if "saved_model.pb" in held:
        return f"{name} is a model of TensorFlow: {_TENSORFLOW}"
    if {"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"} & held:
        return f"{name} is a checkpoint of JAX (Orbax) and holds no network: write its arrays to a state dict, {_ARRAYS_SECTION}"
    pickles = [folder / file for file in sorted(held) if file.endswith((".pkl", ".pickle", ".npy", ".npz"))]
    for file in islice(pickles, 5):
        refusal = _file(file, str(file)) if file.is_file() else None
        if refusal is not None:
            return refusal
    return None


_TENSORFLOW = "convert it to ONNX (python -m tf2onnx.convert), and name that file"


def _file(path: Path, name: str) -> str | None:
    if not path.is_file():
        return None
    with open_regular(path) as file:
        start = file.read(_START)
    if start[:6] == b"\x93NUMPY":
        return _table(name)
    if start[:4] == b"\x89HDF":
        return f"{name} is a file of Keras or another of HDF5, not read here: of Keras {_TENSORFLOW}"
    if start[:4] == b"PK\x03\x04":
        return _zip(path, name)
    if path.suffix in (".msgpack", ".flax"):
        return f"{name} is of Flax, which holds arrays and no network: write them to a state dict, {_ARRAYS_SECTION}"
    if _LEGACY_MAGIC not in start and (start[:1] == b"\x80" or path.suffix in (".pkl", ".pickle")):
        return _pickle(path, name)
    return None


def _zip(path: Path, name: str) -> str | None:
    names: list[str] = []

    def wanted(member: str) -> None:
        names.append(member)

    read_members(path, wanted)
    if names and all(member.endswith(".npy") for member in names):
        return _table(name)
    if "config.json" in names and any(member.endswith(".weights.h5") for member in names):
        return f"{name} is a model of Keras: {_TENSORFLOW}"
    if {"data", "parameters"} <= set(names):
        return (
            f"{name} is of Stable-Baselines 2, which is not read: its model.get_parameters() are arrays; write them to a state "
            f"dict, {_ARRAYS_SECTION}"
        )
    return None


def _pickle(path: Path, name: str) -> str | None:
    """The refusal of a pickle that holds arrays and plain values and calls nothing else; None for any other."""
    if path.name in _RLLIB_STATES:
        return _rllib(path.parent, str(path.parent))
    called: list[str] = []

    def admits(module: str, attribute: str) -> bool:
        if not (admits_statistics(module, attribute) or _ARRAY_NAMES.fullmatch(f"{module}.{attribute}")):
            return False
        called.append(f"{module}.{attribute}")
        return True

    try:
        value, _ = interpret(read_file(path, MOST_PICKLE_BYTES, what="policy file"), admits, source=str(path))
    except UserError:  # its reader says what it wants to call
        return None
    if _is_table(value) or _TABLE.search(path.stem):
        return _table(name)
    if any(_JAX.match(text) for text in called):
        return f"{name} is a pickle of JAX's arrays, without a network: write them to a state dict, {_ARRAYS_SECTION}"
    if any(text.startswith("numpy.") for text in called):
        return f"{name} is a plain pickle of arrays, without a network: write them to a state dict, {_ARRAYS_SECTION}"
    return None


def _is_table(value: Any) -> bool:
    """Whether it is one array, or rows by state, or holds a table by name."""
    if isinstance(value, Inert):
        return value.name.endswith(("._reconstruct", "._frombuffer"))
    if not isinstance(value, Mapping) or not value:
        return False
    if any(isinstance(key, str) and _TABLE.search(key) for key in value):
        return True
    return all(isinstance(key, int | float | tuple) for key in value)


def _table(name: str) -> str:
    return (
        f"{name} holds a table of values, no network: where a row belongs to each number of a Discrete observation, save it as a "
        f"layer, torch.save({{'q.weight': torch.tensor(table.T)}}, 'q.pth'), and name q.pth; others {_ARRAYS_SECTION}"
    )


def _rllib(folder: Path, name: str) -> str:
    """The refusal of a checkpoint of RLlib: it names the file of tensors, and the call that makes a state dict of it."""
    files = [file for file in islice(_files(folder), _MOST_FILES) if file.name in _RLLIB_STATES]
    files.sort(key=lambda file: (file.name != "module_state.pkl", "default_policy" not in file.parts, len(file.parts)))
    if not files:
        return f"{name} is a checkpoint of RLlib that holds no module_state.pkl: save its module's state_dict() with torch.save"
    inner = "" if files[0].name == "module_state.pkl" else "['weights']"
    return (
        f"{name} is a checkpoint of RLlib: where RLlib is installed, and if you trust the file, write its tensors to a state dict, "
        f"torch.save({{n: torch.tensor(a) for n, a in pickle.load(open({str(files[0])!r}, 'rb')){inner}.items()}}, 'policy.pth'), "
        "and name policy.pth"
    )


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for file in sorted(names):
            yield Path(place, file)
