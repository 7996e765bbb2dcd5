"""Compile a model and an update rule into functions, and hold the state that they change.

The rest of the program calls a Network's train, validate and predict; only this module selects the backend.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile import Function
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from alexnet.backends import HOST_BACKENDS, mode_of, prepare
from alexnet.backends.bit_sums import BitSums, bit_sum
from alexnet.backends.notify import Notify
from alexnet.config import Config, ConfigError, backend_of
from alexnet.data.augment import UNSCALED, Scale
from alexnet.models import Model, model_class
from alexnet.native import compiler
from alexnet.nn import Background, Parameter, Training
from alexnet.ops import CropMirror
from alexnet.ops.kernels.convolution import block_size
from alexnet.training.factors import Factors, factors_of, mean_product, size_of
from alexnet.training.gradient_groups import first_group
from alexnet.training.objectives import CostSettings, cross_entropy, top_k_error, training_cost
from alexnet.training.update_settings import WeightAverageSettings
from alexnet.training.updates import AVERAGE, Pairs, UpdateRule, bind_update_rule, update_averages, zeros_like


class ImageInputs:
    """The symbolic images of one compiled function, and the inputs that the caller passes for them.

    With `crop` the inputs are uint8 (3, 256, 256, batch) images and the rows, columns and mirrors of alexnet.data.Crop;
    the first Op crops, mirrors and subtracts the mean. With `colour_offsets` a further input is float32 (3, batch), in
    grey levels, which is added to the pixels. Without `crop` the input is float32 (3, size, size, batch), prepared by
    the loader. Each channel is then multiplied by its scale.
    """

    def __init__(
        self, model: Model, mean: np.ndarray, crop: bool, scale: Scale = UNSCALED, colour_offsets: bool = False
    ):
        if crop:
            images = pt.tensor("images", shape=(*mean.shape, None), dtype="uint8")
            rows = pt.ivector("rows")
            columns = pt.ivector("columns")
            mirrors = pt.vector("mirrors", dtype="uint8")
            self.inputs = [images, rows, columns, mirrors]
            mean_image = pytensor.shared(mean, name="mean", shape=mean.shape)
            self.pixels = CropMirror(model.image_size)(images, mean_image, rows, columns, mirrors)
            if colour_offsets:
                offsets = pt.tensor("colour_offsets", shape=(len(mean), None), dtype="float32")
                self.inputs.append(offsets)
                self.pixels += offsets[:, np.newaxis, np.newaxis]
        else:
            shape = (model.channels, model.image_size, model.image_size, None)
            self.pixels = pt.tensor("pixels", shape=shape, dtype="float32")
            self.inputs = [self.pixels]
        if scale != UNSCALED:
            self.pixels *= np.array(scale, np.float32)[:, np.newaxis, np.newaxis, np.newaxis]


class TrainingGraph(NamedTuple):
    """The symbolic variables of a training step.

    inputs     images and labels
    outputs    cost, error
    logits     of the main classifier, in training
    gradients  of each trainable parameter
    updates    (variable, new value) of the running statistics and of the step counter
    layers     name -> output of each layer with parameters
    """

    inputs: list[TensorVariable]
    outputs: list[TensorVariable]
    logits: TensorVariable
    gradients: list[TensorVariable]
    updates: Pairs
    layers: dict[str, TensorVariable]


class Network:
    """A model compiled for a backend: train, validate, predict, and the state that training changes.

    Args:
        model: a Model of alexnet.models.
        mean: float32 (3, 256, 256), grey levels; subtracted from every image.
        update: a rule of alexnet.training.updates with its constants bound; None for a network that only validates
            and predicts.
        backend: the backend, "cpu", "jax" or "numpy"; see alexnet.backends.
        crop: True: images are uint8 and are cropped in the graph; False: float32, cropped by the loader.
        seed: seed of the random layers; must differ between workers.
        wait: returns once the initial weights have been drawn. It is called before any object that reads the weights
            is returned.
        precision: for the jax backend, "float32", "tf32" or "bfloat16".
        device: device of the jax backend, "cpu", "cuda0", "cuda1" …
        scale: factor of each channel after the mean is subtracted.
        label_smoothing: of the cost of training, 0 to 1.
        ema_decay: of the average of the weights, per step; 0: no average. With an average, the functions that do not
            train use it instead of the weights.
        colour_offsets: True: the functions of training take the colour offsets of the images after the crops, and add
            them; only with `crop`, because otherwise the loader adds them.
        micro_batches: of a step. The caller passes the last one to train, compute or compute_overlapped, and those
            before it to accumulate. Cost, error and gradients are then means over all of them.

    Attributes:
        rule_state: what the rule of several workers adds to the state; set it before the state is read.
        sums_read, sums_written: after sum_state(), the sums of the bits that the last update has read and written,
            uint32, an element for each trainable parameter, then one for each velocity or accumulator.

    Each function is compiled on first use. If computes_on_host is true, arrays are NumPy arrays, and large arrays of
    the state are updated in place. The jax backend keeps the state on its device and also accepts images stored there.

    Raises:
        ConfigError: the backend is not available on this machine.
    """

    def __init__(
        self, model: Model, mean: np.ndarray, update: UpdateRule | None = None, backend: str = "cpu",
        crop: bool = True, seed: int = 0, wait: Callable[[], None] | None = None, precision: str = "float32",
        device: str = "cpu", scale: Scale = UNSCALED, label_smoothing: float = 0.0,
        ema_decay: float = 0.0, micro_batches: int = 1, colour_offsets: bool = False,
    ):
        self.model = model
        self.crop = crop
        self.mean = np.ascontiguousarray(mean, dtype="float32")
        self.scale = scale
        self.label_smoothing = label_smoothing
        self.ema_decay = ema_decay
        self.micro_batches = micro_batches
        self.colour_offsets = colour_offsets
        self.update = update
        self.seed = seed
        self.wait = wait or (lambda: None)
        self.mode = mode_of(backend, precision, device)
        self.computes_on_host = backend in HOST_BACKENDS
        self.step = pytensor.shared(np.int64(0), name="step")
        self.factored: dict[int, float] = {}
        self.workers = 1
        self.rule_state: Sequence[SharedVariable] = ()
        self.sums_read: SharedVariable | None = None
        self.sums_written: SharedVariable | None = None

    @cached_property
    def training_graph(self) -> TrainingGraph:
        """The graph of a training step: of its last micro-batch and the sums of the others."""
        k = self.micro_batches
        if k == 1:
            return self.backward_graph(self.step)
        graph = self.backward_graph(self.step * k + (k - 1))
        last = [*graph.outputs, *graph.gradients]
        means = [(total + value) / np.float32(k) for total, value in zip(self.sums, last, strict=True)]
        n = len(graph.outputs)
        return graph._replace(outputs=means[:n], gradients=means[n:])

    def backward_graph(self, random_step: TensorVariable) -> TrainingGraph:
        """Return the graph of a micro-batch. Frozen layers below the lowest trainable layer get no gradient.

        Args:
            random_step: selects the random numbers of the random layers, an integer scalar.
        """
        images = ImageInputs(self.model, self.mean, self.crop, self.scale, self.colour_offsets)
        labels = pt.ivector("labels")
        training = Training(np.int64(self.seed), random_step)
        logits, auxiliary = self.model.training_outputs(images.pixels, training)
        cost = training_cost(logits, auxiliary, labels, self.label_smoothing)
        gradients = pytensor.grad(cost, [parameter.variable for parameter in self.trainable_parameters])
        updates = [*training.updates, (self.step, self.step + 1)]
        outputs = [cost, top_k_error(logits, labels, 1)]
        return TrainingGraph([*images.inputs, labels], outputs, logits, gradients, updates, training.outputs)

    @cached_property
    def update_graph(self) -> tuple[TensorVariable, list[TensorVariable], Pairs, list[SharedVariable]]:
        """Learning rate, symbolic gradients without a value, update pairs, and velocities or accumulators."""
        rate = pt.scalar("learning_rate", dtype="float32")
        gradients = [parameter.variable.type() for parameter in self.trainable_parameters]
        assert self.update is not None, "a network without an update rule does not train"
        return rate, gradients, *self.update(self.trainable_parameters, gradients, rate)

    @cached_property
    def train(self) -> Function:
        """(*images, labels, learning_rate) -> cost in nats, top-1 error; updates the state in place.

        learning_rate is a float32 scalar. Cost and error are those before the update. The cost includes the auxiliary
        classifiers of the model, if any; the error is that of the main classifier.
        """
        graph = self.training_graph
        rate, gradients, pairs, _ = self.update_graph
        givens = zip(gradients, graph.gradients, strict=True)
        pairs = [*pairs, *graph.updates, *self.sum_updates(dict(pairs))]
        pairs += self.average_updates(dict(pairs), self.step + 1)
        return self.compile([*graph.inputs, rate], graph.outputs, pairs, givens)

    @cached_property
    def accumulate(self) -> Function:
        """(*images, labels, position) -> cost in nats: adds a micro-batch to the sums that the last one of a step uses.

        position is that of the micro-batch in the step, an int64 scalar; 0 discards the former sums. Nothing else
        changes: running statistics are those of the last micro-batch.
        """
        position = pt.lscalar("position")
        graph = self.backward_graph(self.step * self.micro_batches + position)
        values = [*graph.outputs, *graph.gradients]
        pairs = [
            (total, pt.switch(pt.eq(position, 0), value, total + value))
            for total, value in zip(self.sums, values, strict=True)
        ]
        return self.compile([*graph.inputs, position], graph.outputs[0], pairs)

    @cached_property
    def sums(self) -> list[SharedVariable]:
        """The sums of cost, error and gradients over the micro-batches of a step."""
        figures = [pytensor.shared(np.float32(0), name=f"{name}.sum") for name in ("cost", "error")]
        return [*figures, *(zeros_like(parameter, "gradient.sum") for parameter in self.trainable_parameters)]

    @cached_property
    def compute(self) -> Function:
        """(*images, labels) -> cost, error: a training step without the update of the trainable parameters.

        Writes `gradients`, updates the running statistics, and increments the step counter.
        """
        graph = self.training_graph
        stored = zip(self.gradients, graph.gradients, strict=True)
        return self.compile(graph.inputs, graph.outputs, [*stored, *graph.updates])

    def use_factors(self, batch: int, workers: int) -> None:
        """Exchange the weight gradients of dense layers as factors where that is less; call it before compilation.

        Args:
            batch: images of a worker in each step.
        """
        self.workers = workers
        for n, (gradient, parameter) in enumerate(
            zip(self.training_graph.gradients, self.trainable_parameters, strict=True)
        ):
            if factors_of(gradient) and (size := size_of(parameter.shape, batch, workers)) < parameter.size:
                self.factored[n] = size

    @cached_property
    def compute_overlapped(self) -> Function:
        """The same as compute, and during the backward pass it calls `early_gradients.receive`.

        The arguments of the call are cost, error, the factors (x, g) of each layer in `factored`, whose gradients are
        not computed, and the gradients of the first of `gradient_groups`.
        """
        graph = self.training_graph
        early, late = self.gradient_groups
        factors = [factor for n in self.factored for factor in factors_of(graph.gradients[n]) or ()]
        notified = self.early_gradients(*graph.outputs, *factors, *(graph.gradients[n] for n in early))
        first = len(notified) - len(early)
        stored = [
            *((self.gradients[n], gradient) for n, gradient in zip(early, notified[first:], strict=True)),
            *((self.gradients[n], graph.gradients[n]) for n in late),
        ]
        return self.compile(graph.inputs, notified[:2], [*stored, *graph.updates])

    @cached_property
    def early_gradients(self) -> Notify:
        """The Op of compute_overlapped that reports factors and the first group of gradients."""
        return Notify(len(self.training_graph.outputs) + 2 * len(self.factored) + len(self.gradient_groups[0]))

    @cached_property
    def gradient_groups(self) -> tuple[list[int], list[int]]:
        """The positions in `gradients` of those that are ready early in the backward pass, and of the others.

        Without those in `factored`.
        """
        graph = self.training_graph
        sizes = [float(each.size) for each in self.trainable_parameters]
        whole_exchange = sum(sizes)
        for n, size in self.factored.items():
            sizes[n] = size
        first = first_group(graph.outputs, graph.gradients, sizes, sum(sizes) / whole_exchange)
        whole = [n for n in range(len(graph.gradients)) if n not in self.factored]
        return [n for n in whole if n in first], [n for n in whole if n not in first]

    @cached_property
    def apply(self) -> Function:
        """(learning_rate, *factors) -> []: the in-place update of the state from `gradients`.

        compute followed by apply is equivalent to train. The factors are those of each layer in `factored`: first x
        and g of worker 0, then those of worker 1, and so on.
        """
        rate, gradients, pairs, _ = self.update_graph
        values: list[Variable] = list(self.gradients)
        inputs = [rate]
        for n in self.factored:
            factors = [Factors(pt.fmatrix("x"), pt.fmatrix("g")) for _ in range(self.workers)]
            inputs += [factor for each in factors for factor in each]
            values[n] = mean_product(factors)
        pairs = [*pairs, *self.average_updates(dict(pairs), self.step), *self.sum_updates(dict(pairs))]
        return self.compile(inputs, [], pairs, zip(gradients, values, strict=True))

    @property
    def kernel_block(self) -> int:
        """Block size of the C kernels, on which their rounding depends; 0 without them and on a GPU."""
        return block_size() if self.computes_on_host and compiler.compiler_available() else 0

    def sum_state(self, read: int | None = None, written: int | None = None) -> None:
        """Sum the bits of the state in train and apply, where that costs no time; call it before they are compiled.

        On a GPU it would be another pass over the state.

        Args:
            read: number of arrays of which `sums_read` has the sums; None: all.
            written: the same for `sums_written`.
        """
        if self.computes_on_host:
            n = len(self.summed_state)
            self.sums_read = sums_variable("state.read", n if read is None else read)
            self.sums_written = sums_variable("state.written", n if written is None else written)

    @property
    def summed_state(self) -> list[SharedVariable]:
        """The variables whose bits are summed: trainable parameters, then velocities or accumulators."""
        return [*(parameter.variable for parameter in self.trainable_parameters), *self.update_graph[3]]

    def sum_updates(self, new_values: Mapping[SharedVariable, TensorVariable]) -> Pairs:
        """Return the updates of the sums of the bits of the state before and after an update by `new_values`."""
        values = [self.summed_state, [new_values[variable] for variable in self.summed_state]]
        return [
            (sums, BitSums()(*arrays[: sums.type.shape[0]]))
            for sums, arrays in zip((self.sums_read, self.sums_written), values, strict=True) if sums is not None
        ]

    def current_sums(self) -> np.ndarray:
        """Return what `sums_written` has if the state has not changed since the last update; a pass over the state."""
        return np.array([bit_sum(variable.get_value(borrow=True)) for variable in self.summed_state], np.uint32)

    @cached_property
    def gradients(self) -> list[SharedVariable]:
        """Shared variables that compute writes and apply reads.

        float32, with the shapes of the trainable parameters.
        """
        return [gradient_of(parameter) for parameter in self.trainable_parameters]

    @property
    def parameters(self) -> list[SharedVariable]:
        """The shared variables of all parameters."""
        return [parameter.variable for parameter in self.model.parameters]

    @property
    def trainable_parameters(self) -> list[Parameter]:
        """The Parameters of the model that the update rule changes."""
        return [parameter for parameter in self.model.parameters if parameter.trainable and not parameter.running]

    @property
    def running_statistics(self) -> list[SharedVariable]:
        """The shared variables of the running statistics that training changes."""
        return [parameter.variable for parameter in self.model.parameters if parameter.trainable and parameter.running]

    @property
    def weights(self) -> list[SharedVariable]:
        """The shared variables of all parameters that training changes: first the trainable ones."""
        return [*(parameter.variable for parameter in self.trainable_parameters), *self.running_statistics]

    @property
    def frozen_parameters(self) -> list[SharedVariable]:
        """The shared variables of the frozen parameters."""
        return [parameter.variable for parameter in self.model.parameters if not parameter.trainable]

    @cached_property
    def parameters_and_velocities(self) -> list[SharedVariable]:
        """What training changes: float32 shared variables, in the order in which workers exchange them.

        First `weights`, then the state of the update rule: velocities (one per trainable parameter), or the
        accumulators of adagrad (one per parameter) or adadelta (two per parameter).
        """
        self.wait()
        return [*self.weights, *self.update_graph[3]]

    @cached_property
    def averages(self) -> list[SharedVariable]:
        """The averages of `weights`, in the same order; empty without ema_decay."""
        return [zeros_like(parameter, AVERAGE) for parameter in self.averaged_parameters]

    @property
    def averaged_parameters(self) -> list[Parameter]:
        """The Parameters of `weights` with ema_decay, else none."""
        changed = [parameter for parameter in self.model.parameters if parameter.trainable]
        return sorted(changed, key=lambda parameter: parameter.running) if self.ema_decay else []

    def average_updates(self, new_values: Mapping[SharedVariable, TensorVariable], steps: TensorVariable) -> Pairs:
        """Return the updates of the averages; see update_averages for the arguments."""
        return update_averages(self.averages, self.averaged_parameters, new_values, steps, self.ema_decay)

    @property
    def averaged_weights(self) -> Pairs:
        """(weight, its average): the substitution in functions that do not train."""
        weights = (parameter.variable for parameter in self.averaged_parameters)
        return list(zip(weights, self.averages, strict=True))

    def start_averages(self) -> None:
        """Set the averages to the weights, so that a network that has not been trained has the same outputs."""
        self.wait()
        for weight, average in self.averaged_weights:
            average.set_value(weight.get_value())

    @cached_property
    def validate(self) -> Function:
        """(*images, labels) -> cost in nats, top-1 error, top-5 error (means over the batch), logits (class, batch)."""
        images = self.image_inputs()
        labels = pt.ivector("labels")
        logits = self.model(images.pixels)
        errors = [top_k_error(logits, labels, k) for k in (1, 5)]
        return self.compile([*images.inputs, labels], [cross_entropy(logits, labels), *errors, logits],
                            givens=self.averaged_weights)

    @cached_property
    def logits(self) -> Function:
        """(*images) -> float32 (class, batch): the input of the softmax.

        All kernels are compiled before this function is returned.
        """
        images = self.image_inputs()
        function = self.compile(images.inputs, self.model(images.pixels), givens=self.averaged_weights)
        compiler.precompile()
        return function

    @cached_property
    def predict(self) -> Function:
        """(*images) -> the probability of each class, float32 (class, batch)."""
        images = self.image_inputs()
        probabilities = pt.special.softmax(self.model(images.pixels), axis=0)
        return self.compile(images.inputs, probabilities, givens=self.averaged_weights)

    @cached_property
    def state(self) -> dict[str, SharedVariable]:
        """Name -> shared variable, for every parameter and everything else that training changes."""
        trained = [*self.parameters_and_velocities, *self.averages, *self.rule_state]
        variables = dict.fromkeys([*self.parameters, *trained, self.step])
        return {variable.name: variable for variable in variables}

    @property
    def state_bytes(self) -> int:
        """Size of the state in bytes. Unlike get_state, this does not wait for the initial weights."""
        variables = (*self.parameters, *self.update_graph[3], *self.averages, *self.rule_state, self.step)
        return sum(variable.get_value(borrow=True).nbytes for variable in variables)

    def get_state(self) -> dict[str, np.ndarray]:
        """Return name -> array. The arrays are views of the state: copy what must survive the next step."""
        return {name: np.asarray(v.get_value(borrow=True)) for name, v in self.state.items()}

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the state to the arrays of get_state. Raises ValueError if a name or a shape differs."""
        if missing := self.state.keys() ^ arrays.keys():
            raise ValueError(f"the state must hold exactly {sorted(self.state)}, differs in {sorted(missing)}")
        assign(self.state, arrays)

    def set_parameters(self, arrays: Mapping[str, np.ndarray], copy: bool = True) -> None:
        """Set the parameters named in `arrays` and leave the others unchanged.

        Args:
            copy: False: the parameters become these arrays, if their dtype is right. Training would change them.

        Raises:
            ValueError: a name is unknown or a shape differs.
        """
        self.wait()
        variables = {variable.name: variable for variable in self.parameters}
        if unknown := arrays.keys() - variables.keys():
            raise ValueError(f"this network has the parameters {', '.join(variables)}, and no {min(unknown)}")
        assign(variables, arrays, copy)

    def compile_all(self, names: Sequence[str] = ("train", "validate"), batch: int | None = None) -> list[Function]:
        """Compile the functions with these names, so that no later call compiles.

        Args:
            batch: images per step; the jax backend needs it to compile in advance.
        """
        functions = [getattr(self, name) for name in names]
        compiler.precompile()
        if batch and not self.computes_on_host:
            for function in functions:
                prepare(function, batch)
        return functions

    def image_inputs(self) -> ImageInputs:
        """Return new symbolic images of a function that does not train."""
        return ImageInputs(self.model, self.mean, self.crop, self.scale)

    def compile(
        self, inputs: Sequence[TensorVariable], outputs: Any,
        updates: Iterable[tuple[SharedVariable, TensorVariable]] = (),
        givens: Iterable[tuple[TensorVariable, TensorVariable]] = (),
    ) -> Function:
        """Compile a function for the backend of this network; see pytensor.function for the arguments."""
        inputs = [pytensor.In(variable, borrow=True) for variable in inputs]
        function = pytensor.function(inputs, outputs, updates=list(updates), givens=list(givens), mode=self.mode)
        function.trust_input = not self.computes_on_host        # the jax linker checks the inputs itself
        self.wait()
        return function


