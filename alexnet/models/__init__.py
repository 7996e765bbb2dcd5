"""The networks, a module each. `model=module:Class` selects one outside the package."""

from alexnet.models.base import MODELS, Model, model_class

__all__ = ["MODELS", "Model", "model_class"]
