"""The settings of updates: the rule, its constants, clipping, and the average of the weights.

The rules of several workers check them too, in processes that do not import PyTensor, so this module does not either.
"""

from alexnet.config import Config, Section
from alexnet.config.fields import Amount, Epsilon, NotNegative, Share, Text


class UpdateSettings(Section):
    """Which update rule trains the network: `update`, or if it is auto, the rule of upstream's two switches."""

    update: Text
    use_momentum: bool
    use_nesterov_momentum: bool
    weight_decay: NotNegative

    def check(self) -> None:
        if self.use_nesterov_momentum and not self.use_momentum:
            raise ValueError("use_nesterov_momentum is true but use_momentum is false: set both or neither")
        switched = "nesterov" if self.use_nesterov_momentum else "auto" if self.use_momentum else "sgd"
        if "auto" not in (self.update, switched) and self.update != switched:
            switch = "use_momentum=false" if switched == "sgd" else "use_nesterov_momentum=true"
            raise ValueError(f"update is {self.update}, but {switch} means {switched}: set one of the two")

    @property
    def rule(self) -> str:
        """The name of the update rule."""
        if self.update != "auto":
            return self.update
        return "nesterov" if self.use_nesterov_momentum else "momentum" if self.use_momentum else "sgd"


class ClipSettings(Section):
    """The largest norm of a gradient; None: any."""

    clip_norm: Amount | None


class MomentumSettings(Section):
    """The constant of the rules momentum and nesterov."""

    momentum: Share


class AdagradSettings(Section):
    """The constant of Adagrad."""

    adagrad_epsilon: Epsilon


class AdadeltaSettings(Section):
    """The constants of Adadelta."""

    adadelta_rho: Share
    adadelta_epsilon: Epsilon


class WeightAverageSettings(Section):
    """The decay of the average of the weights per step; 0: no average."""

    ema_decay: Share


def nonlinear_setting(config: Config) -> str | None:
    """Return the setting because of which the update is not linear in the gradients, as update=adagrad, or None."""
    clip_norm = config.section(ClipSettings).clip_norm
    if clip_norm is not None:
        return f"clip_norm={clip_norm:g}"
    return None if has_linear_rule(config) else f"update={config.section(UpdateSettings).rule}"


def has_linear_rule(config: Config) -> bool:
    """Return whether the update rule is linear in the gradients."""
    if config.section(UpdateSettings).update == "auto":          # one of upstream's, which are linear
        return True
    from alexnet.training.updates import find_update_rule  # it imports PyTensor, slowly

    return find_update_rule(config).linear
