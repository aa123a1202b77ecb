"""Symbols of models are checked before MXNet sees them: a hostile one would end the process."""

import copy
import itertools
import json
import re

import pytest

from common.errors import CheckpointError
from machine.runtime import mx
from model.manifest import MAX_SYMBOL_BYTES
from model.symbol_check import OPERATORS, VARIABLE, check_shapes, checked_json, load_symbol, num_outputs
from symbol.symbol_factory import get_symbol
from tests.model.tiny import tiny_symbol
from tests.symbol.network_cases import ALL

GRAPH = json.loads(tiny_symbol().tojson())
FIRST_CONV = next(k for k, node in enumerate(GRAPH["nodes"]) if node["op"] == "Convolution")


@pytest.mark.parametrize("network", [*ALL, "gluoncv:se_resnext50_32x4d", "gluoncv:mobilenetv3_small"])
def test_symbols_of_all_networks_pass_and_stay_as_they_are(network):
    symbol = get_symbol(network, 320, 3)
    assert load_symbol(symbol.tojson().encode(), "here").tojson() == symbol.tojson()


@pytest.mark.parametrize("force", [False, True])
def test_symbols_with_nms_per_class_pass(force):
    symbol = get_symbol("vgg16_ssd_voc", 300, 3, post_process="per_class", force=force)
    assert load_symbol(symbol.tojson().encode(), "here").tojson() == symbol.tojson()


def test_only_topk_has_a_second_output_and_only_if_it_gives_both():
    graph = json.loads(get_symbol("mobilenet", 64, 3, post_process="per_class").tojson())
    topk = next(node for node in graph["nodes"] if node["name"] == "detection_topk")
    topk["attrs"]["ret_typ"] = "indices"
    _refused(graph, "earlier node")


VALUES = {"int": "1", "Shape": "(1, 1)", "float": "1", "double": "1"}


def _settings(operator):
    """Attributes that the operator cannot do without, then those and one value of each truth value or word."""
    arguments = mx.operator.get_operator_arguments(operator)
    typed = dict(zip(arguments.names, arguments.types, strict=True))
    words = {name: re.findall(r"'(\w+)'", kind) for name, kind in typed.items() if kind.startswith("{")}
    flags = {name: ["True"] for name, kind in typed.items() if kind.startswith("boolean")}
    required = {name: kind for name, kind in typed.items() if kind.endswith("required")}
    needed = {
        name: words[name][0] if name in words else VALUES[re.split(r"\W", kind)[0]] for name, kind in required.items()
    }
    needed |= {"num_args": "1"} if arguments.types[0].endswith("[]") else {}
    if operator == "Cast":
        return [{"dtype": "float32"}]
    return [needed, *({**needed, name: value} for name, values in (words | flags).items() for value in values)]


def _inputs(operator):
    types = mx.operator.get_operator_arguments(operator).types
    return max(1, sum(kind.startswith(("NDArray", "Symbol")) for kind in types))


@pytest.mark.parametrize("operator", sorted(OPERATORS - {VARIABLE}))
def test_outputs_of_permitted_nodes_are_those_that_mxnet_gives(operator):
    compared = 0
    for attrs, count in itertools.product(_settings(operator), {1, _inputs(operator)}):
        inputs = [{"op": VARIABLE, "name": f"in{k}", "inputs": []} for k in range(count)]
        node = {"op": operator, "name": "node", "attrs": attrs, "inputs": [[k, 0, 0] for k in range(len(inputs))]}
        graph = {"nodes": [*inputs, node], "arg_nodes": list(range(len(inputs))), "heads": [[len(inputs), 0, 0]]}
        try:
            symbol = load_symbol(json.dumps(graph).encode(), "a-symbol.json")
        except CheckpointError:
            continue
        outputs = symbol.get_internals().list_outputs()
        assert len(outputs) - len(inputs) == num_outputs(node), attrs
        compared += 1
    assert compared


def test_outputs_that_are_not_counted_are_refused():
    names = ("data", "gamma", "beta", "mean", "var")
    nodes = [{"op": VARIABLE, "name": name, "inputs": []} for name in names]
    norm = {"op": "BatchNorm", "name": "norm", "attrs": {"output_mean_var": "True"}}
    nodes.append({**norm, "inputs": [[k, 0, 0] for k in range(5)]})
    for k in range(2):
        scale = {"scale": "1000", "sample_type": "nearest", "num_args": "1"}
        nodes.append({"op": "UpSampling", "name": f"up{k}", "attrs": scale, "inputs": [[5 + k, 0, 0]]})
    _refused({"nodes": nodes, "arg_nodes": list(range(5)), "heads": [[7, 0, 0]]}, "output_mean_var")


def test_shapes_that_belong_to_no_counted_output_are_refused():
    variables = [mx.sym.var(name) for name in ("data", "gamma", "beta", "mean", "var")]
    symbol = mx.sym.BatchNorm(*variables, output_mean_var=True)[0]
    with pytest.raises(CheckpointError, match="other outputs"):
        check_shapes(symbol, "a-symbol.json", data=(1, 3, 8, 8))


