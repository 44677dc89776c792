"""The same command gives the same numbers to the bit as it did when `checksums.json` was written, however the code is arranged.

Only the command is called, so that modules may change their names and places. What a run of floating point gives to the bit
depends on the version of PyTorch, on the processor and on the number of threads (here one), so the checksums are kept under
these. The instructions that PyTorch names (AVX512 and so on) are not all that matters of a processor: MKL and oneDNN choose
between ways to add by its make, too. So a checksum of sums and products that need none of our code is part of the key.

On a machine that has no checksums in the file, the numbers are compared with a few of each run that are kept there, within
`TOLERANCE`.

To write the checksums of this machine beside the others, with the versions of `constraints.txt`:

    OMP_NUM_THREADS=1 python tests/test_bits.py --write

Of a run whose checksums on this machine have changed, or whose numbers are far from those that are kept, the new ones take
the place of all others. Do that only where a change of the results is meant.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import safetensors.numpy
import torch
from torch.nn import functional

from rldistill.cli import main

POLICIES = Path(__file__).resolve().parents[1] / "policies"
CHECKSUMS = Path(__file__).with_name("checksums.json")
TOLERANCE = 2e-3
"""Largest difference, in units of the size of the array's numbers, on a processor that has no checksums.

The runs have some ten to a hundred updates of small steps, so that roundings do not grow far: with MKL, oneDNN and PyTorch
held to AVX2, to AVX and to SSE, the differences were at most 0.0005. A learning rate that is wrong by a hundredth made
differences from 0.009 on, and another seed more than 2.
"""

Array: TypeAlias = npt.NDArray[Any]
Groups: TypeAlias = dict[str, dict[str, Array]]
"""What a run leaves: arrays by name, in groups that have a checksum each."""


# Runs


@dataclass(frozen=True)
class Run:
    words: str
    """Of the command; with {policies}, {folder} of this run, and the {teacher} and {data} that are made for it in that folder."""
    teacher: tuple[int, ...] = ()
    """Inputs, hidden units and outputs of a state dict that is drawn for it."""
    deviation: bool = False
    """Whether the teacher has a standard deviation for each of its outputs."""
    data: str = ""
    """Words of the command that records its data."""
    needs: str = ""
    """A package that its environment is from."""


SMALL = "--num-envs 4 --evaluate-episodes 0 --bfloat16 False --out {folder}/run"
PONG = f"distill --teacher {{policies}}/pong --student net3 {SMALL}"
CARTPOLE = (
    "distill --teacher {teacher} --accept-mismatch --env CartPole-v1 --teacher-network mlp:8:tanh --student mlp:16,16 "
    f"--steps 400 --warmup 200 --samples-per-step 16 {SMALL}"
)
PENDULUM = (
    "distill --teacher {teacher} --accept-mismatch --env Pendulum-v1 --teacher-network mlp:8:tanh --student mlp:16,16 "
    f"--steps 800 --warmup 200 --samples-per-step 16 {SMALL} --evaluate-every 400 --evaluate-episodes 2"
)
RUNS = {
    "pong": Run(f"{PONG} --steps 200 --warmup 120 --samples-per-step 16 --replay 160 --learning-rate 0.001"),
    "pong, states that are visited alone": Run(
        f"{PONG} --steps 200 --warmup 120 --samples-per-step 16 --augment 0 --seed 1"
    ),
    "pong as in the paper": Run(f"{PONG} --preset rusu2015 --steps 240 --warmup 120"),
    "pong recorded": Run(
        "record --teacher {policies}/pong --steps 300 --num-envs 4 --shard-steps 160 --out {folder}/data"
    ),
    "pong from data": Run(
        f"{PONG} --dataset {{data}} --updates 60 --learning-rate 0.0003",
        data="record --teacher {policies}/pong --steps 300 --num-envs 4 --shard-steps 160 --out {folder}/data",
    ),
    "minatar": Run(
        "distill --teacher {policies}/minatar/space_invaders --student cnn:8:32 --loss nll:1,mse_prob:1 "
        f"--explore boltzmann --steps 280 --warmup 200 --samples-per-step 16 {SMALL}",
        needs="minatar",
    ),
    "lunar lander": Run(
        "distill --teacher {teacher} --accept-mismatch --env LunarLander-v3 --teacher-network mlp:32 "
        f"--teacher-scores q_values --student mlp:16,16 --steps 800 --warmup 200 --samples-per-step 16 {SMALL}",
        teacher=(8, 32, 4),
        needs="Box2D",
    ),
    "pendulum, gaussian": Run(f"{PENDULUM} --teacher-scores gaussian", teacher=(3, 8, 1), deviation=True),
    "pendulum, deterministic": Run(
        f"{PENDULUM} --teacher-scores deterministic --teacher-actions unit --loss huber --driver student",
        teacher=(3, 8, 1),
    ),
    "cartpole, logits and dropout": Run(
        f"{CARTPOLE} --teacher-scores logits --driver student --explore dropout --dropout 0.1 --optimizer muon",
        teacher=(4, 8, 2),
    ),
    "cartpole, values and nothing that helps": Run(
        f"{CARTPOLE} --teacher-scores q_values --driver teacher --loss mse --targets standardized --no-steady "
        "--no-standardize --initialize torch --schedule constant --average 0 --max-grad-norm 0",
        teacher=(4, 8, 2),
    ),
    "pqn trained": Run(
        "train CartPole-v1 --algo pqn --steps 4000 --num-envs 8 --network mlp:32 --device cpu --final-episodes 0 "
        "--bfloat16 False --out {folder}/run"
    ),
    "dqn trained": Run(
        "train MinAtar/Breakout-v1 --algo dqn --steps 2000 --num-envs 4 --warmup 400 --replay-ratio 8 --network cnn:8:32 "
        "--device cpu --final-episodes 0 --bfloat16 False --out {folder}/run",
        needs="minatar",
    ),
}


def command(words: str) -> None:
    """Runs it in this process."""
    output = io.StringIO()
    with mock.patch.object(sys, "argv", ["rldistill", *shlex.split(words)]), contextlib.redirect_stderr(output):
        try:
            main()
        except SystemExit as end:
            raise AssertionError(f"exit status {end.code}: {output.getvalue()}") from None


def draw_teacher(path: Path, run: Run) -> None:
    """Writes a state dict that has always the same numbers."""
    generator = np.random.default_rng(0)
    inputs, hidden, outputs = run.teacher
    shapes = {"0.weight": (hidden, inputs), "0.bias": (hidden,), "2.weight": (outputs, hidden), "2.bias": (outputs,)}
    drawn = {name: generator.uniform(-1, 1, size=shape).astype(np.float32) for name, shape in shapes.items()}
    if run.deviation:
        drawn["log_std"] = np.full(outputs, -0.5, np.float32)
    torch.save({name: torch.from_numpy(array) for name, array in drawn.items()}, path)


def groups_of(run: Run, folder: Path) -> Groups:
    """Runs it and reads the numbers that it leaves."""
    paths = {"policies": POLICIES, "folder": folder, "teacher": folder / "teacher.pth", "data": folder / "data"}
    places = {name: shlex.quote(str(path)) for name, path in paths.items()}
    if run.teacher:
        draw_teacher(folder / "teacher.pth", run)
    with one_thread():
        if run.data:
            command(run.data.format(**places))
        command(run.words.format(**places))
    if run.words.startswith("record"):
        return {"recorded": recorded(folder / "data")}
    weights = safetensors.numpy.load_file(folder / "run" / "policy" / "weights.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    return {"weights": weights, "metrics": metrics(folder / "run" / "metrics.jsonl")}


def metrics(path: Path) -> dict[str, Array]:
    """Losses over the run, and the mean returns of teacher and student where they are."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    named = {name: [line[name] for line in lines if line.get(name) is not None] for name in ("loss", "mean")}
    assert named["loss"]
    return {name: np.array(values, np.float64) for name, values in named.items() if values}


