"""Each node of the compiled training step, by the layer and pass it belongs to, with its seconds and bytes.

PyTensor's virtual machine calls one function (a thunk) for each node, one after the other, so the times of the nodes
add up to the step but for what lies between the calls.  A node's layer is the one whose parameters it takes; else, of
the values of the forward pass that it takes, the deepest one's; else that of the node which takes its result.
"""

import re
import time

import numpy as np

REST = "small nodes, in NumPy"
COST = "cost and errors"
PARAMETER = re.compile(r"((?:conv|fc)\d+)\.([Wb])(?:\.velocity)?")
ELEMENTWISE = {(True, False): "bias and ReLU", (False, False): "ReLU gradient", (False, True): "update"}
# (forward, of a weight) -> pass


class Node:
    """A thunk that notes its seconds and, of its last run, the bytes of the arrays it took and made."""

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
    """The Nodes of a compiled function, in the order of their calls; from now on each call of it is noted."""
    vm = function.vm
    names = node_names(function.maker.fgraph)
    nodes = []
    for node, thunk in zip(vm.nodes, vm.thunks, strict=True):
        cells = [[vm.storage_map[variable] for variable in variables] for variables in (node.inputs, node.outputs)]
        nodes.append(Node(names[node], thunk, cells))
    vm.thunks[:] = nodes
    return nodes


def by_name(nodes):
    """name -> (list of seconds, one for each call of the function; bytes), in order; nodes of one name are added."""
    groups = {}
    for node in nodes:
        groups.setdefault(node.name, []).append(node)
    return {
        name: ([sum(call) for call in zip(*(node.seconds for node in group), strict=True)],
               sum(node.nbytes for node in group))
        for name, group in groups.items()
    }  # fmt: skip


# ---- what a node is


def node_names(fgraph):
    """node -> name: 'conv1 forward', 'fc6 filter gradient update' and so on."""
    layers = forward_layers(fgraph)
    return {node: node_name(fgraph, node, layers) for node in fgraph.toposort()}


def node_name(fgraph, node, layers):
    kernel = getattr(node.op, "op", None)        # of a CpuKernel: the Op it stands for
    if kernel is None:
        return REST
    kind, layer = type(kernel).__name__, layer_of(fgraph, node, layers)
    forward = node.outputs[0] in layers
    if kind in ("Elemwise", "Sum"):
        return elementwise_name(node, kind, layer, layers, forward)
    gradient = "" if forward or "Gradient" in kind else "gradient"
    return " ".join(filter(None, (layer, words(kind), gradient)))


def elementwise_name(node, kind, layer, layers, forward):
    """Of a formula or a sum: by what it takes."""
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
    """'MaxPoolGradient' as 'max pool gradient', 'Convolution' as 'forward', 'ConvolutionInputGradient' without it."""
    name = name.removeprefix("Convolution") or "Forward"
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", name)
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def parameter_of(variable):
    """(layer, letter) of the parameter or velocity that a variable is or is a view of, else None."""
    while variable.owner and variable.owner.op.view_map and len(variable.owner.inputs) == 1:
        variable = variable.owner.inputs[0]
    found = PARAMETER.fullmatch(variable.name or "") if variable.owner is None else None
    return found and found.groups()


def number(layer):
    return int(re.search(r"\d+", layer)[0])


def forward_layers(fgraph):
    """variable -> layer, or None before the first, of all that the function's outputs (not its updates) depend on."""
    outputs = fgraph.outputs[: len(fgraph.outputs) - len(fgraph.update_mapping)]
    needed = {variable.owner for variable in outputs}
    layers = {}
    for node in reversed(fgraph.toposort()):
        if node in needed:
            needed |= {variable.owner for variable in node.inputs}
    for node in fgraph.toposort():
        own = [parameter[0] for parameter in map(parameter_of, node.inputs) if parameter]
        found = own + [layers[variable] for variable in node.inputs if layers.get(variable)]
        if node in needed:
            layers |= dict.fromkeys(node.outputs, max(found, key=number, default=None))
    return layers


def layer_of(fgraph, node, layers):
    """The layer a node belongs to, or None."""
    if node.outputs[0] in layers:
        return layers[node.outputs[0]]
    own = [parameter[0] for parameter in map(parameter_of, node.inputs) if parameter]
    if not own and type(getattr(node.op, "op", None)).__name__ != "ConvolutionFilterGradient":
        own = [layers[variable] for variable in node.inputs if layers.get(variable)]
    if own:
        return max(own, key=number)
    clients = [client for output in node.outputs for client, _ in fgraph.clients[output]]
    found = (layer_of(fgraph, client, layers) for client in clients if client.outputs)
    return next(filter(None, found), None)
