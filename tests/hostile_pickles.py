"""Damage to any file, and hostile pickles and files of PyTorch: for `hostile_files`."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Harm = Callable[[bytes, random.Random, Path], bytes]
"""A good file, a source of chance, and where the canary would be, to a bad file."""


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


DAMAGES: dict[str, Harm] = {
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


def pickle_bomb(data: bytes, rng: random.Random, canary: Path) -> bytes:
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


PICKLE_HARMS: dict[str, Harm] = {
    "payload": lambda data, rng, canary: payload(rng, canary),
    "payload-within": _with_payload,
    "pickle-bomb": pickle_bomb,
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


def inner_payload(data: bytes, rng: random.Random, canary: Path) -> bytes:
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


def any_damage(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """One of the damages."""
    return rng.choice(list(DAMAGES.values()))(data, rng, canary)


TORCH_HARMS: dict[str, Harm] = {
    "torch-payload": _torch_payload,
    "torch-payload-within": inner_payload,
    "torch-absurd": _absurd_tensor,
    "torch-other": _other_tensors,
    "torch-pickle-bomb": lambda data, rng, canary: _torch_zip(pickle_bomb(data, rng, canary), {}),
}
