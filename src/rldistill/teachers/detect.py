"""What kind of file a teacher is, by its content. Nothing is loaded or executed."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from rldistill.documents import read_any_json
from rldistill.files import open_regular
from rldistill.formats.archives import read_members
from rldistill.formats.c.rendering import FIRST_LINE
from rldistill.formats.hub.download import find_policy_file, read_card
from rldistill.formats.sb3 import SAVED_POLICY, is_unpacked
from rldistill.formats.tensors.weights import is_msgpack, is_safetensors
from rldistill.types import UserError

Kind: TypeAlias = Literal[
    "policy folder", "run folder", "sb3", "cleanrl", "onnx", "torchscript", "c", "state dict", "hub folder", "unknown"
]

_SB3_MEMBERS = {"policy.pth", "pytorch_variables.pth", "_stable_baselines3_version"}
# Tensors that CleanRL's scripts alone name so; a plain `network.0.weight` may be anybody's.
_CLEANRL_NAMES = (
    {"actor_logstd", "actor_mean.0.weight"},
    {"action_scale", "action_bias", "fc_mu.weight"},
    {"action_scale", "action_bias", "fc_mean.weight", "fc_logstd.weight"},
    {"model_weights", "args", "atoms"},
)
C_START = FIRST_LINE[:22].encode()
_MAX_PICKLE = 1 << 20
_MAX_FIELDS = 10_000
# Fields of ONNX's ModelProto.
_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}


def kind_of(path: Path) -> Kind:
    """The kind of file or folder at a path; `unknown` where no reader of this package takes it, or nothing is there."""
    try:
        return _kind_of_folder(path) if path.is_dir() else _kind_of_file(path) if path.is_file() else "unknown"
    except (OSError, UserError):
        return "unknown"


def check_readable(path: Path) -> None:
    """Raises UserError where a file is of an unknown kind since it cannot be read, is a zip cut short, or one that is refused."""
    try:
        with open_regular(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
            whole = not zipped or zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # of an end that is none
        whole = False
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not whole:
        raise UserError(f"{path} is damaged: it is a zip that ends early; get it anew")
    if zipped:
        read_members(path, lambda name: None)


def _kind_of_folder(path: Path) -> Kind:
    if _is_policy(path / "policy.json"):
        return "policy folder"
    if _is_policy(path / "policy" / "policy.json"):
        return "run folder"
    if is_unpacked(path):
        return "sb3"
    try:
        return "hub folder" if kind_of(find_policy_file(path)) != "unknown" else "unknown"
    except UserError:  # none or several: the card says whether it is a model's folder, the reader says what is wrong
        return "hub folder" if read_card(path).tool in ("stable-baselines3", "cleanrl") else "unknown"


def _is_policy(card: Path) -> bool:
    try:
        return isinstance(read_any_json(card), dict)
    except UserError:
        return card.is_file()  # a damaged one is one still: its own reader says so


def _kind_of_file(path: Path) -> Kind:
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(32)
    cleanrl = path.name.endswith(".cleanrl_model")
    if start[: len(C_START)] == C_START:
        return "c"
    if start[:2] == b"PK":
        return _kind_of_zip(path, cleanrl=cleanrl)
    if is_safetensors(start, size):
        return "state dict"
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # torch.save before 1.6
        return "cleanrl" if cleanrl else "state dict"
    if cleanrl and is_msgpack(start):  # a JAX script's: its reader says so
        return "cleanrl"
    return "onnx" if start[:1] == b"\x08" and _is_onnx(path, size) else "unknown"


def _kind_of_zip(path: Path, *, cleanrl: bool) -> Kind:
    names: list[str] = []

    def wanted(name: str) -> int | None:
        names.append(name)
        return _MAX_PICKLE if name.endswith("/data.pkl") and name.count("/") == 1 else None

    members = read_members(path, wanted)
    if "data" in names and _SB3_MEMBERS & set(names):
        return "sb3"
    if any("/code/" in name for name in names):
        return "torchscript"
    if not members:
        return "unknown"
    if cleanrl:
        return "cleanrl"
    words = _strings(next(iter(members.values())))
    if words >= SAVED_POLICY:
        return "sb3"
    return "cleanrl" if any(required <= words for required in _CLEANRL_NAMES) else "state dict"


def _strings(pickled: bytes) -> set[str]:
    """Texts in a pickle. Its operations are read one by one and none is carried out."""
    texts = set()
    try:
        for _, argument, _ in pickletools.genops(pickled):
            if isinstance(argument, str):
                texts.add(argument)
    except Exception:  # of damaged pickles, whose reader says so
        pass
    return texts


def _is_onnx(path: Path, size: int) -> bool:
    """Whether the outermost fields are those of a model, a graph among them; their contents are skipped."""
    numbers = set()
    position = count = 0
    with open_regular(path) as file:
        while position < size:
            count += 1
            file.seek(position)
            head = file.read(20)
            tag, length = _varint(head)
            value, more = _varint(head[length:])
            number, kind = tag >> 3, tag & 7
            if count > _MAX_FIELDS or not length or not more or number not in _MODEL_FIELDS or kind not in (0, 2):
                return False
            numbers.add(number)
            position += length + more + (value if kind == 2 else 0)
    return position == size and 7 in numbers


def _varint(data: bytes) -> tuple[int, int]:
    """A number, and how many bytes it takes; 0 bytes where it has no end."""
    value = 0
    for index, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0
