"""Find operators without an Ascend kernel, dynamic shapes, host reads and wide types in a compiled graph."""

import re
from collections.abc import Mapping

from mindspore import ops
from mindspore.ops import auto_generate, operations
from mindspore.ops.auto_generate import gen_ops_def
from mindspore.ops.operations import _grad_ops, _inner_ops

from src.readiness.compiled_graphs import Node

# These only order a graph and form tuples; they need no kernel.
STRUCTURE = {"Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}

# Undocumented operators, and the name that registers them for Ascend in MindSpore 2.9's libraries: aclnnX and XAscend
# are kernels in lib/plugin/libmindspore_ops_ascend.so, czX adapters to CANN's own operators in
# lib/plugin/ascend/libmindspore_ascend_res_manager.so.
_ACLNN = ("Divs", "EqScalar", "Muls", "RemainderTensorScalar", "SoftmaxBackward", "SplitWithSize")
_CZ = (
    "BiasAddGrad",
    "Conv2DBackpropFilter",
    "Conv2DBackpropInput",
    "MaxPoolGrad",
    "RsqrtGrad",
    "StridedSliceGrad",
    "TensorMove",
)
REGISTERED = {name: f"aclnn{name}" for name in _ACLNN} | {name: f"cz{name}" for name in _CZ}
REGISTERED |= {"LayerNormGradExt": "aclnnLayerNormBackward", "MatMulExt": "MatMulExtAscend"}
REGISTERED |= {name: f"{name}Ascend" for name in ("GeLUGrad", "ReluGrad", "SwigluGrad")}

# A condition on a tensor, Python called from the graph, printing: each waits for the device.
HOST = {"Switch", "SwitchLayer", "PyExecute", "PyInterpret", "Print", "TensorToScalar", "TensorToTuple", "TensorToList"}
WIDE = ("Float64", "Int64", "Complex64", "Complex128")


def violations(graph: Mapping[int, Node]) -> list[str]:
    """One line for each kind of problem: what an Ascend device cannot do, or does slowly."""
    found: dict[str, None] = {}
    for node in graph.values():
        name = node.operator
        if name in HOST:
            found[f"{name} waits for the device"] = None
        elif name not in STRUCTURE and name not in REGISTERED:
            platforms = documented_platforms(name)
            if platforms is None:
                found[f"{name} has no documented platforms"] = None
            elif "Ascend" not in platforms:
                found[f"{name} is documented only for {platforms}"] = None
        for kind, shape in node.outputs:
            if min(shape, default=0) < 0:
                found[f"{name} has an output of dynamic shape {shape}"] = None
            if kind in WIDE and name not in STRUCTURE:
                found[f"{name} has an output of type {kind}"] = None
    return list(found)


def documented_platforms(operator: str) -> str | None:
    """The line "Supported Platforms" in the documentation of an operator, or of the function it refers to."""
    function = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", operator).lower()
    classes = [getattr(module, operator, None) for module in (ops, operations, auto_generate, _grad_ops, _inner_ops)]
    functions = [getattr(module, function, None) for module in (ops, gen_ops_def, auto_generate)]
    return next(filter(None, map(_platforms, (*classes, *functions))), None)


def _platforms(documented: object) -> str | None:
    text = getattr(documented, "__doc__", None) or ""
    if match := re.search(r"Supported Platforms:\s*\n\s*(.*)", text):
        return match[1].replace("`", "").strip()
    match = re.search(r"[Rr]efer to :func:`mindspore\.(?:ops\.)?(\w+)`", text)
    return _platforms(getattr(ops, match[1], None)) if match else None
