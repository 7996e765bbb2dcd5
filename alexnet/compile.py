"""From a model and an update rule to compiled functions, and the state that they change.

The only user of dispatch: whoever holds a Network calls train, validate and predict and does not see
on which engine they run.
"""

from functools import cached_property, partial

import numpy as np
import pytensor
import pytensor.tensor as pt

from alexnet.dispatch import mode_of
from alexnet.dispatch.cpu import build
from alexnet.layers import Background, Noise
from alexnet.models import model_class
from alexnet.objectives import cross_entropy, top_k_error
from alexnet.ops import CropMirror
from alexnet.updates import momentum_sgd, nesterov, sgd


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

    model    a Sequential of alexnet.models
    mean     float32 (3, 256, 256), grey levels, subtracted from every image
    update   (parameters, gradients, learning_rate) -> (pairs, velocities): a rule of alexnet.updates with its
             constants settled; None for a network that only validates and predicts
    engine   "cpu" or "reference": alexnet.dispatch
    crop     True: images are uint8 and cropped in the graph; False: float32, cropped by the loader
    seed     of the random layers; give every worker its own
    wait     () -> None, returns once the initial weights are drawn; nothing that reads them is handed out before

    Each function is compiled when it is first used.
    """

    def __init__(self, model, mean, update=None, engine="cpu", crop=True, seed=0, wait=None):
        self.model, self.engine, self.crop = model, engine, crop
        self.mean = np.ascontiguousarray(mean, dtype="float32")
        self.update, self.seed, self.wait = update, seed, wait or (lambda: None)
        self.step = pytensor.shared(np.int64(0), name="step")

    @cached_property
    def training_graph(self):
        """Inputs, outputs, update pairs and velocities of a training step, symbolic."""
        images, labels, rate = self.images(), pt.ivector("labels"), pt.scalar("learning_rate", dtype="float32")
        logits = self.model(images.pixels, Noise(np.int64(self.seed), self.step))
        cost = cross_entropy(logits, labels)
        gradients = pytensor.grad(cost, [parameter.variable for parameter in self.model.parameters])
        pairs, velocities = self.update(self.model.parameters, gradients, rate)
        inputs, outputs = [*images.inputs, labels, rate], [cost, top_k_error(logits, labels, 1)]
        return inputs, outputs, [*pairs, (self.step, self.step + 1)], velocities

    @cached_property
    def train(self):
        """(*images, labels, learning_rate) -> cost in nats, top-1 error; updates the state in place.

        learning_rate is a float32 scalar; cost and error are those before the update.
        """
        inputs, outputs, pairs, _ = self.training_graph
        return self.compile(inputs, outputs, pairs)

    @cached_property
    def validate(self):
        """(*images, labels) -> cost in nats, top-1 error, top-5 error: means over the batch."""
        images, labels = self.images(), pt.ivector("labels")
        logits = self.model(images.pixels)
        errors = [top_k_error(logits, labels, k) for k in (1, 5)]
        return self.compile([*images.inputs, labels], [cross_entropy(logits, labels), *errors])

    @cached_property
    def predict(self):
        """(*images) -> the probability of each class, float32 (class, batch)."""
        images = self.images()
        return self.compile(images.inputs, pt.special.softmax(self.model(images.pixels), axis=0))

    @cached_property
    def state(self):
        """Name -> shared variable of everything that training changes."""
        self.wait()
        parameters = [parameter.variable for parameter in self.model.parameters]
        return {variable.name: variable for variable in [*parameters, *self.training_graph[3], self.step]}

    def get_state(self):
        """Name -> array, views of the state: copy what must outlive the next step."""
        return {name: np.asarray(v.get_value(borrow=True)) for name, v in self.state.items()}

    def set_state(self, arrays):
        """Take on the arrays of get_state, by name; raises ValueError when a name or a shape differs."""
        if missing := self.state.keys() ^ arrays.keys():
            raise ValueError(f"the state must hold exactly {sorted(self.state)}, differs in {sorted(missing)}")
        for name, variable in self.state.items():
            present = variable.get_value(borrow=True)
            if np.shape(present) != arrays[name].shape:
                raise ValueError(f"{name} must have shape {np.shape(present)}, got {arrays[name].shape}")
            variable.set_value(np.array(arrays[name], dtype=variable.type.dtype), borrow=True)

    def compile_all(self):
        """Compile what training needs; afterwards no call waits for the compiler."""
        functions = self.train, self.validate
        build.compile_wanted()
        return functions

    def images(self):
        return Images(self.model, self.mean, self.crop)

    def compile(self, inputs, outputs, updates=()):
        inputs = [pytensor.In(variable, borrow=True) for variable in inputs]
        function = pytensor.function(inputs, outputs, updates=list(updates), mode=mode_of(self.engine))
        self.wait()
        return function


def update_rule(config):
    """The update rule that the settings ask for, its constants settled."""
    decay = config.weight_decay
    if not config.use_momentum:
        return partial(sgd, weight_decay=decay)
    rule = nesterov if config.use_nesterov_momentum else momentum_sgd
    return partial(rule, momentum=config.momentum, weight_decay=decay)


def build_network(config, classes, mean, rank=0):
    """The Network of the settings; the initial weights come from random_seed alone, alike on every worker."""
    rng = Background(np.random.default_rng(config.random_seed))
    model = model_class(config.model)(rng, classes=classes, dropout_rate=config.dropout_rate)
    return Network(
        model,
        mean,
        update_rule(config),
        engine="cpu" if config.engine == "auto" else config.engine,
        crop=config.use_data_layer,
        seed=config.random_seed + 1_000_003 * rank,
        wait=rng.wait,
    )


def use_machine(threads, tiles):
    """Compile kernels for `tiles` and run them on `threads` threads (None: as many as this process may use)."""
    if tiles != "auto":
        build.use_tiles(tiles)
    build.use_threads(threads)
