"""Tensors of a stranger's `.pth` file. What it declares is checked before PyTorch reads it.

`torch.load(weights_only=True)` runs no code, but it believes sizes, and its reader of zip files is written in C++. So the
file's own pickle is read as data, its storages are counted, and PyTorch is handed an archive that was packed here.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rldistill.formats.archives import DEFAULT_LIMITS, MOST_BYTES, read_members
from rldistill.formats.arrays import admits_statistics
from rldistill.formats.pickles import Admits, Inert, Named, interpret
from rldistill.types import UserError, printable

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_SIZES = {name: dtype.itemsize for name, dtype in _DTYPES.items()}
"""Bytes of a number."""
_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
} | {f"torch.{name}" for name in _SIZES}
_DEPTH = 64
"""Of containers in one another."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_HINT = (
    "; a file of weights calls nothing but PyTorch's own. Get it from somebody you trust, as a plain state dict: "
    "torch.save(model.state_dict(), FILE)"
)


def load_state_dict(data: bytes, source: str) -> dict[str, Tensor]:
    """As `load_tensors`, for files that hold names and tensors and nothing else.

    Returns:
        Tensors by name, floating point ones as float32.

    Raises:
        UserError: as there, or the file holds something else, or a tensor is not finite.
    """
    return plain_state_dict(load_tensors(data, source), source)


def plain_state_dict(loaded: Any, source: str) -> dict[str, Tensor]:
    """A state dict with its floating point tensors as float32.

    Raises:
        UserError: it holds something else.
    """
    if not isinstance(loaded, dict):
        raise UserError(f"{source} holds no dictionary of tensors but a {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{source} holds more than tensors: {printable(name)!r} is a {type(tensor).__name__}")
    return {
        name: tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor.detach()
        for name, tensor in loaded.items()
    }