def sums_variable(name: str, n: int) -> SharedVariable | None:
    """Return a shared variable for n sums of bits; None if n is 0."""
    return pytensor.shared(np.zeros(n, np.uint32), name=name, shape=(n,)) if n else None


def gradient_of(parameter: Parameter) -> SharedVariable:
    """Return a shared variable of float32 zeros for the gradient of a parameter."""
    zeros = np.zeros(parameter.shape, "float32")
    return pytensor.shared(zeros, name=f"{parameter.name}.gradient", shape=parameter.shape, borrow=True)


def assign(variables: Mapping[str, SharedVariable], arrays: Mapping[str, np.ndarray], copy: bool = True) -> None:
    """Set shared variables to (copies of) the arrays of the same names. Raises ValueError if a shape differs."""
    for name, array in arrays.items():
        shape = np.shape(variables[name].get_value(borrow=True))
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        dtype = variables[name].type.dtype
        variables[name].set_value(array.astype(dtype, order="C", copy=copy), borrow=True)


def build_model(config: Config, classes: int, draw: bool = True) -> Model:
    """Return the model of the settings; a thread begins to draw its initial weights.

    The initial weights depend only on random_seed, so they are identical on every worker.

    Args:
        draw: False: the weights are 0, because the caller sets all of them.

    Raises:
        ConfigError: the settings name a model or a layer that does not exist.
    """
    rng = Background(np.random.default_rng(config.random_seed)) if draw else None
    model = model_class(config.model)(rng, classes=classes, dropout_rate=config.dropout_rate)
    apply_layer_settings(model, config)
    return model


