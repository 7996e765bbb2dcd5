"""Seconds and bytes of each node of the compiled training step, by layer and pass.

PyTensor's virtual machine calls one function (a thunk) per node, in sequence. The times of the nodes therefore add up
to the time of the step, except for the overhead between the calls.

The layer of a node is the first that applies of:

    the layer whose parameters are inputs of the node
    the deepest layer among the node's inputs that are values of the forward pass
    the layer of a node that consumes its output

A layer is deeper than those whose parameters the forward pass uses before.
"""

import re
import time

import numpy as np

REST = "small nodes, in NumPy"
COST = "cost and errors"
PARAMETER = re.compile(r"(.+)\.(W|b|gamma|beta|mean|variance)(?:\.velocity)?")
ELEMENTWISE = {(True, False): "bias and ReLU", (False, False): "ReLU gradient", (False, True): "update"}
# (in the forward pass, an input is a weight) -> pass


class Node:
    """A thunk that records its seconds per call, and the bytes of its input and output arrays in the last call."""

    def __init__(self, name, thunk, cells):
        self.name, self.thunk, self.cells = name, thunk, cells
        self.seconds, self.nbytes = [], 0

    def __call__(self):
        inputs, outputs = self.cells
        self.nbytes = arrays_bytes(inputs)
        began = time.perf_counter()
        self.thunk()
        self.seconds.append(time.perf_counter() - began)
        self.nbytes += arrays_bytes(outputs)


def arrays_bytes(cells):
    return sum(cell[0].nbytes for cell in cells if isinstance(cell[0], np.ndarray))


def watch(function):
    """Instrument a compiled function and return its Nodes in call order. They record each later call."""
    vm = function.vm
    names = node_names(function.maker.fgraph)
    nodes = []
    for node, thunk in zip(vm.nodes, vm.thunks, strict=True):
        cells = [[vm.storage_map[variable] for variable in variables] for variables in (node.inputs, node.outputs)]
        nodes.append(Node(names[node], thunk, cells))
    vm.thunks[:] = nodes
    return nodes


def by_name(nodes):
    """Return {name: (seconds of each function call, bytes)} in node order, summed over nodes of the same name."""
    groups = {}
    for node in nodes:
        groups.setdefault(node.name, []).append(node)
    return {
        name: ([sum(call) for call in zip(*(node.seconds for node in group), strict=True)],
               sum(node.nbytes for node in group))
        for name, group in groups.items()
    }


# ---- names of the nodes


def node_names(fgraph):
    """Return {node: name}, for example 'conv1 forward' or 'fc6 filter gradient update'."""
    layers = Layers(fgraph)
    return {node: node_name(fgraph, node, layers) for node in fgraph.toposort()}


def node_name(fgraph, node, layers):
    kernel = getattr(node.op, "op", None)        # of a CpuKernel: the Op that it implements
    if kernel is None:
        return REST
    kind, layer = type(kernel).__name__, layer_of(fgraph, node, layers)
    forward = node.outputs[0] in layers
    if kind in ("Elemwise", "Sum"):
        return elementwise_name(node, kind, layer, layers, forward)
    gradient = "" if forward or "Gradient" in kind else "gradient"
    return " ".join(filter(None, (layer, words(kind), gradient)))


def elementwise_name(node, kind, layer, layers, forward):
    """Return the name of an Elemwise or Sum node, derived from its inputs."""
    taken = {letter for _, letter in filter(None, map(parameter_of, node.inputs))}
    if not forward and taken == {"b"}:
        return "bias updates"
    if kind == "Sum" and not forward:
        return f"{layer} bias gradient"
    if layer is None or not taken and (forward or not any(layers.get(variable) for variable in node.inputs)):
        return COST
    if type(node.op.op.scalar_op).__name__ == "Add":
        return f"{layer} bias"
    return f"{layer} {ELEMENTWISE[forward, 'W' in taken]}"


def words(name):
    """Split a class name into words.

    'MaxPool2D' becomes 'max pool', 'LRNGradient' 'LRN gradient', 'Convolution' 'forward',
    'ConvolutionInputGradient' 'input gradient'.
    """
    for long, short in (("2D", ""), ("Inverted", ""), ("LocalResponseNorm", "LRN")):
        name = name.replace(long, short)
    name = name.removeprefix("Convolution") or "Forward"
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", name)
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def parameter_of(variable):
    """Return (layer, letter) of a parameter or velocity, or of a view of one; None for other variables."""
    while variable.owner and variable.owner.op.view_map and len(variable.owner.inputs) == 1:
        variable = variable.owner.inputs[0]
    found = PARAMETER.fullmatch(variable.name or "") if variable.owner is None else None
    return found and found.groups()


class Layers(dict):
    """{variable: layer} of all variables that the outputs (not updates) depend on; None before the first layer.

    depth  {layer: number of layers before it}
    """

    def __init__(self, fgraph):
        super().__init__()
        self.depth = {}
        self.fill(fgraph)

    def deepest(self, layers):
        """Return the deepest of some layers, or None. A layer that is compared for the first time is the deepest."""
        different = list(dict.fromkeys(layers))
        if len(different) < 2:
            return different[0] if different else None
        return max(different, key=lambda layer: self.depth.setdefault(layer, len(self.depth)))

    def fill(self, fgraph):
        """Find the layer of each variable of the forward pass."""
        needed = forward_nodes(fgraph)
        for node in fgraph.toposort():
            own = [parameter[0] for parameter in map(parameter_of, node.inputs) if parameter]
            before = [self[variable] for variable in node.inputs if self.get(variable)]
            if node in needed:
                self.update(dict.fromkeys(node.outputs, self.deepest(before + own)))


def forward_nodes(fgraph):
    """Return the nodes on which the outputs, not the updates, depend."""
    outputs = fgraph.outputs[: len(fgraph.outputs) - len(fgraph.update_mapping)]
    needed = {variable.owner for variable in outputs}
    for node in reversed(fgraph.toposort()):
        if node in needed:
            needed |= {variable.owner for variable in node.inputs}
    return needed


def layer_of(fgraph, node, layers):
    """Return the layer that a node belongs to, or None."""
    if node.outputs[0] in layers:
        return layers[node.outputs[0]]
    own = [parameter[0] for parameter in map(parameter_of, node.inputs) if parameter]
    if not own and type(getattr(node.op, "op", None)).__name__ != "ConvolutionFilterGradient":
        own = [layers[variable] for variable in node.inputs if layers.get(variable)]
    if own:
        return layers.deepest(own)
    clients = [client for output in node.outputs for client, _ in fgraph.clients[output]]
    found = (layer_of(fgraph, client, layers) for client in clients if client.outputs)
    return next(filter(None, found), None)
