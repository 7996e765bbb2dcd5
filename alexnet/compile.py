"""From a model and an update rule to compiled functions, and the state that they change.

The only user of dispatch: whoever holds a Network calls train, validate and predict and does not see
on which engine they run.
"""

from functools import cached_property, partial

import numpy as np
import pytensor
import pytensor.tensor as pt

from alexnet.config import ConfigError
from alexnet.dispatch import HOST_ENGINES, mode_of, prepare
from alexnet.dispatch.cpu import build
from alexnet.layers import Background, Noise
from alexnet.models import model_class
from alexnet.objectives import cross_entropy, top_k_error, training_cost
from alexnet.ops import CropMirror
from alexnet.updates import adadelta, adagrad, momentum_sgd, name_of, nesterov, sgd


class Images:
    """The symbolic images of one compiled function, and what the caller hands over for them.

    In the graph (`crop` true): uint8 (3, 256, 256, batch) with the rows, columns and mirrors of alexnet.data.Crop,
    cropped, mirrored and centred by the first Op.  Otherwise: float32 (3, size, size, batch), done by the loader.
    """

    def __init__(self, model, mean, crop):
        if crop:
            images = pt.tensor("images", shape=(*mean.shape, None), dtype="uint8")
            rows, columns = pt.ivector("rows"), pt.ivector("columns")
            mirrors = pt.vector("mirrors", dtype="uint8")
            self.inputs = [images, rows, columns, mirrors]
            centre = pytensor.shared(mean, name="mean", shape=mean.shape)
            self.pixels = CropMirror(model.image_size)(images, centre, rows, columns, mirrors)
        else:
            shape = (model.channels, model.image_size, model.image_size, None)
            self.pixels = pt.tensor("pixels", shape=shape, dtype="float32")
            self.inputs = [self.pixels]