def _refused(graph, reason):
    text = graph if isinstance(graph, bytes) else json.dumps(graph).encode()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_symbol(text, "a-symbol.json")
    assert str(caught.value).startswith("a-symbol.json: ")


@pytest.mark.parametrize(
    "operator", ["_Native", "Custom", "_NDArray", "_foreach", "_CrossDeviceCopy", None, 3, "", {}, []]
)
def test_foreign_operators_never_reach_mxnet(operator, monkeypatch):
    monkeypatch.setattr(mx.sym, "load_json", lambda text: pytest.fail("loaded"))
    graph = copy.deepcopy(GRAPH)
    graph["nodes"][FIRST_CONV]["op"] = operator
    graph["nodes"][FIRST_CONV]["attrs"] = {"info": "0x4141414141", "need_top_grad": "True"}
    _refused(graph, "operator")


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("subgraphs", [GRAPH], "unknown parts"),
        ("attrs", {"num_filter": 8}, "not a text"),
        ("attrs", {"num_group": "0"}, "num_group"),  # MXNet divides by it: the process would end with SIGFPE
        ("attrs", {"num_group": "-1"}, "num_group"),
        ("inputs", [[FIRST_CONV, 0, 0]], "earlier node"),
        ("inputs", [[10**9, 0, 0]], "earlier node"),
        ("inputs", [[0, 7, 0]], "earlier node"),
        ("inputs", [0], "earlier node"),
        ("inputs", {}, "inputs"),
        ("name", 3, "name"),
        ("attrs", {"kernel": "(3, 3)"}, "num_filter|refuses|inputs"),
    ],
)
def test_damaged_nodes_are_refused(part, value, reason):
    graph = copy.deepcopy(GRAPH)
    graph["nodes"][FIRST_CONV][part] = value
    _refused(graph, reason)


@pytest.mark.parametrize("heads", [[], [[99999, 0, 0]], [[-1, 0, 0]], [[1, 0, 0], [2, 0, 0]], None])
def test_damaged_outputs_are_refused(heads):
    _refused({**GRAPH, "heads": heads}, "output")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_SYMBOL_BYTES + 1)])
def test_other_files_are_refused(text):
    _refused(text, "not a symbol")


def test_mxnet_sees_only_what_was_checked():
    text = json.dumps(GRAPH).replace('"nodes":', '"nodes": [{"op": "_Native"}], "nodes":', 1)
    assert "_Native" not in checked_json(text.encode())


BATCH_NORM = next(k for k, node in enumerate(GRAPH["nodes"]) if node["op"] == "BatchNorm")


def _without_inputs(graph):
    graph["nodes"].append({"op": "BatchNorm", "name": "x", "attrs": {}, "inputs": []})


def _gamma_of_an_operator(graph):
    graph["nodes"][BATCH_NORM]["inputs"][1] = graph["nodes"][BATCH_NORM]["inputs"][0]


def _one_parameter_twice(graph):
    graph["nodes"][BATCH_NORM]["inputs"][4] = graph["nodes"][BATCH_NORM]["inputs"][3]


def _a_missing_weight(graph):
    graph["nodes"][FIRST_CONV]["inputs"].pop()


def _wrong_num_args(graph):
    graph["nodes"].append({"op": "stack", "name": "x", "attrs": {"num_args": "5"}, "inputs": [[0, 0, 0]]})


@pytest.mark.parametrize(
    "change", [_without_inputs, _gamma_of_an_operator, _one_parameter_twice, _a_missing_weight, _wrong_num_args]
)
def test_nodes_with_other_inputs_than_they_read_are_refused(change):
    graph = copy.deepcopy(GRAPH)
    change(graph)
    _refused(graph, "inputs" if change not in (_gamma_of_an_operator, _one_parameter_twice) else "four parameters")


@pytest.mark.parametrize(
    "node",
    [
        {"op": "Pooling", "attrs": {"kernel": "(1000, 1000)", "pad": "(999, 999)", "pool_type": "max"}},
        {"op": "_contrib_box_nms", "attrs": {"coord_start": "2", "id_index": "0"}},
    ],
    ids=["pooling", "suppression"],
)
def test_symbols_that_never_end_are_refused(node):
    data = mx.sym.var("data")
    if node["op"] == "_contrib_box_nms":
        data = mx.sym.reshape(mx.sym.UpSampling(data, scale=20, sample_type="nearest", num_args=1), shape=(1, -1, 6))
    graph = json.loads((data + 0).tojson())
    graph["nodes"].append({**node, "name": "slow", "inputs": [[len(graph["nodes"]) - 1, 0, 0]]})
    graph["heads"] = [[len(graph["nodes"]) - 1, 0, 0]]
    symbol = load_symbol(json.dumps(graph).encode(), "here")
    with pytest.raises(CheckpointError, match="compute for too long"):
        check_shapes(symbol, "here", data=(1, 3, 120, 120))


def test_nodes_without_attributes_are_checked():
    symbol = mx.sym.topk(mx.sym.var("data"))
    check_shapes(load_symbol(symbol.tojson().encode(), "here"), "here", data=(1, 3, 8, 8))
