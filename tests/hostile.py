"""Damaged and hostile files of every accepted kind, made from good ones: the same seed makes the same files.

    python tests/hostile.py --number 1000 --seed 0

loads each in a process of its own and says how long it took, how much memory, and what is at fault.

Every payload would create the file `canary` in the output folder; if it is ever there, something was executed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import pickle
import pickletools
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hostile_programs import changed_source, hostile_onnx, hostile_script
from rldistill.teachers import trial

CANARY = "canary"
Harm = Callable[[bytes, random.Random, Path], bytes]
"""A good file, a source of chance, and where the canary would be, to a bad file."""


def hostile_files(good: Sequence[Path], out: Path, number: int, seed: int) -> Iterator[Path]:
    """Writes `number` files, each in a folder of its own that says what was done, and yields their paths.

    Args:
        good: files and folders (of which one file is harmed) to start from; what is known gets harm made to measure, any
            other kind is damaged byte by byte.
        out: where they go.
        number: of files.
        seed: of all choices.
    """
    rng = random.Random(seed)
    canary = out / CANARY
    zips = [path for path in good if path.suffix == ".zip"]
    for count in range(number):
        path = good[count % len(good)]
        source = path
        if path.is_dir():
            source = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
        harms: list[tuple[str, Harm]] = list(_DAMAGES.items())
        if source.suffix == ".zip":
            other = rng.choice(zips).read_bytes()
            harms += [*_ZIP_HARMS.items(), ("members-swapped", partial(_members_swapped, other=other))]
        else:
            harms += [*_HARMS_OF.get(source.suffix, {}).items()] * 3
        name, harm = harms[rng.randrange(len(harms))]
        folder = out / f"{count:04d}-{path.suffix[1:] or path.name}-{name}"
        folder.mkdir(parents=True)
        made = folder / path.name
        if path.is_dir():
            shutil.copytree(path, made)
        (made / source.relative_to(path) if path.is_dir() else made).write_bytes(harm(source.read_bytes(), rng, canary))
        if (made / "policy.json").is_file() and rng.random() < 0.8:
            _sign(made)
        yield made


# --- damage to any file


def _truncated(data: bytes, rng: random.Random, canary: Path) -> bytes:
    return data[: rng.randrange(len(data))]


def _bits_flipped(data: bytes, rng: random.Random, canary: Path) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _head_flipped(data: bytes, rng: random.Random, canary: Path) -> bytes:
    end = rng.choice((64, 512))
    return _bits_flipped(data[:end], rng, canary) + data[end:]


def _tail_flipped(data: bytes, rng: random.Random, canary: Path) -> bytes:
    start = max(0, len(data) - rng.choice((22, 64, 600)))
    return data[:start] + _bits_flipped(data[start:], rng, canary)


def _overwritten(data: bytes, rng: random.Random, canary: Path) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((8, 256, 4096))
    fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:start] + fill + data[start + length :]


def _cut(data: bytes, rng: random.Random, canary: Path) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 100, 5000))
    return data[:start] + data[start + length :]


def _doubled(data: bytes, rng: random.Random, canary: Path) -> bytes:
    start = rng.randrange(len(data))
    return data[start:] + data


def _nothing_left(data: bytes, rng: random.Random, canary: Path) -> bytes:
    return rng.choice((b"", b"\0" * 1000, b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04", rng.randbytes(5000)))


_DAMAGES: dict[str, Harm] = {
    "truncated": _truncated,
    "bits-flipped": _bits_flipped,
    "head-flipped": _head_flipped,
    "tail-flipped": _tail_flipped,
    "overwritten": _overwritten,
    "cut": _cut,
    "doubled": _doubled,
    "nothing-left": _nothing_left,
}


# --- pickles


def payload(rng: random.Random, canary: Path, *, stop: bool = True) -> bytes:
    """A pickle that creates the canary when Python's own unpickler reads it."""
    code = f"open({str(canary)!r}, 'w').close()"
    shell = f"touch '{canary}'"
    function, argument = rng.choice(
        [
            ("os system", shell), ("posix system", shell), ("builtins exec", code), ("builtins eval", code),
            ("subprocess getoutput", shell), ("torch.serialization os.system", shell),
            ("numpy.testing._private.utils runstring", code),
            ("collections namedtuple.__globals__", code), ("os popen", shell), ("gym.spaces.box os.system", shell),
        ]
    )  # fmt: skip
    module, _, name = function.partition(" ")
    text = b"X" + struct.pack("<I", len(argument.encode())) + argument.encode()
    named = rng.choice((b"c" + f"{module}\n{name}\n".encode(), b"\x8c" + bytes([len(module)]) + module.encode()
                        + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"))  # fmt: skip
    body = rng.choice(
        [
            named + text + b"\x85R",
            named + text + b"\x85\x81",
            b"(" + named + text + b"o",
            b"(" + text + b"i" + f"{module}\n{name}\n".encode(),
            named + text + b"\x85R" + b"}b",
            b"]" + named + text + b"\x85Ra",
            b"}" + named + text + b"\x85RNs",
        ]
    )
    return b"\x80\x04" + body + (b"." if stop else b"")


def _with_payload(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """The good pickle, with the payload run somewhere in it and its result thrown away."""
    try:
        places = [place for _, _, place in pickletools.genops(data) if place]
        place = rng.choice(places)
    except Exception:
        return payload(rng, canary)
    return data[:place] + payload(rng, canary, stop=False)[2:] + b"0" + data[place:]


def _pickle_bomb(data: bytes, rng: random.Random, canary: Path) -> bytes:
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR(K\x01"
    kind = b"cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    moments = b"cstable_baselines3.common.running_mean_std\nRunningMeanStd\n)\x81}(X\x04\0\0\0mean"
    absurd = array + b"\x8a\x06\0\0\0\0\0\x01\x85" + kind + b"\x89C\x08" + b"\0" * 8 + b"tb"
    return b"\x80\x04" + rng.choice(
        [
            b"\x8e" + struct.pack("<Q", 2**44) + b"abc.",
            b"B" + struct.pack("<I", 2**32 - 1) + b"abc.",
            b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
            b"\x95" + struct.pack("<Q", 2**60) + b"N.",
            b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
            b"(" * 299_000 + b"t" * 299_000 + b".",
            b"]" * 100_000 + b"a" * 99_999 + b".",
            b")" + b"2\x86" * 100 + b"}" + b"q\x00" + b"h\x00" * 3 + b".",
            b"})" + b"2\x86" * 60 + b"Ns.",
            b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
            b"c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x01000"
            + b"h\x00h\x01X\x06\0\0\0latin1\x86R" * 20_000 + b".",
            moments + absurd + b"X\x03\0\0\0var" + absurd + b"ub.",
            b"L" + b"9" * 10**6 + b"L\n.",
            b"(" + b"K\x01" * 10**6 + b"l.",
        ]
    )  # fmt: skip


_PICKLE_HARMS: dict[str, Harm] = {
    "payload": lambda data, rng, canary: payload(rng, canary),
    "payload-within": _with_payload,
    "pickle-bomb": _pickle_bomb,
}


# --- PyTorch


def _legacy(value: bytes, keys: bytes, storages: bytes) -> bytes:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return magic + pickle.dumps(system, 2) + value + keys + storages


def _torch_zip(value: bytes, storages: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", value)
        for name, content in storages.items():
            archive.writestr(f"archive/data/{name}", content)
        archive.writestr("archive/version", "3\n")
    return packed.getvalue()


def _torch_payload(data: bytes, rng: random.Random, canary: Path) -> bytes:
    body = payload(rng, canary)
    keys = pickle.dumps([], 2)
    return rng.choice((body, _torch_zip(body, {}), _legacy(body, keys, b""), body + _legacy(keys, keys, b"")))


def _absurd_tensor(data: bytes, rng: random.Random, canary: Path) -> bytes:
    huge = rng.choice((2**30, 2**40, 2**62, -1))
    storage, size, stride = rng.choice(((huge, huge, 1), (1, huge, 1), (1, huge, 0), (4, 4, huge), (1, 2**31, 0)))

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    identity = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + number(storage)
    legacy = rng.random() < 0.5
    identity += (b"N" if legacy else b"") + b"tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + identity + b"K\0" + number(size) + b"\x85" + number(stride) + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    value = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\0\0\0w" + tensor + b"u."
    held = struct.pack("<q", storage if abs(storage) < 2**62 else 1) + b"\0" * 16
    return _legacy(value, pickle.dumps(["0"], 2), held) if legacy else _torch_zip(value, {"0": b"\0" * 16})


def _other_tensors(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """A good file of PyTorch whose content is none of a policy."""
    values: list[Any] = [
        {},
        [],
        {"w": torch.full((2, 2), float("nan"))},
        {"q_net.q_net.0.weight": torch.zeros(0, 0), "q_net.q_net.0.bias": torch.zeros(0)},
        {"action_net.weight": torch.zeros(2, 2, dtype=torch.int64)},
        {"w": torch.zeros(1).expand(2**40)},
        {"w": torch.zeros(3).to_sparse()},
        {f"actor.mu.{n}.weight": torch.zeros(1, 1) for n in range(999)},
        {"actor.mu.0.weight": torch.zeros(1, 1, dtype=torch.complex64)},
        torch.zeros(3),
        {1: torch.zeros(1)},
    ]
    buffer = io.BytesIO()
    torch.save(rng.choice(values), buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue()


def _inner_payload(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """The good weights, the payload run while they are read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:  # the older format
        return _with_payload(data, rng, canary)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, _with_payload(content, rng, canary) if name.endswith("data.pkl") else content)
    return packed.getvalue()


def _torch_damage(data: bytes, rng: random.Random, canary: Path) -> bytes:
    return rng.choice(list(_DAMAGES.values()))(data, rng, canary)


_TORCH_HARMS: dict[str, Harm] = {
    "torch-payload": _torch_payload,
    "torch-payload-within": _inner_payload,
    "torch-absurd": _absurd_tensor,
    "torch-other": _other_tensors,
    "torch-pickle-bomb": lambda data, rng, canary: _torch_zip(_pickle_bomb(data, rng, canary), {}),
}


# --- zip files


def raw_zip(
    name: bytes,
    packed: bytes,
    *,
    declared: int,
    method: int = 8,
    flags: int = 0,
    mode: int = 0o100644,
    entries: int = 1,
    checksum: int = 0,
) -> bytes:
    """A zip archive by hand, so that its headers can lie; `entries` names of the same bytes."""
    local = struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", 20, flags, method, 0, 0, checksum, len(packed), declared, len(name), 0
    )
    body = local + name + packed
    one = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20 | 3 << 8, 20, flags, method, 0, 0, checksum, len(packed),
                      declared, len(name), 0, 0, 0, 0, mode << 16, 0) + name  # fmt: skip
    directory = one * entries
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, entries % 65536, entries % 65536, len(directory), len(body), 0)
    return body + directory + end


@cache
def zeros(mebibytes: int) -> bytes:
    """Raw deflate stream of so many MiB of zeros: a thousandth of it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(packer.compress(b"\0" * 2**20) for _ in range(mebibytes)) + packer.flush()


def _bomb(data: bytes, rng: random.Random, canary: Path) -> bytes:
    size = rng.choice((64, 300))
    name = rng.choice((b"data", b"policy.pth"))
    declared = rng.choice((size << 20, 1000, 2**32 - 2, 10 << 20, 200 << 20))
    return raw_zip(name, zeros(size), declared=declared, entries=rng.choice((1, 1, 30, 90_000)))


def _odd_member(data: bytes, rng: random.Random, canary: Path) -> bytes:
    names = (b"/data", b"../data", b"a/../../data", b"C:\\data", b"..\\data", b"data\0x", b"", b"data", b"\xff\xfe")
    modes = (0o120777, 0o100644, 0o010644, 0o020644)
    method, flags = rng.choice(((0, 0), (8, 0), (12, 0), (14, 0), (99, 0), (0, 1), (8, 0x800), (8, 0x20)))
    odd = raw_zip(rng.choice(names), b"{}", declared=2, method=method, flags=flags, mode=rng.choice(modes))
    if rng.random() < 0.5:
        return odd
    packed = io.BytesIO(data)
    with zipfile.ZipFile(packed, "a") as archive:  # or beside the good members
        info = zipfile.ZipInfo(rng.choice(("../../climbs", "/absolute", "link")))
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return packed.getvalue()


def _members_swapped(data: bytes, rng: random.Random, canary: Path, *, other: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as first, zipfile.ZipFile(io.BytesIO(other)) as second:
        ours = {name: first.read(name) for name in first.namelist()}
        theirs = {name: second.read(name) for name in second.namelist()}
    for name in rng.sample(sorted(theirs), rng.randrange(1, len(theirs))):
        ours[name] = theirs[name]
    if rng.random() < 0.3:  # and among themselves
        a, b = rng.sample(sorted(ours), 2)
        ours[a], ours[b] = ours[b], ours[a]
    return _zipped(ours)


def _zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pickles_in_data(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """Every pickle in the JSON is a payload, and the readable copies beside the spaces' are cut away or left."""
    members = _members(data)
    said = json.loads(members["data"])
    copies = rng.random() < 0.5
    for entry in said.values():
        if isinstance(entry, dict) and ":serialized:" in entry:
            body = rng.choice((payload, lambda r, c: _pickle_bomb(b"", r, c)))(rng, canary)
            entry[":serialized:"] = base64.b64encode(body).decode()
            for key in ("n", "nvec", "low", "high", "low_repr", "high_repr"):
                if not copies:
                    entry.pop(key, None)
    return _zipped(members | {"data": json.dumps(said).encode()})


def _absurd_json(data: bytes, rng: random.Random, canary: Path) -> bytes:
    members = _members(data)
    said = json.loads(members["data"])
    absurd: list[Any] = [
        10**15,
        -1,
        "9" * 4000,
        [10**9] * 4,
        [],
        {},
        None,
        "nan",
        1e308,
        "[1e999]",
        True,
        "...",
        [[]],
        "[" * 500,
    ]
    spaces = [("observation_space", key) for key in ("shape", "_shape", "low", "high", "dtype", ":type:")]
    spaces += [
        ("action_space", key) for key in ("n", "nvec", "shape", "_shape", "low", "high", ":type:", ":serialized:")
    ]
    spaces += [("policy_kwargs", key) for key in ("activation_fn", "net_arch", "clip_mean", "n_quantiles", "use_expln")]
    spaces += [("policy_class", key) for key in ("__module__", "__init__", ":type:")]
    for place, key in rng.sample(spaces, rng.choice((1, 3))):
        if isinstance(said.get(place), dict):
            said[place][key] = rng.choice(absurd)
    for key in rng.sample(sorted(said), rng.choice((0, 0, 1, 5))):
        said[key] = rng.choice(absurd)
    text = json.dumps(said).encode()
    if rng.random() < 0.3:
        text = rng.choice(
            (b"[" * 10**6, b'{"a":' * 10**5, b"[" + b"{}," * 10**6 + b"{}]", b"9" * 10**6, b'"\xff"', b"null")
        )
    return _zipped(members | {"data": text})


def _zip_with_torch(
    harm: Harm,
) -> Harm:
    def make(data: bytes, rng: random.Random, canary: Path) -> bytes:
        members = _members(data)
        return _zipped(members | {"policy.pth": harm(members["policy.pth"], rng, canary)})

    return make


_ZIP_HARMS: dict[str, Harm] = {
    "bomb": _bomb,
    "odd-member": _odd_member,
    "pickles-in-data": _pickles_in_data,
    "absurd-json": _absurd_json,
    "torch-damage": _zip_with_torch(_torch_damage),
    **{name: _zip_with_torch(harm) for name, harm in _TORCH_HARMS.items()},
}


# --- policy folders and safetensors


def _sign(folder: Path) -> None:
    """Puts right checksums into a harmed policy folder, as its author would."""
    from rldistill.policies import card_checksum

    try:
        card = json.loads((folder / "policy.json").read_bytes())
        card["weights_sha256"] = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        card["card_sha256"] = card_checksum(card)
    except (ValueError, TypeError, RecursionError, OSError):
        return
    (folder / "policy.json").write_text(json.dumps(card))


def _absurd_card(data: bytes, rng: random.Random, canary: Path) -> bytes:
    card = json.loads(data)
    absurd: list[Any] = [
        10**15, -1, 2**70, "9" * 4000, [10**9] * 4, [], {}, None, float("nan"), float("inf"), 1e308, True, "mlp:65536,65536,65536",
        "mlp:" + "9," * 3000 + "9", [[]], "cnn:" + "9" * 5000 + ":1", "../../etc", {"a": {"b": {}}}, [0] * 10**5, "ALE/Pong-v5",
    ]  # fmt: skip
    places: list[tuple[Any, Any]] = [(card, key) for key in card]
    places += [(card[part], key) for part in ("architecture", "task") for key in card[part]]
    for place, key in rng.sample(places, rng.choice((1, 1, 3))):
        place[key] = rng.choice(absurd)
    if rng.random() < 0.2:
        return rng.choice((b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**6, b'{"format": "\xff"}', b"null", b"NaN"))
    return json.dumps(card).encode()


def _safetensors(data: bytes, rng: random.Random, canary: Path) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    one = header[rng.choice(names)]
    match rng.randrange(8):
        case 0:
            return struct.pack("<Q", rng.choice((2**63, 2**40, 2**31, len(data)))) + data[8:]
        case 1:
            one["data_offsets"] = rng.choice(([0, 8], [0, 2**40], [-8, 0], [2**63, 2**64], [8, 0], ["a", "b"]))
        case 2:
            one["shape"] = rng.choice(([2**40], [2**32, 2**32], [-1, -1], [0] * 100, ["4"], [2**62, 4]))
        case 3:
            one["dtype"] = rng.choice(("F64", "BOOL", "C64", "I8", "nothing", 3, None))
        case 4:  # a hundred thousand tensors in the same bytes
            header = {f"t{n}": one for n in range(100_000)}
        case 5:
            return struct.pack("<Q", 10**6) + b'{"a":' * (2 * 10**5) + body
        case 6:
            one["shape"] = [2**63 - 1, 0]
            one["data_offsets"] = [0, 0]
        case _:
            body = b"\xff" * len(body)  # NaN
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _card_text(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """A model's card of absurd YAML."""
    return rng.choice(
        (
            b"---\n" + b"a: &a [*a, *a]\n" * 1000 + b"---\n",
            b"---\nmodel-index:\n" + b"- " * 10**5 + b"\n---",
            b"---\n" + b" " * 10**6,
            b"---\ntags: [" + b"CartPole-v1," * 10**5 + b"]\n---\n",
            b"---\nlibrary_name: stable-baselines3\ntags: [../../etc-v1]\n---\n",
            b"\xff\xfe" * 1000,
        )
    )


_HARMS_OF: dict[str, dict[str, Harm]] = {
    ".pkl": _PICKLE_HARMS,
    ".pth": _TORCH_HARMS,
    ".cleanrl_model": _TORCH_HARMS,
    ".safetensors": {"header": _safetensors},
    ".json": {"absurd-card": _absurd_card},
    ".md": {"card": _card_text},
    ".onnx": {"onnx-hostile": hostile_onnx, "onnx-hostile-2": hostile_onnx, "onnx-hostile-3": hostile_onnx},
    ".pt": {"script-hostile": hostile_script, "script-source": changed_source, "torch-payload-within": _inner_payload},
}


# --- trying them


def good_files(folder: Path) -> list[Path]:
    """A policy for CartPole as every kind of file that is accepted."""
    from foreign_files import good_cartpoles

    return good_cartpoles(folder)


def try_to_load(path: Path, good: Path) -> str:
    """What a user would do: loads the file and asks it for the scores of one observation.

    Args:
        path: of `hostile_files`.
        good: where the good files are; statistics are tried with one of their zips.

    Returns:
        The refusal, empty where there is none.
    """
    from rldistill.envs import Environments
    from rldistill.teachers import TeacherOptions, load_teacher
    from rldistill.types import UserError, as_tensor

    statistics = path if path.suffix == ".pkl" else None
    network = "mlp:8,5" if path.suffix in (".pth", ".safetensors") else None
    scores: Any = "q_values" if path.suffix in (".pt", ".onnx") else None
    options = TeacherOptions(teacher_network=network, teacher_scores=scores, normalization=statistics)
    env = None if path.is_dir() else "CartPole-v1"
    try:
        teacher = load_teacher(good / "ppo.zip" if statistics else path, env=env, options=options)
        teacher(as_tensor(Environments(teacher.task, 1, 0).observations))
    except UserError as error:
        return str(error) or "a refusal without a text"
    return ""


class Outcome(NamedTuple):
    """Of one file."""

    name: str
    seconds: float
    mebibytes: float
    """The most that the process, or the one in which programs are tried, had in memory."""
    refusal: str
    fault: str
    """What must not be; empty where all is well."""


_LIMIT_SECONDS, _LIMIT_MEBIBYTES = 10, 2048


def measured(path: Path, good: Path, canary: Path) -> Outcome:
    """Loads one file in a process of its own, under the limits."""
    there, here = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(there)
            signal.alarm(_LIMIT_SECONDS + 2)
            peaks = [0]
            ask = trial.ask

            def noted(question: dict[str, Any]) -> dict[str, Any]:
                answer = ask(question)
                peaks.append(answer["peak"])
                return answer

            trial.ask = noted
            try:
                text, code = try_to_load(path, good), 0
            except BaseException:
                text = traceback.format_exc()
            os.write(here, json.dumps([text[-3000:], max(peaks)]).encode())
        finally:
            os._exit(code)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        raw = pipe.read()
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    text, peak = json.loads(raw) if raw else ("", 0)
    mebibytes = max(used.ru_maxrss / 1024, peak / 2**20)
    fault = ""
    if status != 0:
        fault = f"ended with {os.waitstatus_to_exitcode(status)}: {text}"
        if not raw:
            trial.stop()  # it may be waiting for an answer that comes to nobody
    elif len(text.splitlines()) > 1:
        fault = f"a refusal of several lines: {text}"
    if seconds > _LIMIT_SECONDS:
        fault = fault or f"took {seconds:.1f} s"
    if mebibytes > _LIMIT_MEBIBYTES:
        fault = fault or f"took {mebibytes:.0f} MiB"
    if canary.exists():
        fault = "executed something"
        canary.unlink()
    return Outcome(path.parent.name, seconds, mebibytes, text, fault)


def main() -> int:
    """Makes and measures files, says what was found, and returns 1 where anything was at fault."""
    parser = argparse.ArgumentParser(
        description="Damaged and hostile teachers: made, loaded as a user would, measured."
    )
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="more good files to start from")
    parser.add_argument("--first", type=int, default=0, help="skip so many files, to go on where a run was stopped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    refused: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        good = good_files(place / "good")
        for path in good:
            refusal = "" if path.suffix == ".pkl" else try_to_load(path, place / "good")
            if refusal:
                raise SystemExit(f"a good file is refused: {refusal}")
        bad = place / "bad"
        for count, path in enumerate(
            hostile_files([*good, *arguments.teachers], bad, arguments.number, arguments.seed)
        ):
            if count >= arguments.first:
                outcome = measured(path, place / "good", bad / CANARY)
                outcomes.append(outcome)
                kind = path.suffix[1:] or path.name
                tried[kind] += 1
                refused[kind] += bool(outcome.refusal)
                if outcome.fault:
                    print(f"FAULT {outcome.name}: {outcome.fault}", flush=True)
                if (count + 1) % 50 == 0:
                    print(f"{count + 1} of {arguments.number}", flush=True)
            shutil.rmtree(path.parent)
    print("\n| kind | files | refused |\n|---|---|---|")
    for kind in sorted(tried):
        print(f"| {kind} | {tried[kind]} | {refused[kind]} |")
    print("\n| file | seconds | MiB |\n|---|---|---|")
    slowest = sorted(outcomes, key=lambda outcome: -outcome.seconds)[:5]
    largest = sorted(outcomes, key=lambda outcome: -outcome.mebibytes)[:5]
    for outcome in (*slowest, *largest):
        print(f"| {outcome.name} | {outcome.seconds:.2f} | {outcome.mebibytes:.0f} |")
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    print(f"\n{len(outcomes)} files: {sum(refused.values())} refused in one line, the others load; {faults} at fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
