"""Whether a TorchScript program takes the same course for all observations of one shape.

Then one run on anything of that shape says how long every other takes and how much memory (see `teachers.trial`). It holds where
the program has no loops, never makes a number out of a tensor's contents (numbers decide branches and sizes; a tensor's own shape
is no secret of its contents), uses no operator whose result is as long as its input's contents say, and changes nothing about
itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rldistill.types import UserError

_MAX_NODES = 200_000
_MAX_STEPS = 50
_LOOKS_AT_CONTENTS = re.compile(
    r"aten::\w*(sparse|coo|csr|csc|bsr|bsc|nested|jagged|repeat_interleave|bincount|one_hot|histogram|resize|as_strided|seed"
    r"|unique|nonzero_numpy|argwhere|masked_select|masked_index|pack_padded|pad_packed|ctc_loss|reshape_from_tensor|lstsq)\w*"
    r"|aten::(to_dense|set_|set_data|nonzero|segment_reduce)"
)
_INDEXING = re.compile(r"aten::_?(unsafe_)?index")
# A tensor that another is indexed by is a mask, or the numbers of rows. These give numbers, whatever goes in,
_GIVES_NUMBERS = re.compile(r"aten::(arange|argmax|argmin|argsort|searchsorted|bucketize)")
_GIVES_NUMBERS_SECOND = re.compile(r"aten::(topk|sort|max|min)")
# and these give numbers where numbers go in.
_KEEPS_TYPE = re.compile(
    r"aten::(view|reshape|flatten|unsqueeze|squeeze|expand|expand_as|select|slice|clamp|contiguous|detach|t|transpose|permute|clone"
    r"|add|sub|mul)"
)
_WHOLE = {torch.int64, torch.int32}
_WHOLE_CODES = {3, 4}  # of `aten::to`
_SEES_ONLY_SHAPES = re.compile(
    r"aten::(size|sym_size|dim|ndimension|len|numel|stride|storage_offset|is_floating_point|is_complex|is_signed|is_contiguous"
    r"|is_conj|is_neg|is_inference|__is__|__isnot__|__contains__|element_size|get_device|result_type|can_cast|is_same_size)"
    r"|prim::(dtype|device|shape|layout|is_cuda|is_cpu|is_mps|is_quantized|is_sparse|is_nested|requires_grad|isinstance|type"
    r"|unchecked_cast|Uninitialized|TupleConstruct|ListConstruct|DictConstruct|data)"
)
# What tracing leaves of arithmetic with sizes: a number becomes a tensor, is calculated with, and becomes a number again.
_ARITHMETIC = re.compile(
    r"prim::NumToTensor|prim::Constant|aten::(add|sub|rsub|mul|div|floor_divide|floor|ceil|neg|remainder|to|detach)"
)
_CONVERSION = re.compile(r"aten::(Int|Float|Bool|ScalarImplicit|IntImplicit|FloatImplicit|item)")
_NUMBERS = {"IntType", "FloatType", "BoolType", "NumberType", "ComplexType", "StringType", "AnyType", "SymIntType"}


def check_graph(script: Any, path: Path) -> None:
    """Raises UserError where the program's course depends on more than the shape of its input.

    Args:
        script: what `torch.jit.load` gave.
        path: the file, for messages.
    """
    if script._forward_hooks or script._forward_pre_hooks:
        raise _refusal(path, "has hooks around it")
    try:
        graph = script.inlined_graph
    except Exception:  # it has no forward
        raise UserError(
            f"{path} has no program that maps observations to scores; save the policy's own module"
        ) from None
    for count, node in enumerate(_nodes(graph)):
        kind = node.kind()
        if count > _MAX_NODES:
            raise _refusal(path, "has too many steps")
        if kind == "prim::Loop":
            raise _refusal(path, "has a loop")
        if kind == "prim::SetAttr":
            raise _refusal(path, "changes itself from call to call")
        if kind in ("prim::CallFunction", "prim::CallMethod", "prim::fork", "prim::PythonOp", "prim::Print"):
            raise _refusal(path, f"has a step {kind!r}")
        if _LOOKS_AT_CONTENTS.fullmatch(kind):
            raise _refusal(path, f"has a step {kind!r}, whose result may be of any length")
        if (kind == "aten::where" and len(list(node.inputs())) == 1) or (
            kind == "aten::tensor_split" and _splits_by_tensor(node)
        ):
            raise _refusal(path, f"has a step {kind!r}, whose result may be of any length")
        if _INDEXING.fullmatch(kind) and not _indexes_by_numbers(node, script):
            raise _refusal(
                path,
                "indexes by what may be a mask, whose result may be of any length (torch.where does the same without)",
            )
        if _makes_number(node) and not _SEES_ONLY_SHAPES.fullmatch(kind) and not _is_of_sizes(node):
            raise _refusal(path, f"decides by what is in its tensors ({kind!r})")


def _refusal(path: Path, what: str) -> UserError:
    return UserError(f"{path} is refused: its program {what}, which no network needs; trace it, or export it to ONNX")


def _nodes(block: Any) -> Iterator[Any]:
    blocks = [block]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            blocks += node.blocks()


def _makes_number(node: Any) -> bool:
    """Whether it has a tensor among its inputs and a plain value among its results."""
    if not any(_holds(value.type(), {"TensorType"}) for value in node.inputs()):
        return False
    return any(_holds(value.type(), _NUMBERS) for value in node.outputs())


def _holds(kind: Any, wanted: set[str]) -> bool:
    """Whether a type is one of these, or a container of them."""
    if kind.kind() in wanted:
        return True
    # A class, such as a module, is opened by `prim::GetAttr` alone.
    return kind.kind() != "ClassType" and any(_holds(inner, wanted) for inner in kind.containedTypes())


def _splits_by_tensor(node: Any) -> bool:
    return bool([*node.inputs()][1].type().kind() == "TensorType")


def _indexes_by_numbers(node: Any, script: Any) -> bool:
    """Whether each tensor that another is indexed by holds whole numbers for certain, and so is no mask."""
    indices = [*node.inputs()][1].node()
    return indices.kind() == "prim::ListConstruct" and all(_is_whole(value, script, 0) for value in indices.inputs())


def _is_whole(value: Any, script: Any, depth: int) -> bool:
    maker = value.node()
    kind = maker.kind()
    if depth > _MAX_STEPS:
        return False
    if kind == "prim::Constant":
        constant = value.toIValue()
        return constant is None or (isinstance(constant, torch.Tensor) and constant.dtype in _WHOLE)
    if kind == "prim::GetAttr":
        kept = _attribute(value, script)
        return isinstance(kept, torch.Tensor) and kept.dtype in _WHOLE
    inputs = [*maker.inputs()]
    if kind == "aten::to":
        return len(inputs) > 1 and inputs[1].node().kind() == "prim::Constant" and inputs[1].toIValue() in _WHOLE_CODES
    if _GIVES_NUMBERS_SECOND.fullmatch(kind):
        outputs = [output.debugName() for output in maker.outputs()]
        return len(outputs) == 2 and outputs[1] == value.debugName()
    if _KEEPS_TYPE.fullmatch(kind):
        return all(_is_whole(given, script, depth + 1) for given in inputs if _holds(given.type(), {"TensorType"}))
    return _GIVES_NUMBERS.fullmatch(kind) is not None


def _attribute(value: Any, script: Any) -> Any:
    """What the program keeps under a name, such as a buffer; None where that is not clear."""
    names = []
    while value.node().kind() == "prim::GetAttr":
        names.append(value.node().s("name"))
        (value,) = value.node().inputs()
    for name in reversed(names):
        script = getattr(script, name, None)
    return script


def _is_of_sizes(node: Any) -> bool:
    """Whether a tensor that becomes a number was made of numbers by nothing but arithmetic, and is used for nothing else."""
    if not _CONVERSION.fullmatch(node.kind()):
        return False
    left, visited = [value for value in node.inputs() if _holds(value.type(), {"TensorType"})], set()
    while left:
        value = left.pop()
        if value.debugName() in visited:
            continue
        visited.add(value.debugName())
        maker = value.node()
        users = (use.user.kind() for use in value.uses())
        if not _ARITHMETIC.fullmatch(maker.kind()) or not all(
            _ARITHMETIC.fullmatch(user) or _CONVERSION.fullmatch(user) for user in users
        ):
            return False
        left += [value for value in maker.inputs() if _holds(value.type(), {"TensorType"})]
    return True
