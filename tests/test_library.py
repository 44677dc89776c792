"""What a user's type checker and Python itself see of the library's public names."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import rldistill
from rldistill import datasets

SOURCE = Path(rldistill.__file__).parents[1]
README = Path(__file__).parents[1] / "README.md"
# Packages that the library itself needs are of no interest here, and take most of a minute to check.
SETTINGS = """[mypy]
strict = true
follow_imports = silent
[mypy-ale_py.*,gymnasium.*,matplotlib.*,numpy.*,PIL.*,pyarrow.*,rich.*,safetensors.*,torch.*,tyro.*]
follow_imports = skip
follow_imports_for_stubs = true
"""
MISTAKES = """import rldistill
rldistill.distil("policies/pong", "runs/pong")
rldistill.DistillConfig(studnet="net2")
rldistill.evaluate(["policies/pong"])[0].normalised
rldistill.datasets.info(3)
"""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy comes with the extra lint")
@pytest.mark.slow
def test_a_type_checker_knows_the_public_names_and_refuses_misspelt_ones(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "example.py").write_text(example[1])
    names = [f"from rldistill import {', '.join(rldistill.__all__)}"]
    names += [f"from rldistill.datasets import {', '.join(datasets.__all__)}"]
    (tmp_path / "names.py").write_text("\n".join(names))
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    files = ["example.py", "names.py", "mistakes.py"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--cache-dir=cache", *files],
        cwd=tmp_path,
        env={"MYPYPATH": str(SOURCE), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = {line.rsplit(": error:")[0] for line in checked.stdout.splitlines() if ": error:" in line}
    assert refused == {f"mistakes.py:{line}" for line in range(2, 6)}, checked.stdout + checked.stderr


@pytest.mark.parametrize("module", [rldistill, datasets])
def test_public_names_are_there_and_others_are_not(module: object) -> None:
    assert all(hasattr(module, name) for name in module.__all__)  # type: ignore[attr-defined]
    assert not hasattr(module, "distil")


def test_importing_the_library_does_not_import_torch() -> None:
    code = "import sys, rldistill, rldistill.datasets; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
