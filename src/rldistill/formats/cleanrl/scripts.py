"""The activation of a network, read off the Python script that trained it. The script is parsed, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rldistill.formats.archives import read_file
from rldistill.formats.chain import ACTIVATIONS, Activation

_MOST_BYTES = 256 * 1024
_BY_CLASS: dict[str, Activation] = {kind.__name__.lower(): name for name, kind in ACTIVATIONS.items()}
# `F.leaky_relu`, `torch.tanh`, `nn.functional.relu`: functions have the names of the house.
_MODULES = re.compile(r"(torch\.)?(nn\.)?(functional|F)|torch")


def activation_in(script: Path, layers: Sequence[str]) -> Activation | None:
    """What follows each of these layers in the script's text, None where that is not plain to see.

    A layer is an attribute of a class of the script. `self.actor = nn.Sequential(...)` says its activations in the expression,
    `F.relu(self.fc1(x))` where the layer is called.

    Args:
        script: Python's source text.
        layers: attributes that hold the hidden layers of the network, such as `actor`, or `fc1` and `fc2`.

    Raises:
        UserError: the script cannot be read.
    """
    text = read_file(script, _MOST_BYTES, what="script").decode(errors="replace")
    try:
        tree = ast.parse(text)
        owners = [
            node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and set(layers) <= {*_assigned(node)}
        ]
        activations = {_of_class(owner, layer) for owner in owners for layer in layers}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return activations.pop() if len(activations) == 1 else None


def _of_class(owner: ast.ClassDef, layer: str) -> Activation | None:
    """The one activation of a layer; None where it has none, several, or one that is not known."""
    names: set[Activation | None] = set()
    for node in ast.walk(owner):
        if isinstance(node, ast.Assign) and any(_is_self(target, layer) for target in node.targets):
            for call in ast.walk(node.value):
                if isinstance(call, ast.Call):
                    names |= _of_module(call)
        if isinstance(node, ast.Call) and node.args and _calls(node.args[0], layer):
            names |= set() if _dotted(node.func).startswith("self.") else {_of_function(node)}
    return names.pop() if len(names) == 1 else None


def _of_module(call: ast.Call) -> set[Activation | None]:
    """Of `nn.Tanh()`; nothing of layers, None in it of what is not known."""
    name = _dotted(call.func).rpartition(".")[2]
    if name in ("Sequential", "Linear", "Conv2d", "Flatten", "LayerNorm", "layer_init", "prod", "array", "shape"):
        return set()
    plain = not call.args and all(keyword.arg == "inplace" for keyword in call.keywords)
    return {_BY_CLASS.get(name.lower()) if plain else None} if name[:1].isupper() else set()


def _of_function(call: ast.Call) -> Activation | None:
    module, _, name = _dotted(call.func).rpartition(".")
    activation: Activation | None = next((kind for kind in ACTIVATIONS if kind == name), None)
    return activation if _MODULES.fullmatch(module) and len(call.args) == 1 and not call.keywords else None


def _calls(node: ast.expr, layer: str) -> bool:
    return isinstance(node, ast.Call) and _is_self(node.func, layer)


def _is_self(node: ast.expr, layer: str) -> bool:
    return _dotted(node) == f"self.{layer}"


def _assigned(owner: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(owner):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if _dotted(target).startswith("self."):
                    yield _dotted(target).removeprefix("self.")


def _dotted(node: ast.expr) -> str:
    """`torch.nn.functional` of the expression that says so, empty of any other."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""