def load_tensors(data: bytes, source: str, *, admits: Admits = admits_statistics) -> Any:
    """What `torch.save` wrote: tensors in plain containers, on the processor.

    Arrays of NumPy and the classes of statistics and spaces (`arrays.admits_statistics`) stay `Inert`.

    Args:
        data: the file, either the zip layout of PyTorch 1.6 and later or the older one.
        source: its name in messages.
        admits: names that it may mention besides PyTorch's own. They come out as `Inert` and `Named`.

    Raises:
        UserError: it is damaged, wants to call something, declares sizes that do not fit its bytes, or holds tensors
            that are not finite, not dense, or bigger than their storage.
    """
    if data[:2] == b"PK":
        with_objects, checked = _repacked(data, source, admits)
        if with_objects is not None:
            _check_tensors(with_objects, source)
            return with_objects
    elif data[:1] == b"\x80":
        _check_legacy(data, source)
        checked = data
    else:
        raise UserError(f"{source} is damaged or no file of PyTorch; get it anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats; nothing the user could do
            loaded = torch.load(io.BytesIO(checked), map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of hostile bytes; which errors it has is not documented
        complaint = (str(error).splitlines() or [type(error).__name__])[0]
        # Its own advice is to load the file without safety.
        reason = (
            "it holds what no weights need"
            if "eights only" in complaint or "weights_only" in complaint
            else printable(complaint, 160)
        )
        raise UserError(f"{source} is damaged: PyTorch cannot read it ({reason}); get it anew") from None
    _check_tensors(loaded, source)
    return loaded


def _repacked(data: bytes, source: str, admits: Admits) -> tuple[Any, bytes]:
    """Writes the archive anew from its checked members, since two readers may see two archives in the same bytes.

    Returns:
        What it holds, where that is more than PyTorch's own classes, else None; and the bytes of the archive.
    """
    members = read_members(data, lambda _: MOST_BYTES, name=source, limits=DEFAULT_LIMITS._replace(total=MOST_BYTES))
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise UserError(f"{source} is a zip file, but not one of PyTorch's: it has no data.pkl")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise UserError(f"{source} is a TorchScript file; name it as one (with the ending .pt or .ts)")
    storages: dict[str, int] = {}
    objects: list[str] = []

    def admits_more(module: str, name: str) -> bool:
        if _admits(module, name):
            return True
        objects.append(name)
        return admits(module, name) or name == "RunningMeanStd"

    held_value, _ = interpret(
        members[f"{root}data.pkl"],
        admits_more,
        source=source,
        hint=_HINT,
        persistent=lambda identity: _storage(identity, storages, source),
    )
    for key, size in storages.items():
        held = members.get(f"{root}data/{key}")
        if held is None or len(held) != size:
            raise UserError(
                f"{source} is damaged: it declares {size:,} bytes for the storage {printable(key)!r} "
                f"and has {0 if held is None else len(held):,}"
            )
    if objects:
        if members.get(f"{root}byteorder", b"little") != b"little":
            raise UserError(f"{source} was written by a machine of another byte order; save it anew")
        contents = {key: members[f"{root}data/{key}"] for key in storages}
        return _rebuilt(held_value, contents, source), b""
    needed = {f"{root}data/{key}" for key in storages}
    needed |= {f"{root}{name}" for name in ("data.pkl", "version", "byteorder")}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if name in needed:
                archive.writestr(zipfile.ZipInfo(f"archive/{name[len(root) :]}"), content)
    return None, packed.getvalue()


def _rebuilt(value: Any, contents: Mapping[str, bytes], source: str) -> Any:
    """A pickle's value with its tensors made of their storages' bytes; everything else of it stays inert."""
    damaged = UserError(f"{source} is damaged: a tensor does not fit its storage; get it anew")
    made: dict[int, Any] = {}
    flat: dict[str, Tensor] = {}
    total = 0

    def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not all(isinstance(number, int) and 0 <= number <= MOST_BYTES for number in numbers):
            raise damaged
        if not isinstance(storage, Inert) or storage.name != "storage" or len(size) != len(stride) or len(size) > 16:
            raise damaged
        kind, key = storage.arguments
        if key not in flat:
            flat[key] = torch.frombuffer(bytearray(contents[key] or b"\0" * 8), dtype=_DTYPES[kind])
        length = len(contents[key]) // _SIZES[kind]
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if math.prod(size) > length or (math.prod(size) and end > length):
            raise damaged
        nonlocal total  # each may be a copy, and many may share a storage
        total += math.prod(size) * _SIZES[kind]
        _check_total(total, source)
        return flat[key].as_strided(size, stride, offset).contiguous()

    def walk(item: Any, depth: int) -> Any:
        if not isinstance(item, dict | list | tuple | Inert):
            return item
        if id(item) in made:
            return made[id(item)]
        if depth > _DEPTH:
            raise UserError(f"{source} is refused: its containers are nested without end")
        result: Any = item
        if isinstance(item, dict):
            result = {key: walk(inner, depth + 1) for key, inner in item.items()}
        elif isinstance(item, list | tuple):
            result = type(item)(walk(inner, depth + 1) for inner in item) if type(item) in (list, tuple) else item
        elif item.name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            if len(item.arguments) < 4:
                raise damaged
            result = tensor(*item.arguments[:4])
        elif item.name == "torch._utils._rebuild_parameter" and item.arguments:
            result = walk(item.arguments[0], depth + 1)
        elif item.name == "torch.Size" and item.arguments:
            result = item.arguments[0]
        made[id(item)] = result
        return result

    return walk(value, 0)


def _check_legacy(data: bytes, source: str) -> None:
    """Five pickles (magic number, protocol, system, value, storage keys), then each storage after its length."""
    storages: dict[str, int] = {}
    position = 0
    parts = []
    for _ in range(5):
        part, position = interpret(
            data,
            _admits,
            source=source,
            hint=_HINT,
            start=position,
            persistent=lambda identity: _storage(identity, storages, source),
        )
        parts.append(part)
        if parts[0] != _LEGACY_MAGIC:
            raise UserError(f"{source} is a plain pickle, no file of torch.save; save its state dict with that")
    keys = parts[4]
    if parts[1] != _LEGACY_PROTOCOL or not isinstance(parts[2], dict) or not isinstance(keys, list):
        raise UserError(f"{source} is damaged: its header is not PyTorch's; get it anew")
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise UserError(f"{source} is damaged: its list of storages does not fit; get it anew")
    if len(data) - position != sum(8 + storages[key] for key in keys):
        raise UserError(f"{source} is damaged: its storages are not as long as it declares; get it anew")


def _admits(module: str, name: str) -> bool:
    return f"{module}.{name}" in _NAMES


def _storage(identity: Any, storages: dict[str, int], source: str) -> Inert:
    """Notes the bytes that a persistent id declares: ('storage', type, key, place, number of elements[, view])."""
    match identity:
        case ("storage", Named("torch", kind), str(key), str(), int(count), *rest) if kind in _SIZES:
            size = count * _SIZES[kind]
            if count < 0 or size > MOST_BYTES or any(item is not None for item in rest):
                raise UserError(f"{source} is refused: it declares a storage of an absurd size")
            if storages.setdefault(key, size) != size:
                raise UserError(f"{source} is damaged: it declares a storage twice; get it anew")
            return Inert("storage", (kind, key))
    raise UserError(f"{source} is refused: it has a storage of an unknown kind")


def _check_tensors(loaded: Any, source: str) -> None:
    visited: set[int] = set()
    left = [("", loaded)]
    total = 0
    while left:
        name, value = left.pop()
        if id(value) in visited:  # a container may hold another a million times
            continue
        visited.add(id(value))
        if isinstance(value, dict):
            left += [
                (f"{name}.{printable(key)}"[:200] if name else printable(key), item) for key, item in value.items()
            ]
        elif isinstance(value, list | tuple):
            left += [(name, item) for item in value]
        elif isinstance(value, Tensor):
            total += _checked_bytes(value, name, source)
            _check_total(total, source)


def _check_total(size: int, source: str) -> None:
    """Raises UserError where the tensors of a file have more bytes together than a file may hold twice."""
    if size > 2 * MOST_BYTES:
        raise UserError(f"{source} is refused: its tensors are views of one another, again and again")


def _checked_bytes(tensor: Tensor, name: str, source: str) -> int:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES.values() or tensor.device.type != "cpu":
        raise UserError(f"{source} holds a tensor {name!r} of a kind that no policy has ({tensor.dtype})")
    size = math.prod(tensor.shape) * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise UserError(f"{source} is refused: its tensor {name!r} declares {size:,} bytes and has fewer")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{source} holds NaN or infinity in {name!r}; take an earlier checkpoint")
    return size