class Network:
    """A model, compiled for an engine: train, validate, predict, and the state that training changes.

    model      a Sequential of alexnet.models
    mean       float32 (3, 256, 256), grey levels, subtracted from every image
    update     (parameters, gradients, learning_rate) -> (pairs, velocities or accumulators): a rule of
               alexnet.updates, its constants settled; None for a network that only validates and predicts
    engine     "cpu", "jax" or "reference": alexnet.dispatch
    crop       True: images are uint8 and cropped in the graph; False: float32, cropped by the loader
    seed       of the random layers; give every worker its own
    wait       () -> None, returns once the initial weights are drawn; nothing that reads them is handed out before
    precision  of engine jax: "float32", "tf32" or "bfloat16"
    device     where engine jax computes: "cpu", "cuda0", "cuda1" …

    Each function is compiled when it is first used.  On a host engine (computes_on_host) arrays are NumPy's, and
    large ones of the state are updated in place.  Engine jax keeps the state on its device; images may lie there too.
    Raises ConfigError where the engine cannot be had on this machine.
    """

    def __init__(
        self, model, mean, update=None, engine="cpu", crop=True, seed=0, wait=None, precision="float32", device="cpu"
    ):
        self.model, self.crop = model, crop
        self.mean = np.ascontiguousarray(mean, dtype="float32")
        self.update, self.seed, self.wait = update, seed, wait or (lambda: None)
        self.mode, self.computes_on_host = mode_of(engine, precision, device), engine in HOST_ENGINES
        self.step = pytensor.shared(np.int64(0), name="step")

    @cached_property
    def training_graph(self):
        """Inputs, cost and error, and the gradient of each parameter that learns, symbolic.

        Where the lowest layers do not learn, no gradient goes down to them.
        """
        images, labels = self.images(), pt.ivector("labels")
        logits, auxiliary = self.model.heads(images.pixels, Noise(np.int64(self.seed), self.step))
        cost = training_cost(logits, auxiliary, labels)
        gradients = pytensor.grad(cost, [parameter.variable for parameter in self.learning])
        return [*images.inputs, labels], [cost, top_k_error(logits, labels, 1)], gradients

    @cached_property
    def update_graph(self):
        """Learning rate, the gradients as symbols without a value, update pairs, and velocities or accumulators."""
        rate, gradients = pt.scalar("learning_rate", dtype="float32"), [p.variable.type() for p in self.learning]
        return rate, gradients, *self.update(self.learning, gradients, rate)

    @cached_property
    def train(self):
        """(*images, labels, learning_rate) -> cost in nats, top-1 error; updates the state in place.

        learning_rate is a float32 scalar; cost and error are those before the update.  The cost has the auxiliary
        classifiers' in it, where the model has some; the error is that of its outputs.
        """
        inputs, outputs, values = self.training_graph
        rate, gradients, pairs, _ = self.update_graph
        givens = zip(gradients, values, strict=True)
        return self.compile([*inputs, rate], outputs, [*pairs, (self.step, self.step + 1)], givens)

    @cached_property
    def compute(self):
        """(*images, labels) -> cost, error: a training step without its update; writes `gradients`, counts the step."""
        inputs, outputs, values = self.training_graph
        return self.compile(inputs, outputs, [*zip(self.gradients, values, strict=True), (self.step, self.step + 1)])

    @cached_property
    def apply(self):
        """(learning_rate) -> []: the update, in place, by what `gradients` holds; compute and apply make train."""
        rate, gradients, pairs, _ = self.update_graph
        return self.compile([rate], [], pairs, zip(gradients, self.gradients, strict=True))

    @cached_property
    def gradients(self):
        """Shared variables, float32 and shaped as the parameters that learn: what compute writes and apply reads."""
        zeros = (np.zeros(p.shape, "float32") for p in self.learning)
        named = zip((f"{p.name}.gradient" for p in self.learning), zeros, strict=True)
        return [pytensor.shared(array, name=name, shape=array.shape, borrow=True) for name, array in named]

    @property
    def parameters(self):
        """The parameters' shared variables."""
        return [parameter.variable for parameter in self.model.parameters]

    @property
    def learning(self):
        """Those of the model's Parameters that training changes."""
        return [parameter for parameter in self.model.parameters if parameter.learns]

    @property
    def frozen(self):
        """The shared variables of the others."""
        return [parameter.variable for parameter in self.model.parameters if not parameter.learns]

    @cached_property
    def parameters_and_velocities(self):
        """What training changes: shared variables of float32, in the order in which workers exchange them.

        The parameters that learn, then what the rule of update keeps: velocities, or the accumulators of adagrad (as
        many) and adadelta (twice as many).
        """
        self.wait()
        return [*(parameter.variable for parameter in self.learning), *self.update_graph[3]]

    @cached_property
    def validate(self):
        """(*images, labels) -> cost in nats, top-1 error, top-5 error: means over the batch."""
        images, labels = self.images(), pt.ivector("labels")
        logits = self.model(images.pixels)
        errors = [top_k_error(logits, labels, k) for k in (1, 5)]
        return self.compile([*images.inputs, labels], [cross_entropy(logits, labels), *errors])

    @cached_property
    def logits(self):
        """(*images) -> float32 (class, batch): what the softmax makes probabilities of; no call compiles kernels."""
        images = self.images()
        function = self.compile(images.inputs, self.model(images.pixels))
        build.compile_wanted()
        return function

    @cached_property
    def predict(self):
        """(*images) -> the probability of each class, float32 (class, batch)."""
        images = self.images()
        return self.compile(images.inputs, pt.special.softmax(self.model(images.pixels), axis=0))

    @cached_property
    def state(self):
        """Name -> shared variable of every parameter, and of all else that training changes."""
        variables = dict.fromkeys([*self.parameters, *self.parameters_and_velocities, self.step])
        return {variable.name: variable for variable in variables}

    def get_state(self):
        """Name -> array, views of the state: copy what must outlive the next step."""
        return {name: np.asarray(v.get_value(borrow=True)) for name, v in self.state.items()}

    def set_state(self, arrays):
        """Take on the arrays of get_state, by name; raises ValueError when a name or a shape differs."""
        if missing := self.state.keys() ^ arrays.keys():
            raise ValueError(f"the state must hold exactly {sorted(self.state)}, differs in {sorted(missing)}")
        take_on(self.state, arrays)

    def set_parameters(self, arrays):
        """Take on the parameters of `arrays`, by name, and no others; raises ValueError for what does not fit."""
        self.wait()
        variables = {variable.name: variable for variable in self.parameters}
        if unknown := arrays.keys() - variables.keys():
            raise ValueError(f"this network has the parameters {', '.join(variables)}, and no {min(unknown)}")
        take_on(variables, arrays)

    def compile_all(self, names=("train", "validate"), batch=None):
        """Compile the functions of these names; afterwards no call of them waits for a compiler.

        batch  images of a step, which engine jax has to know for that
        """
        functions = [getattr(self, name) for name in names]
        build.compile_wanted()
        if batch and not self.computes_on_host:
            for function in functions:
                prepare(function, batch)
        return functions

    def images(self):
        return Images(self.model, self.mean, self.crop)

    def compile(self, inputs, outputs, updates=(), givens=()):
        inputs = [pytensor.In(variable, borrow=True) for variable in inputs]
        function = pytensor.function(inputs, outputs, updates=list(updates), givens=list(givens), mode=self.mode)
        function.trust_input = not self.computes_on_host        # the linker of engine jax looks at them itself
        self.wait()
        return function


