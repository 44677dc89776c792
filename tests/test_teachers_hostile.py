"""Damaged and hostile files of every kind, tried as a user would, and programs that are tried before they run here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hostile import good_files, measured, try_to_load
from hostile_files import CANARY, hostile_files
from hostile_programs import SCRIPTS, _compiled, onnx_models
from rldistill.formats.programs import batch_sizes, in_batches

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")


@pytest.mark.slow
def test_fifty_hostile_files_of_all_kinds_end_in_one_line_or_load(tmp_path: Path) -> None:
    """A thousand: `python tests/hostile.py --number 1000`."""
    pytest.importorskip("onnxruntime")
    good = good_files(tmp_path / "good")
    for path in good:
        assert path.suffix == ".pkl" or try_to_load(path, tmp_path / "good") == "", path
    bad = tmp_path / "bad"
    outcomes = [measured(path, tmp_path / "good", bad / CANARY) for path in hostile_files([*good], bad, 50, seed=4)]
    assert [(outcome.name, outcome.fault) for outcome in outcomes if outcome.fault] == []
    assert sum(bool(outcome.refusal) for outcome in outcomes) > 25


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"one-hot"}))
@pytest.mark.slow
def test_every_torchscript_program_made_to_harm_is_refused(tmp_path: Path, name: str) -> None:
    canary = tmp_path / CANARY
    (tmp_path / "net.pt").write_bytes(_compiled(SCRIPTS[name].replace("{canary!r}", repr(str(canary)))))
    refusal = try_to_load(tmp_path / "net.pt", tmp_path)
    assert "net.pt" in refusal
    assert len(refusal.splitlines()) == 1
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["loop", "scan", "if", "nest", "fills", "gigabytes", "fills-by-contents", "tiles-by-contents", "huge-weight",
             "sparse-weight", "own-operator", "calls-itself", "cycle", "missing-input", "external-0", "external-1",
             "fills-by-non-zeros", "fills-by-compressed", "fills-by-distinct", "fills-by-sliced", "fills-by-function",
             "fills-by-chance", "outer-products", "hidden-input"]
)  # fmt: skip
def test_every_onnx_model_made_to_harm_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(onnx_models()[name])
    refusal = try_to_load(tmp_path / "net.onnx", tmp_path)
    assert "net.onnx" in refusal
    assert len(refusal.splitlines()) == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 255, 256, 257, 600])
def test_programs_run_in_few_sizes_of_batches_and_give_every_row_its_own(rows: int) -> None:
    sizes: list[int] = []

    def run(x: Any) -> Any:
        sizes.append(len(x))
        return x * 2

    observations = torch.arange(rows * 3.0).reshape(rows, 3)
    assert torch.equal(in_batches(run, observations), observations * 2)
    assert set(sizes) <= set(batch_sizes((3,))) == {2**n for n in range(9)}
    assert batch_sizes((4, 84, 84))[-1] == 32