def recorded(folder: Path) -> dict[str, Array]:
    """The columns of a dataset, over all shards."""
    shards = sorted(folder.glob("*.arrow"))
    assert len(shards) > 1
    table = pa.concat_tables([pa.ipc.open_file(shard).read_all() for shard in shards])
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Numbers


def checksums(groups: Groups) -> dict[str, str]:
    return {group: checksum(arrays) for group, arrays in groups.items()}


def checksum(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def reference(groups: Groups) -> dict[str, dict[str, dict[str, Any]]]:
    """A few numbers of each array."""
    return {
        group: {
            name: {
                "shape": list(array.shape),
                "mean": rounded(array.mean(dtype=np.float64)),
                "std": rounded(array.std(dtype=np.float64)),
                "first": [rounded(value) for value in array.reshape(-1)[:8]],
            }
            for name, array in sorted(arrays.items())
        }
        for group, arrays in groups.items()
    }


def rounded(value: Any) -> float:
    """To the digits that a float32 has."""
    return float(f"{float(value):.7g}")


def distance(groups: Groups, expected: Any) -> float:
    """The largest difference of two numbers, in units of the size that the numbers of their array have."""
    mine = reference(groups)
    if {group: set(arrays) for group, arrays in mine.items()} != {g: set(arrays) for g, arrays in expected.items()}:
        return float("inf")
    largest = 0.0
    for group, arrays in mine.items():
        for name, numbers in arrays.items():
            other = expected[group][name]
            if numbers["shape"] != other["shape"]:
                return float("inf")
            size = float(np.hypot(other["mean"], other["std"])) or 1.0
            pairs = zip(
                [numbers["mean"], numbers["std"], *numbers["first"]],
                [other["mean"], other["std"], *other["first"]],
                strict=True,
            )
            largest = max(largest, *(abs(one - two) / size for one, two in pairs))
    return largest


def machine() -> str:
    """What the bits depend on besides our code."""
    with one_thread():
        return (
            f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, "
            f"arithmetic {checksum(arithmetic())[:12]}"
        )


def arithmetic() -> dict[str, Array]:
    """Sums and products such as networks of images and of vectors need, forwards and backwards."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).sub(0.5).requires_grad_()

    images, vectors = drawn(64, 4, 84, 84), drawn(64, 8)
    layers = [drawn(16, 4, 8, 8), drawn(16, 16, 4, 4), drawn(16, 16, 3, 3), drawn(64, 784), drawn(16, 8), drawn(16, 16)]
    activity = functional.conv2d(images, layers[0], stride=4).relu()
    activity = functional.conv2d(functional.conv2d(activity, layers[1], stride=2).relu(), layers[2]).relu()
    scores = functional.linear(activity.flatten(1), layers[3])
    felt = functional.linear(functional.layer_norm(functional.linear(vectors, layers[4]), (16,)).relu(), layers[5])
    loss = scores.log_softmax(1).square().mean() + felt.tanh().exp().mean() + felt.std()
    torch.autograd.backward(loss)
    floats = vectors.detach().numpy()
    of_numpy = {"exp": np.exp(floats), "log": np.log(floats + 1), "sine": np.sin(floats), "sum": floats.sum(axis=0)}
    gradients = {f"layer {number}": layer.grad.numpy() for number, layer in enumerate(layers) if layer.grad is not None}
    return {"scores": scores.detach().numpy(), "felt": felt.detach().numpy(), **gradients, **of_numpy}


# Tests


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_a_run_with_one_teacher_gives_the_same_numbers_to_the_bit(name: str, tmp_path: Path) -> None:
    if RUNS[name].needs:
        pytest.importorskip(RUNS[name].needs)
    kept = json.loads(CHECKSUMS.read_text())["runs"][name]
    groups = groups_of(RUNS[name], tmp_path)
    here = machine()
    if here in kept["checksums"]:
        assert checksums(groups) == kept["checksums"][here]
    else:
        warnings.warn(f"no checksums for {here}: compared within a tolerance", stacklevel=1)
        assert distance(groups, kept["reference"]) < TOLERANCE


def write() -> None:
    """Adds what the runs give here to the file."""
    content: dict[str, Any] = json.loads(CHECKSUMS.read_text()) if CHECKSUMS.exists() else {"runs": {}}
    here, runs = machine(), {}
    for name, run in RUNS.items():
        if run.needs:
            importlib.import_module(run.needs)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            groups = groups_of(run, Path(folder))
        new = checksums(groups)
        kept = content["runs"].get(name)
        if kept is None or kept["checksums"].get(here, new) != new or distance(groups, kept["reference"]) >= TOLERANCE:
            kept = {"checksums": {}, "reference": reference(groups)}
        kept["checksums"][here] = new
        runs[name] = kept
    text = json.dumps({"runs": runs}, indent=1)
    CHECKSUMS.write_text(re.sub(r"\[[^][]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    print(f"{here}: {CHECKSUMS}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checksums of what short runs give.")
    parser.add_argument("--write", action="store_true", required=True, help="write those of this machine")
    parser.parse_args()
    write()
