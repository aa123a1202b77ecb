"""Attributes that end MXNet 1.9.1's process or take all memory are refused, in a process of their own with limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import CheckpointError
from machine.runtime import mx
from model.symbol_check import check_shapes, checked_json, load_symbol
from symbol.symbol_factory import get_symbol
from tests.symbol.network_cases import ALL

INPUT = (1, 8, 16, 16)
HUGE = "2147483647"
# (operator, attributes): found by trying every attribute with some 85 values; most of them were fatal.
HOSTILE = [
    ("Reshape", {"shape": "(1, 1)"}),
    ("Reshape", {"shape": "0"}),
    ("Reshape", {"shape": "(65536, 65536, 65536, 65536, -1)"}),
    ("Reshape", {"shape": "None"}),
    ("Reshape", {"shape": f"({HUGE}, {HUGE})"}),
    ("Convolution", {"kernel": "(3, 3)", "num_filter": "4", "dilate": f"({HUGE}, {HUGE})"}),
    ("Convolution", {"kernel": "(3, 3)", "num_filter": "4", "pad": "(100000, 100000)"}),
    ("Convolution", {"kernel": "(3, 3)", "num_filter": "-1"}),
    ("Convolution", {"kernel": "(3, 3)", "num_filter": "4", "num_group": "0"}),
    ("Pad", {"mode": "constant", "pad_width": "(0, 0, 0, 0, -1, -1, -1, -1)"}),
    ("Pad", {"mode": "constant", "pad_width": "(0, 0, 0, 0, 100000, 100000, 100000, 100000)"}),
    ("UpSampling", {"scale": "100000", "sample_type": "nearest", "num_args": "1"}),
    ("_contrib_AdaptiveAvgPooling2D", {"output_size": "100000"}),
    ("_contrib_AdaptiveAvgPooling2D", {"output_size": "-1"}),
    ("_contrib_MultiBoxPrior", {"sizes": "None"}),
    ("_contrib_MultiBoxPrior", {"sizes": "(" + "0.1, " * 300 + "0.1)"}),
    ("_contrib_arange_like", {"axis": "1", "repeat": "0"}),
    ("_contrib_box_nms", {"coord_start": HUGE, "score_index": "1"}),
    ("slice", {"begin": "(0, 0)", "end": "(0, 0)"}),
    ("topk", {"axis": "1", "k": HUGE}),
    ("stack", {"num_args": HUGE}),
    ("clip", {"a_min": "nan", "a_max": "1"}),
    ("relu", {"__ctx_group__": "dev1"}),
]
RUN = """
import json, resource, sys
from tests.model.test_hostile_attributes import HOSTILE, outcome
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
print(json.dumps([outcome(*case) for case in HOSTILE]))
"""


def symbol_text(operator, attributes):
    data = {"op": "null", "name": "data", "inputs": []}
    node = {"op": operator, "name": "node", "attrs": attributes, "inputs": [[0, 0, 0]]}
    return json.dumps({"nodes": [data, node], "arg_nodes": [0], "heads": [[1, 0, 0]]}).encode()


def outcome(operator, attributes):
    """What becomes of a model with this node: the sentence of the refusal, or "ran"."""
    try:
        symbol = load_symbol(symbol_text(operator, attributes), "a-symbol.json")
        check_shapes(symbol, "a-symbol.json", data=INPUT)
        executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=INPUT)
        executor.forward()[0].asnumpy()
    except CheckpointError as error:
        return str(error)
    return "ran"


def test_hostile_attributes_are_refused():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=root, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == len(HOSTILE)
    for case, sentence in zip(HOSTILE, outcomes, strict=True):
        assert sentence.startswith("a-symbol.json: "), f"{case}: {sentence}"


@pytest.mark.parametrize("network", ALL)
def test_shapes_of_all_networks_are_plausible(network):
    symbol = load_symbol(get_symbol(network, 320, 3).tojson().encode(), "here")
    check_shapes(symbol, "here", data=(1, 3, 320, 320))


def test_two_nodes_of_one_name_are_refused():
    graph = json.loads(symbol_text("relu", {}))
    graph["nodes"][1]["name"] = "data"
    with pytest.raises(ValueError, match="same name"):
        checked_json(json.dumps(graph).encode())