def build_network(
    config: Config, model: Model, mean: np.ndarray, rank: int = 0, device: str = "cpu", scale: Scale = UNSCALED
) -> Network:
    """Return the Network of the settings for a model of build_model() on a device.

    Raises:
        ConfigError: the backend is not available on this machine.
    """
    return Network(
        model,
        mean,
        bind_update_rule(config),
        backend=backend_of(config.backend, device),
        crop=config.use_data_layer,
        seed=config.random_seed + 1_000_003 * rank,
        wait=model.wait,
        precision=config.precision,
        device=device,
        scale=scale,
        label_smoothing=config.section(CostSettings).label_smoothing,
        ema_decay=config.section(WeightAverageSettings).ema_decay,
        micro_batches=config.micro_batches,
        colour_offsets=config.pca_colour > 0,
    )


def use_kernel_settings(config: Config) -> None:
    """Apply the settings isa and threads to the C kernels of this process."""
    if config.isa != "auto":                     # auto keeps ALEXNET_ISA
        compiler.use_isa(config.isa)
    compiler.use_threads(config.threads)


def apply_layer_settings(model: Model, config: Config) -> None:
    """Apply the layer learning rates (layer_rates) and frozen_layers to the model.

    Raises:
        ConfigError: a layer does not exist, or no layer remains trainable.
    """
    for name, rate in config.layer_rates.items():
        for parameter in layer_of(model, name, "layer_rates"):
            parameter.lr_mult *= rate
    for name in config.frozen_layers:
        for parameter in layer_of(model, name, "frozen_layers"):
            parameter.trainable = False
    if not any(parameter.trainable for parameter in model.parameters):
        raise ConfigError(f"frozen_layers must leave a layer to learn, got all: {', '.join(config.frozen_layers)}")


def layer_of(model: Model, name: str, setting: str) -> list[Parameter]:
    """Return the parameters of layer or group `name`: inception_3a is the group of inception_3a.1x1 and others.

    Raises:
        ConfigError: there is no such layer; the message names `setting`.
    """
    names = layers_within(model, name)
    if not names:
        raise ConfigError(f"{setting}: there is no layer {name!r}; there are {', '.join(model.weight_layers)}")
    return [parameter for each in names for parameter in model.weight_layers[each]]


def layers_within(model: Model, name: str) -> list[str]:
    """Return the layers with weights that `name` denotes: the layer itself, or the layers of that group."""
    return [each for each in model.weight_layers if each == name or each.startswith(f"{name}.")]


def describe_backend(setting: str, device: str) -> str:
    """Describe the backend that the setting selects on a device, and its C compiler, as part of a sentence."""
    backend = backend_of(setting, device)
    if backend != "cpu":
        return backend
    command = compiler.compiler()
    return f"cpu, C kernels compiled by {command[0]}" if command else "cpu, without a C compiler: NumPy, slow"
