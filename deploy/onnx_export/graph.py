"""What the translations of operators read (Node) and write into (Graph)."""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np
import onnx
from onnx import helper, numpy_helper

PartialShape = tuple[int, ...]
VARIES = -1  # a side that grows with the batch
LAST = np.iinfo(np.int64).max  # Slice: to the end


class TranslationError(ValueError):
    """An operator, or one of its attributes, that has no translation; the text says which."""


class Tensor(NamedTuple):
    """An array of the symbol: its name in the ONNX graph, shape, numbers if they are constant, and the node it is of.

    The shape is the symbol's: sides that grow with the batch are VARIES.
    """

    name: str
    shape: PartialShape
    value: np.ndarray | None = None
    producer: Optional["OperatorNode"] = None


@dataclass(frozen=True, eq=False)
class OperatorNode:
    """An operator of the symbol: attributes as texts, inputs, the shapes of its outputs."""

    name: str
    op: str
    attrs: dict[str, str]
    inputs: tuple[Tensor, ...]
    shapes: tuple[PartialShape, ...]

    def get(self, key: str, default: Any) -> Any:
        """An attribute as number, tuple, boolean, None or word; `default` where it is missing or None."""
        value = parsed(self.attrs[key]) if key in self.attrs else None
        return default if value is None else value

    def require(self, key: str, *allowed: Any) -> None:
        """TranslationError unless the attribute is missing (the first of the allowed) or one of the allowed values."""
        if self.get(key, allowed[0]) not in allowed:
            raise TranslationError(f"{key} {self.attrs[key]}")


def parsed(text: str) -> Any:
    """The value of an attribute: MXNet writes numbers, tuples, lists, booleans and None as Python does."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


@dataclass
class OnnxGraph:
    """An ONNX graph being built.

    Attributes:
        num_classes: ids of detections are 0 ... num_classes - 1.
        scope: start of the names of what is added.
    """

    num_classes: int = 1
    scope: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _count: int = 0

    def add(self, op: str, *inputs: Tensor | str | np.ndarray, **attributes: Any) -> str:
        """Adds an operator with one output and returns the output's name; arrays become constants."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, count: int, *inputs: Tensor | str | np.ndarray, **attributes: Any) -> list[str]:
        """Adds an operator and returns the names of its outputs."""
        names = [self._new_name() for _ in range(count)]
        sources = [self._name(source) for source in inputs]
        self.nodes.append(helper.make_node(op, sources, names, name=names[0], **attributes))
        return names

    def reshape(self, data: Tensor | str, shape: Sequence[int]) -> str:
        """data in another shape; one side may be VARIES."""
        if list(shape).count(VARIES) > 1:
            raise TranslationError(f"shape {tuple(shape)}, of which several sides depend on the batch")
        return self.add("Reshape", data, np.array(shape, np.int64))

    def cast(self, data: Tensor | str, kind: int) -> str:
        """data as numbers of a kind of onnx.TensorProto."""
        return self.add("Cast", data, to=kind)

    def slice(self, data: Tensor | str, axis: int, begin: int, end: int = LAST) -> str:
        """Part of an axis."""
        return self.add("Slice", data, *(np.array([number], np.int64) for number in (begin, end, axis)))

    def rename(self, output: str, name: str) -> bool:
        """Gives the operator that was added last, and its output, another name, if this is its first output."""
        last = self.nodes[-1] if self.nodes else None
        if last is None or last.output[0] != output:
            return False
        last.output[0] = last.name = name
        return True

    def prune(self, outputs: Sequence[str]) -> None:
        """Drops what these outputs do not depend on."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {name: value for name, value in self.initializers.items() if name in wanted}

    def _name(self, source: Tensor | str | np.ndarray) -> str:
        """The name of an input; constants join the graph when they are first used."""
        if isinstance(source, str):
            return source
        if isinstance(source, Tensor):
            return source.name if source.value is None else self._constant(source.name, source.value)
        content = hashlib.sha256(source.tobytes()).hexdigest()[:16]
        shape = "x".join(map(str, source.shape))
        return self._constant(f"{source.dtype}_{shape}_{content}", source)

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _new_name(self) -> str:
        self._count += 1
        return f"{self.scope}/{self._count}"
