"""The plan of the house: who may import whom."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import rldistill

FLOORS = (
    "types arguments documents actions schedules stats files holding machine progress interrupts terminal",
    "losses targets augmentation exploration bandits networks centring radam lowering ccode envs rollout replay pictures",
    "policies teachers datasets dqn pqn runs plots spectator scores",
    "streams distillation evaluation reporting recording training inspection exporting watching pushing studies scale demo",
    "cli entry __main__ __init__",
)
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor.split()}
SOURCE = Path(rldistill.__file__).parent


def imports_of(path: Path) -> set[str]:
    """Modules of the house that a file names in imports, those inside functions among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            module = node.module or ""
            found |= {f"rldistill.{alias.name}" for alias in node.names} if module == "rldistill" else {module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if "." in alias.name}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rldistill":
            found.add(f"rldistill.{node.attr}")
    names = {name.split(".")[1] for name in found if name.startswith("rldistill.")} - {"__version__"}
    return {name if name in FLOOR_OF else "__init__" for name in names}


def module_of(path: Path) -> str:
    """A module, or the folder that one has become."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


IMPORTS: dict[str, set[str]] = {}
for file in SOURCE.rglob("*.py"):
    IMPORTS.setdefault(module_of(file), set()).update(imports_of(file) - {module_of(file)})


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_stands_on_a_floor_and_imports_from_no_higher_one(module: str) -> None:
    assert module in FLOOR_OF, f"{module} is on no floor: put it on one here and in the documentation"
    above = {name for name in IMPORTS[module] if FLOOR_OF[name] > FLOOR_OF[module]}
    assert not above, f"{module} ({FLOORS[FLOOR_OF[module]]}) imports from above: {sorted(above)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & set(IMPORTS)


@pytest.mark.parametrize("name", sorted(rldistill.__all__))
def test_a_public_name_is_no_module_however_often_it_is_asked_for(name: str) -> None:
    """A module of the name of its function hides it from the second use on."""
    first, again = getattr(rldistill, name), getattr(rldistill, name)
    assert first is again
    assert not isinstance(again, ModuleType)
