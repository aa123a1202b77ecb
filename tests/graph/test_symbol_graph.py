"""Graphs of symbols: what is replaced is read by nothing any more."""

from graph.symbol_graph import VARIABLE, Edge, SymbolGraph, SymbolNode


def test_values_read_the_values_of_other_keys_and_their_own_key():
    data = SymbolNode(VARIABLE, "data")
    first = SymbolNode("relu", "first", inputs=[Edge(data)])
    second = SymbolNode("relu", "second", inputs=[Edge(first)])
    inner = SymbolNode("exp", "inner", inputs=[Edge(first)])
    changes = {
        Edge(first): Edge(SymbolNode("floor", "around", inputs=[Edge(first)])),
        Edge(second): Edge(SymbolNode("exp", "outer", inputs=[Edge(inner)])),
    }
    graph = SymbolGraph([Edge(second)])
    graph.replace(changes)
    assert [node.name for node in graph.nodes()] == ["data", "first", "around", "inner", "outer"]