def take_on(variables, arrays):
    """Give copies of the arrays to the shared variables of their names; raises ValueError when a shape differs."""
    for name, array in arrays.items():
        shape = np.shape(variables[name].get_value(borrow=True))
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        variables[name].set_value(np.array(array, dtype=variables[name].type.dtype), borrow=True)


def update_rule(config):
    """The update rule that the settings ask for, its constants settled."""
    rules = {
        "sgd": sgd,
        "momentum": partial(momentum_sgd, momentum=config.momentum),
        "nesterov": partial(nesterov, momentum=config.momentum),
        "adagrad": partial(adagrad, epsilon=config.adagrad_epsilon),
        "adadelta": partial(adadelta, rho=config.adadelta_rho, epsilon=config.adadelta_epsilon),
    }
    name = name_of(config.update, config.use_momentum, config.use_nesterov_momentum)
    return partial(rules[name], weight_decay=config.weight_decay)


def build_network(config, classes, mean, rank=0, device="cpu"):
    """The Network of the settings on a device; the initial weights come from random_seed alone, alike on every worker.

    Raises ConfigError where the engine cannot be had on this machine, or a layer of the settings is not there.
    """
    rng = Background(np.random.default_rng(config.random_seed))
    model = model_class(config.model)(rng, classes=classes, dropout_rate=config.dropout_rate)
    set_pace(model, config)
    return Network(
        model,
        mean,
        update_rule(config),
        engine=engine_of(config.engine, device),
        crop=config.use_data_layer,
        seed=config.random_seed + 1_000_003 * rank,
        wait=rng.wait,
        precision=config.precision,
        device=device,
    )


def set_pace(model, config):
    """Have each layer of the model learn as fast as layer_rates and frozen_layers say.

    Raises ConfigError for a layer that is not there, and where none is left to learn.
    """
    for name, rate in config.layer_rates.items():
        for parameter in layer_of(model, name, "layer_rates"):
            parameter.lr_mult *= rate
    for name in config.frozen_layers:
        for parameter in layer_of(model, name, "frozen_layers"):
            parameter.learns = False
    if not any(parameter.learns for parameter in model.parameters):
        raise ConfigError(f"frozen_layers must leave a layer to learn, got all: {', '.join(config.frozen_layers)}")


def layer_of(model, name, setting):
    """The parameters of the model's layer `name`, or of all in it: inception_3a has inception_3a.1x1 and others.

    Raises ConfigError where there is none, on behalf of the setting.
    """
    names = layers_within(model, name)
    if not names:
        raise ConfigError(f"{setting}: there is no layer {name!r}; there are {', '.join(model.weight_layers)}")
    return [parameter for each in names for parameter in model.weight_layers[each]]


def layers_within(model, name):
    """The names of the layers with weights that `name` means: the layer itself, or those in it."""
    return [each for each in model.weight_layers if each == name or each.startswith(f"{name}.")]


def engine_of(setting, device):
    """The engine's name that the setting means on a device: auto is jax on cuda devices, else cpu."""
    if setting != "auto":
        return setting
    return "cpu" if device == "cpu" else "jax"


def describe_engine(setting, device):
    """The engine that the setting means on a device, and what this machine has for it, as part of a sentence."""
    engine = engine_of(setting, device)
    if engine != "cpu":
        return engine
    compiler = build.compiler()
    return f"cpu, C kernels compiled by {compiler[0]}" if compiler else "cpu, without a C compiler: NumPy, slow"


def use_machine(threads, tiles):
    """Compile kernels for `tiles` and run them on `threads` threads (None: as many as this process may use)."""
    if tiles != "auto":
        build.use_tiles(tiles)
    build.use_threads(threads)
