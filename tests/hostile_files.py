"""Damaged and hostile files of every accepted kind, made from good ones: the same seed makes the same files.

Every payload would create the file `canary` in the output folder; if it is ever there, something was executed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from hostile_pickles import DAMAGES, PICKLE_HARMS, TORCH_HARMS, Harm, any_damage, inner_payload, payload, pickle_bomb
from hostile_programs import changed_source, hostile_onnx, hostile_script

CANARY = "canary"


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
        harms: list[tuple[str, Harm]] = list(DAMAGES.items())
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
        place = made / source.relative_to(path) if path.is_dir() else made
        place.write_bytes(harm(source.read_bytes(), rng, canary))
        if (made / "policy.json").is_file() and rng.random() < 0.8:
            _sign(made)
        if (made / "dataset.json").is_file() and rng.random() < 0.8:
            _sign_shards(made)
        if rng.random() < 0.05:
            _no_regular_file(place, rng)
        yield made


def _no_regular_file(place: Path, rng: random.Random) -> None:
    """A pipe that nobody writes to, a device without end, a link to nothing or to itself, or a folder in the place of a file."""
    place.unlink()
    match rng.randrange(5):
        case 0:
            os.mkfifo(place)
        case 1:
            place.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/stdin", "/dev/null")))
        case 2:
            place.symlink_to(place.name)
        case 3:
            place.symlink_to("nothing")
        case _:
            place.mkdir()


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
    """Every pickle in the JSON is a payload, a bomb or damaged, and the readable copies beside the spaces' are cut away or left."""
    members = _members(data)
    document = json.loads(members["data"])
    copies = rng.random() < 0.5
    for entry in document.values():
        if isinstance(entry, dict) and ":serialized:" in entry:
            good = base64.b64decode(entry[":serialized:"]) or b"N."
            made: list[Harm] = [lambda _, r, c: payload(r, c), pickle_bomb, any_damage]
            body = rng.choice(made)(good, rng, canary)
            entry[":serialized:"] = base64.b64encode(body).decode()
            for key in ("n", "nvec", "low", "high", "low_repr", "high_repr"):
                if not copies:
                    entry.pop(key, None)
    return _zipped(members | {"data": json.dumps(document).encode()})


def _absurd_json(data: bytes, rng: random.Random, canary: Path) -> bytes:
    members = _members(data)
    document = json.loads(members["data"])
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
        if isinstance(document.get(place), dict):
            document[place][key] = rng.choice(absurd)
    for key in rng.sample(sorted(document), rng.choice((0, 0, 1, 5))):
        document[key] = rng.choice(absurd)
    text = json.dumps(document).encode()
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
    "torch-damage": _zip_with_torch(any_damage),
    **{name: _zip_with_torch(harm) for name, harm in TORCH_HARMS.items()},
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


def _sign_shards(folder: Path) -> None:
    """Puts right checksums into the card of a harmed dataset, as its author would."""
    try:
        card = json.loads((folder / "dataset.json").read_bytes())
        for shard in card["shards"]:
            data = (folder / shard["file"]).read_bytes()
            shard |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "dataset.json").write_text(json.dumps(card))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError):
        return


MODULE = "hostile_canary"
"""A module that lies beside the files: an environment's id names it, and importing it makes the canary."""


def _module_of_a_stranger(data: bytes, rng: random.Random, canary: Path) -> bytes:
    (canary.parent / f"{MODULE}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    card = json.loads(data)
    env = rng.choice((f"{MODULE}:Grid-v0", f"{MODULE}.inner:Grid-v0", f"{MODULE}:", f"{MODULE}:CartPole-v1"))
    for place in (card, card.get("task")):
        if isinstance(place, dict):
            place["env"] = env
    return json.dumps(card).encode()


def _nested(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """JSON without end, as the whole file, as a value of it or as a line."""
    depth = rng.choice((100, 990, 5000, 10**6))
    deep = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    lines = data.splitlines(True)
    lines.insert(rng.randrange(len(lines) + 1), deep + b"\n")
    return rng.choice((deep, b"".join(lines), data.rstrip()[:-1] + b', "more": ' + deep + b"}"))


def _lengths(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """Numbers of eight and four bytes that are lengths and offsets become others."""
    altered = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
        at = rng.randrange(len(altered)) & ~7
        altered[at : at + 8] = struct.pack("<q", rng.choice((2**40, -1, 2**62, 100_000, 1, 0, 5000)))
    return bytes(altered[: len(data)])


def _absurd_card(data: bytes, rng: random.Random, canary: Path) -> bytes:
    card = json.loads(data)
    absurd: list[Any] = [
        10**15, -1, 2**70, "9" * 4000, [10**9] * 4, [], {}, None, float("nan"), float("inf"), 1e308, True, "mlp:65536,65536,65536",
        "mlp:" + "9," * 3000 + "9", [[]], "cnn:" + "9" * 5000 + ":1", "../../etc", {"a": {"b": {}}}, [0] * 10**5, "ALE/Pong-v5",
    ]  # fmt: skip
    places: list[tuple[Any, Any]] = [(card, key) for key in card]
    inner = [value for value in card.values() if isinstance(value, dict)]
    inner += [item for value in card.values() if isinstance(value, list) for item in value if isinstance(item, dict)]
    places += [(part, key) for part in inner for key in part]
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
    ".pkl": PICKLE_HARMS,
    ".pth": TORCH_HARMS,
    ".cleanrl_model": TORCH_HARMS,
    ".safetensors": {"header": _safetensors},
    ".json": {"absurd-card": _absurd_card, "module": _module_of_a_stranger, "nested": _nested},
    ".jsonl": {"nested": _nested},
    ".arrow": {"lengths": _lengths, "lengths-2": _lengths},
    ".md": {"card": _card_text},
    ".onnx": {"onnx-hostile": hostile_onnx, "onnx-hostile-2": hostile_onnx, "onnx-hostile-3": hostile_onnx},
    ".pt": {"script-hostile": hostile_script, "script-source": changed_source, "torch-payload-within": inner_payload},
}
