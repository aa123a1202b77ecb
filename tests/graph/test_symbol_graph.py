"""Graphs of symbols: what is replaced is read by nothing any more."""

from graph.symbol_graph import VARIABLE, Edge, Graph, Node


def test_values_read_the_values_of_other_keys_and_their_own_key():
    data = Node(VARIABLE, "data")
    first = Node("relu", "first", inputs=[Edge(data)])
    second = Node("relu", "second", inputs=[Edge(first)])
    inner = Node("exp", "inner", inputs=[Edge(first)])
    changes = {
        Edge(first): Edge(Node("floor", "around", inputs=[Edge(first)])),
        Edge(second): Edge(Node("exp", "outer", inputs=[Edge(inner)])),
    }
    graph = Graph([Edge(second)])
    graph.replace(changes)
    assert [node.name for node in graph.nodes()] == ["data", "first", "around", "inner", "outer"]
