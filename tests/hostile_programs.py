"""Hostile ONNX and TorchScript files: programs that would run for ever, take terabytes, or touch files, and damage to good ones."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

SCRIPTS: dict[str, str] = {
    "while": "while True:\n        x = x + 1\n    return x",
    "for": "for i in range(1000000000000):\n        x = x + 1\n    return x",
    "huge": "return x[:, :2] + torch.zeros(1000000000000).sum()",
    "gigabytes": "return x[:, :2] + torch.zeros(1000000000, 3).sum()",
    "huge-rows": "return x[:, :2] + torch.zeros(int(x.size(0) ** 12)).sum()",
    "sized-by-contents": "return x[:, :2] + torch.zeros(int(x.sum()) * 1000000000000).sum()",
    "branch-by-contents": "if bool(x.sum() > 0):\n        x = x + torch.zeros(1000000000000).sum()\n    return x[:, :2]",
    "by-chance": "return x[:, :2] + torch.zeros(int(torch.rand(1) * 1000000000000)).sum()",
    "repeated": "return x[:, :2] + torch.repeat_interleave((x[0] * 1e12).long()).sum()",
    "counted": "return x[:, :2] + torch.bincount((x[0].abs() * 1e10).long()).sum()",
    "one-hot": "return torch.one_hot((x[:, 0].abs() * 1e12).long())[:, :2].float()",
    "masked": "y = x[x > 0]\n    return x[:, :2] + torch.zeros([int(y.size(0) ** 12)]).sum()",
    "byte-mask": "y = x[(x > 0).to(torch.uint8)]\n    return x[:, :2] + torch.outer(y, y).sum()",
    "non-zero": "n = torch.nonzero(x).size(0)\n    return x[:, :2] + torch.zeros([int(n ** 12)]).sum()",
    "where": "n = torch.where(x > 0)[0].size(0)\n    return x[:, :2] + torch.zeros([int(n ** 12)]).sum()",
    "selected": "y = torch.masked_select(x, x > 0)\n    return x[:, :2] + torch.outer(y, y).sum()",
    "distinct": "y = torch.unique_consecutive(x)[0]\n    return x[:, :2] + torch.outer(y, y).sum()",
    "split-by-contents": "y = torch.tensor_split(x[0], x[0].long())[0]\n    return x[:, :2] + torch.outer(y, y).sum()",
    "writes": "torch.save(x, {canary!r})\n    return x[:, :2]",
    "maps": "return x[:, :2] + torch.from_file({canary!r}, True, 4).sum()",
    "prints": "print(x)\n    return x[:, :2]",
    "raises": "raise ValueError('no')\n    return x[:, :2]",
    "doubles": "\n    ".join(["x = torch.cat([x, x], 1)"] * 40 + ["return x[:, :2]"]),
    "products": "\n    ".join(["y = torch.ones(3000, 3000)", *["y = y @ y / 3000"] * 300, "return x[:, :2] + y[0, 0]"]),
    "deep": "return x[:, :2] + " + "(" * 100 + "1.0" + " + 1.0)" * 100 + " * float('nan')",
    "nothing": "return x[:, :0]",
    "not-a-number": "return x[:, :2] * float('nan')",
    "dictionary": "return {'a': x}",
}


def _compiled(body: str) -> bytes:
    # A class of its own each time: PyTorch keeps one program a class.
    module: Any = torch.jit.script(type("Program", (torch.nn.Module,), {})())
    module.define(f"def forward(self, x):\n    {body}\n")
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return buffer.getvalue()


def hostile_script(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """A program made to harm."""
    body = SCRIPTS[rng.choice(sorted(SCRIPTS))]
    try:
        return _compiled(body.replace("{canary!r}", repr(str(canary))))
    except RuntimeError:  # an operator that this version of PyTorch does not know
        return _compiled(SCRIPTS["huge"])


def changed_source(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """The good archive with other text in its program."""
    packed = io.BytesIO()
    deep = rng.choice(("(" * 10**5, "[" * 10**4, "-" * 10**5, "not " * 10**4))
    change: Callable[[bytes], bytes] = rng.choice(
        [
            lambda code: code.replace(b"return", f"return {deep}1 #".encode()),
            lambda code: code.replace(b"return", b"x = torch.zeros([1000000000000])\n  return"),
            lambda code: code.replace(b"torch.linear", b"torch.bilinear"),
            lambda code: code[: rng.randrange(len(code) or 1)],
            lambda code: code + b"\nclass Other(Module):\n" * 10**4,
            lambda code: rng.randbytes(len(code)),
        ]
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(packed, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            out.writestr(name, change(content) if "/code/" in name and name.endswith(".py") else content)
    return packed.getvalue()


@cache
def onnx_models() -> dict[str, bytes]:
    """Models made to harm, by what they do."""
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto

    def value(name: str, *shape: Any, kind: int = kinds.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, list(shape))

    def whole(name: str, *numbers: int) -> Any:
        return helper.make_tensor(name, kinds.INT64, [len(numbers)], list(numbers))

    def model(nodes: list[Any], weights: list[Any] | None = None, **options: Any) -> bytes:
        graph = helper.make_graph(nodes, "graph", [value("x", "n", 4)], [value("q_values", "n", 2)], weights or [])
        for key, given in options.pop("graph", {}).items():
            getattr(graph, key).extend(given)
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
            ir_version=8,
            **options,
        )
        return bytes(made.SerializeToString())

    def ending(name: str) -> list[Any]:
        """Adds the sum of what is made to the first two features."""
        return [
            helper.make_node("ReduceSum", [name], ["sum"], keepdims=0),
            helper.make_node("Slice", ["x", "zero", "two", "one"], ["head"]),
            helper.make_node("Add", ["head", "sum"], ["q_values"]),
        ]

    cut = [whole("zero", 0), whole("two", 2), whole("one", 1)]
    node = helper.make_node
    branch = helper.make_graph([node("Identity", ["x"], ["y"])], "branch", [], [value("y", "n", 4)])
    scan = helper.make_graph(
        [node("Identity", ["a"], ["b"]), node("Identity", ["a"], ["c"])],
        "scan",
        [value("a", 4)],
        [value("b", 4), value("c", 4)],
    )
    own = helper.make_function("mine", "Own", ["a"], ["b"], [node("Own", ["a"], ["b"], domain="mine")], [
        helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)])  # fmt: skip
    nest = helper.make_graph([node("Identity", ["x"], ["y0"])], "nest", [], [value("y0", "n", 4)])
    for depth in range(1, 25):
        inside = node("If", ["yes"], [f"y{depth}"], then_branch=nest, else_branch=nest if depth < 9 else branch)
        nest = helper.make_graph([inside], f"nest{depth}", [], [value(f"y{depth}", "n", 4)])
    external = []
    for location in ("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "a/../../b", "missing.bin", "\0", "C:\\w"):
        weight = helper.make_tensor("w", kinds.FLOAT, [4, 2], [0.0] * 8)
        weight.ClearField("float_data")
        weight.data_location = kinds.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", location
        external.append(weight)
    huge = helper.make_tensor("w", kinds.FLOAT, [4, 2], [0.0] * 8)
    huge.dims[:] = [2**31, 2**31]
    negative = helper.make_tensor("w", kinds.FLOAT, [4, 2], [0.0] * 8)
    negative.dims[:] = [-4, -2]
    sparse = helper.make_sparse_tensor(helper.make_tensor("w", kinds.FLOAT, [1], [1.0]), whole("i", 0), [10**9, 4])
    dot = [node("MatMul", ["x", "w"], ["q_values"])]
    as_number = [node("ReduceSum", ["x"], ["total"], keepdims=0), node("Cast", ["total"], ["count"], to=kinds.INT64),
                 node("Unsqueeze", ["count", "zero"], ["size"])]  # fmt: skip
    twice = [node("Concat", [f"d{n}" if n else "x"] * 2, [f"d{n + 1}"], axis=1) for n in range(40)]
    products = [
        node("ConstantOfShape", ["side"], ["p0"]),
        *(node("MatMul", [f"p{n}"] * 2, [f"p{n + 1}"]) for n in range(300)),
    ]
    power = [node("Mul", [f"n{n}" if n else "length"] * 2, [f"n{n + 1}"]) for n in range(4)]  # length to the sixteenth
    filled = [*power, node("ConstantOfShape", ["n4"], ["z"])]
    positive = [
        node("Relu", ["x"], ["r"]),
        node("Reshape", ["r", "flat"], ["f"]),
        node("Cast", ["f"], ["yes"], to=kinds.BOOL),
    ]
    cut += [whole("flat", -1)]
    counts = helper.make_function(
        "mine", "Counts", ["a"], ["b"], [node("NonZero", ["a"], ["i"]), node("Size", ["i"], ["b"])], [
            helper.make_opsetid("", 17)])  # fmt: skip
    outer = [
        node("NonZero", ["x"], ["i"]),
        node("Cast", ["i"], ["i0"], to=kinds.FLOAT),
        node("Reshape", ["i0", "flat"], ["v0"]),
    ]
    for n in range(5):
        outer += [node("Unsqueeze", [f"v{n}", "one"], [f"c{n}"]), node("Mul", [f"v{n}", f"c{n}"], [f"p{n}"]),
                  node("Reshape", [f"p{n}", "flat"], [f"v{n + 1}"])]  # fmt: skip
    return {
        "fills-by-non-zeros": model(
            [
                node("NonZero", ["x"], ["i"]),
                node("Shape", ["i"], ["s"]),
                node("Gather", ["s", "one"], ["length"]),
                *filled,
                *ending("z"),
            ],
            cut,
        ),
        "fills-by-compressed": model(
            [*positive, node("Compress", ["f", "yes"], ["y"]), node("Shape", ["y"], ["length"]), *filled, *ending("z")],
            cut,
        ),
        "fills-by-distinct": model(
            [node("Unique", ["x"], ["u"]), node("Shape", ["u"], ["length"]), *filled, *ending("z")], cut
        ),
        "fills-by-sliced": model(
            [
                *as_number,
                node("Reshape", ["x", "flat"], ["f"]),
                node("Slice", ["f", "zero", "size"], ["y"]),
                node("Shape", ["y"], ["length"]),
                *filled,
                *ending("z"),
            ],
            cut,
        ),
        "fills-by-function": model(
            [
                node("Counts", ["x"], ["n"], domain="mine"),
                node("Unsqueeze", ["n", "zero"], ["length"]),
                *filled,
                *ending("z"),
            ],
            cut,
            functions=[counts],
        ),
        "fills-by-chance": model(
            [
                node("RandomUniform", [], ["u"], shape=[1], high=1e6),
                node("Cast", ["u"], ["length"], to=kinds.INT64),
                *filled,
                *ending("z"),
            ],
            cut,
        ),
        "outer-products": model([*outer, *ending("v5")], cut),
        "hidden-input": model(
            [
                node("Constant", [], ["k"], value=helper.make_tensor("x", kinds.FLOAT, [1], [0.0])),
                *as_number,
                node("ConstantOfShape", ["size"], ["z"]),
                *ending("z"),
            ],
            cut,
        ),
        "loop": model([node("Loop", ["", ""], [], body=branch), *ending("x")], cut),
        "scan": model([node("Scan", ["x"], ["s", "t"], body=scan, num_scan_inputs=1), *ending("x")], cut),
        "if": model([node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch), *ending("y")], cut),
        "nest": model([node("If", ["yes"], ["y"], then_branch=nest, else_branch=branch), *ending("y")], cut),
        "fills": model([node("ConstantOfShape", ["many"], ["z"]), *ending("z")], [*cut, whole("many", 10**12)]),
        "gigabytes": model([node("ConstantOfShape", ["many"], ["z"]), *ending("z")], [*cut, whole("many", 10**9)]),
        "expands": model(
            [node("Expand", ["x", "many"], ["z"]), *ending("z")], [*cut, whole("many", 10**6, 10**6, 1, 4)]
        ),
        "tiles": model([node("Tile", ["x", "many"], ["z"]), *ending("z")], [*cut, whole("many", 10**6, 10**6)]),
        "fills-by-contents": model([*as_number, node("ConstantOfShape", ["size"], ["z"]), *ending("z")], cut),
        "tiles-by-contents": model(
            [
                *as_number,
                node("Concat", ["size", "size"], ["many"], axis=0),
                node("Tile", ["x", "many"], ["z"]),
                *ending("z"),
            ],
            cut,
        ),
        "draws": model([node("RandomNormal", [], ["z"], shape=[10**6, 10**6]), *ending("z")], cut),
        "doubles": model([*twice, *ending("d40")], cut),
        "products": model([*products, *ending("p300")], [*cut, whole("side", 4000, 4000)]),
        "huge-weight": model(dot, [huge]),
        "negative-weight": model(dot, [negative]),
        "sparse-weight": model(dot, graph={"sparse_initializer": [sparse]}),
        "own-operator": model([node("System", ["x"], ["q_values"], domain="evil.corp")]),
        "calls-itself": model([node("Own", ["x"], ["q_values"], domain="mine")], functions=[own]),
        "cycle": model([node("Add", ["x", "b"], ["a"]), node("Identity", ["a"], ["b"]), *ending("a")], cut),
        "missing-input": model([node("Add", ["x", "nowhere"], ["q_values"])]),
        "same-name": model([node("Identity", ["x"], ["q_values"])] * 2),
        "nothing": model([]),
        "many-nodes": model([node("Identity", ["x"], [f"n{n}"]) for n in range(60_000)] + ending("x"), cut),
        "fixed-batch": model(dot, [helper.make_tensor("w", kinds.FLOAT, [4, 2], [0.0] * 8)]).replace(
            b"\x12\x01n", b"\x08\xff\x7f", 1
        ),
        **{f"external-{n}": model(dot, [weight]) for n, weight in enumerate(external)},
    }


def hostile_onnx(data: bytes, rng: random.Random, canary: Path) -> bytes:
    """A model made to harm."""
    models = onnx_models()
    return models[rng.choice(sorted(models))]
