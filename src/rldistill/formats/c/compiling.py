"""A C file as machine code in this process."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from rldistill.formats.c.numbers import CPolicy
from rldistill.formats.c.rendering import render
from rldistill.formats.heads import HeadsPolicy, most_scores, observation_dtype
from rldistill.play.actions import score_width
from rldistill.types import UserError

_FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared")
_COMPILE_SECONDS = 300


class CNetwork(nn.Module):
    """A compiled policy behind the house's observations: (B, *obs) to (B, K) float32."""

    def __init__(self, policy: CPolicy, library: ctypes.CDLL) -> None:
        super().__init__()
        self.dtype = torch.uint8 if policy.task.observation_dtype == "uint8" else torch.float32
        self.width = score_width(policy.task, policy.score_kind)
        self.shape = policy.task.observation_shape
        self.weight_bytes = policy.weight_bytes
        self.library = library
        self.scores = getattr(library, f"{policy.description['prefix']}_scores")
        self.scores.argtypes, self.scores.restype = [ctypes.c_void_p, ctypes.c_void_p], None

    def forward(self, observations: Tensor) -> Tensor:
        """Scores, row after row.

        Raises:
            UserError: observations of another shape (C would read beyond their end).
        """
        if tuple(observations.shape[1:]) != self.shape:
            raise UserError(f"the policy reads {self.shape}, and is given {tuple(observations.shape[1:])}")
        x = observations.detach().to(self.dtype).contiguous()
        out = torch.empty((len(x), self.width), dtype=torch.float32)
        step = x[0].numel() * x.element_size() if len(x) else 0
        for row in range(len(x)):
            self.scores(x.data_ptr() + row * step, out.data_ptr() + row * self.width * 4)
        return out


class CHeads:
    """A compiled file of all heads: rows of observations and the index of their task to scores (B, K).

    Args:
        source, header: the texts.
        header_name: that the C file includes.
        prefix: of the functions.
        policy: whose shapes they have.
        name: of the file, for messages.

    Raises:
        UserError: there is no compiler, or it fails.
    """

    def __init__(self, source: str, header: str, header_name: str, prefix: str, policy: HeadsPolicy, name: str) -> None:
        self._library = machine_code(source, header, header_name, name)
        self._scores = getattr(self._library, f"{prefix}_scores")
        self._scores.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        self._scores.restype = ctypes.c_int32
        self._dtype = torch.uint8 if observation_dtype(policy) == "uint8" else torch.float32
        self._most = most_scores(policy)

    def __call__(self, observations: Tensor, index: int) -> Tensor:
        """Scores (B, K) of observations (B, *obs) of one task, with what stands behind its own."""
        x = observations.detach().to(self._dtype).contiguous()
        out = torch.empty((len(x), self._most), dtype=torch.float32)
        step = x[0].numel() * x.element_size() if len(x) else 0
        for row in range(len(x)):
            self._scores(index, x.data_ptr() + row * step, out.data_ptr() + row * self._most * 4)
        return out


def compiler() -> list[str] | None:
    """The words that call the system's C compiler: `$CC`, or the first of cc, gcc and clang; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    programs = [*filter(None, map(shutil.which, named[:1] if named else ("cc", "gcc", "clang")))]
    return [programs[0], *named[1:]] if programs else None


def compiled(policy: CPolicy, name: str) -> CNetwork:
    """The policy as machine code in this process, made by the system's compiler from a fresh rendering.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    source, header = render(policy)
    return CNetwork(policy, machine_code(source, header, str(policy.description["header"]), name))


def machine_code(source: str, header: str, header_name: str, name: str) -> ctypes.CDLL:
    """The library of a C file and the header that it includes.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    cc = compiler()
    if cc is None:
        raise UserError(f"{name} is C, and there is no compiler here to run it with: install cc, or name one in $CC")
    with tempfile.TemporaryDirectory(prefix="rldistill-") as folder:
        (Path(folder) / "policy.c").write_text(source)
        (Path(folder) / header_name).write_text(header)
        failed = ""
        for native in (["-march=native"], []):  # not every compiler knows it
            command = [*cc, *_FLAGS, *native, "policy.c", "-o", "policy.so", "-lm"]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UserError(f"{name} cannot be compiled: {error}") from None
            if done.returncode == 0:
                # Loaded it stays in memory when its file is gone.
                return ctypes.CDLL(str(Path(folder) / "policy.so"))
            failed = (done.stderr.strip().splitlines() or [f"{cc[0]} failed"])[-1]
    raise UserError(f"{name} cannot be compiled: {failed}")
