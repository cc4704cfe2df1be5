"""Which nodes quantization leaves alone, found in graphs as they are exported."""

import pytest

from vpexp.deploy.ignored_scope import find_precise_nodes
from vpexp.deploy.preprocessing import PREFIX
from vpexp.inference.graph_predictor import get_core


@pytest.fixture(scope="module")
def read_graph():
    core = get_core()
    return core.read_model


def find_types(graph):
    types = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ordered_ops()}
    return [types[name] for name in find_precise_nodes(graph)]


def test_find_precise_nodes__decoder(debug_ir, read_graph):
    graph = read_graph(debug_ir.decoder)
    types = find_types(graph)
    everywhere = [node.get_type_name() for node in graph.get_ordered_ops()]
    # Angles, the embedding of an earlier mask, the image enlarged, the masks enlarged.
    for kind in ("Sin", "Cos", "Convolution", "Gelu", "Interpolate"):
        assert types.count(kind) == everywhere.count(kind) > 0
    # Two that upscale, one with the masks' kernels, one that chooses a mask, two that enlarge; three of positions alone; three
    # of heads with heads.
    assert types.count("MatMul") == 12
    assert everywhere.count("MatMul") > 40
    assert "ScaledDotProductAttention" not in types


def test_find_precise_nodes__encoder(micro_ir, read_graph):
    graph = read_graph(micro_ir.encoder)
    names = find_precise_nodes(graph)
    fitting = {node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() != "Constant"}
    assert {name for name in fitting if name.startswith(PREFIX)} <= set(names)
    rest = [kind for name, kind in zip(names, find_types(graph), strict=True) if not name.startswith(PREFIX)]
    assert set(rest) == {"Convolution", "GroupConvolution"}
    convolutions = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution"]
    assert 0 < rest.count("Convolution") < len(convolutions)


def test_find_precise_nodes__encoder_of_one_size(micro_ir, read_graph):
    graph = read_graph(micro_ir.encoder)
    graph.reshape([1, 3, 256, 256])
    assert find_precise_nodes(graph)
