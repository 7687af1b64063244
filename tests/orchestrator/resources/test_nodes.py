"""Rows of Ray's table of nodes, GPUs by type, and how Ray is asked for a type."""

import pytest

from orchestrator.resources.nodes import Node, count_gpus, read_node, type_constraint

A100 = Node(node_id="a", cpus=1, gpus=2, gpu_type="A100", has_type_resource=True)
L4 = Node(node_id="l", cpus=1, gpus=1, gpu_type="L4")


@pytest.mark.parametrize(
    ("resources", "labels", "node"),
    [
        ({"CPU": 2.0, "lorchestra_steady": 10.0}, {}, Node(node_id="n", cpus=2, steady=10)),
        (
            {"CPU": 1.0, "GPU": 2.0, "accelerator_type:A100": 1.0},
            {"ray.io/accelerator-type": "A100"},
            Node(node_id="n", cpus=1, gpus=2, gpu_type="A100", has_type_resource=True),
        ),
        (
            {"GPU": 1.0},
            {"ray.io/accelerator-type": "L4"},
            Node(node_id="n", gpus=1, gpu_type="L4"),
        ),
        ({"GPU": 1.0}, {}, Node(node_id="n", gpus=1)),
        ({"CPU": 1.0}, {"ray.io/accelerator-type": "L4"}, Node(node_id="n", cpus=1)),
    ],
    ids=["steady", "resource", "label", "unknown-type", "no-gpu"],
)
def test_a_node_is_read_from_rays_table(resources, labels, node):
    assert read_node({"NodeID": "n", "Resources": resources, "Labels": labels}) == node


def test_gpus_are_counted_by_type_without_those_that_will_be_taken_away():
    leaving = Node(node_id="x", gpus=4, gpu_type="A100", is_leaving=True)
    nodes = (A100, L4, leaving, Node(node_id="c", cpus=8))
    assert count_gpus(nodes) == {"A100": 2, "L4": 1}
    assert count_gpus(nodes, "a100") == {"A100": 2}
    assert count_gpus(nodes, "H100") == {}


@pytest.mark.parametrize(
    ("wanted", "resources", "labels"),
    [
        (None, {}, {}),
        ("", {}, {}),
        ("a100", {"accelerator_type:A100": 0.001}, {}),
        ("L4", {}, {"ray.io/accelerator-type": "L4"}),
        ("H100", {}, {"ray.io/accelerator-type": "H100"}),
    ],
    ids=["any", "empty", "resource", "label", "none-up"],
)
def test_a_type_is_asked_for_as_the_nodes_name_it(wanted, resources, labels):
    assert type_constraint(wanted, (A100, L4)) == (resources, labels)
