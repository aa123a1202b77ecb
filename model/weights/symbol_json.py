"""Symbol JSON of any MXNet since 0.8, read as plain data: MXNet itself never sees it.

Where an operator's parameters stand: `param` in 0.8, `attr` in 0.9 to 0.11, `attrs` since 0.12. MultiBoxPrior and its
sisters got their prefix `_contrib_` in 0.9.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import CheckpointError

MAX_BYTES = 16 << 20
ATTRIBUTE_KEYS = ("attr", "param", "attrs")
CONTRIB = "_contrib_"


class Node(NamedTuple):
    """An operator of a graph: its name without `_contrib_`, its own name and its parameters as texts."""

    operator: str
    name: str
    attributes: dict[str, str]

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A tuple such as '(0.1,0.141)', '[0.1, 0.141]' or '0.5'; ValueError for anything else."""
        if key not in self.attributes:
            return default
        text = self.attributes[key].strip("()[] ")
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
        if not numbers or not all(math.isfinite(x) for x in numbers):
            raise ValueError(f"{self.name} has {key} {text!r:.50}")
        return numbers

    def number(self, key: str, default: float) -> float:
        """A single number."""
        return self.numbers(key, (default,))[0]

    def flag(self, key: str, default: bool) -> bool:
        """True, true or 1."""
        return self.attributes.get(key, str(default)).lower() in ("true", "1")


def read_nodes(path: Path) -> list[Node]:
    """All nodes of a symbol JSON in its order; CheckpointError names a file that is damaged or larger than 16 MB."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        graph = json.loads(path.read_bytes().decode("utf-8"))
        nodes = graph.get("nodes") if isinstance(graph, dict) else None
        if not isinstance(nodes, list):
            raise ValueError("it has no list of nodes")
        return [_node(node) for node in nodes]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a sound symbol JSON ({error})") from error


def _node(node: Any) -> Node:
    if not isinstance(node, dict) or not isinstance(node.get("op"), str) or not isinstance(node.get("name"), str):
        raise ValueError("a node has no op or no name")
    attributes: dict[str, str] = {}
    for key in ATTRIBUTE_KEYS:
        part = node.get(key) or {}
        if not isinstance(part, dict) or not all(isinstance(value, str) for value in part.values()):
            raise ValueError(f"node {node['name']!r:.80} has attributes that are not texts")
        attributes |= part
    return Node(node["op"].removeprefix(CONTRIB), node["name"], attributes)
