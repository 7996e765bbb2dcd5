"""Named implementations of one interface: models, update rules, exchange strategies and rules.

An implementation registers itself with a decorator where it is defined. It is found if its module is in the package of
the registry, has been imported, or is named in the setting: `rule=my_package.my_module:MyRule`.
"""

import difflib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from alexnet.native.untrusted import InputError

T = TypeVar("T")


class ConfigError(InputError):
    """An invalid setting. The message is one sentence with the value and a valid alternative."""


def check_known(name: str, known: Iterable[str], problem: str, otherwise: str | None = None) -> None:
    """Raise ConfigError unless `name` is in `known`.

    Args:
        problem: start of the message, for example "model: there is no network".
        otherwise: end of the message if no known name is similar; None lists all known names.
    """
    names = tuple(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else otherwise or f"there are {', '.join(names)}"
        raise ConfigError(f"{problem} {name!r}; {hint}")


class Registry(MutableMapping[str, T]):
    """Implementations by name.

    Args:
        setting: the setting that names an implementation, for error messages.
        noun: what an implementation is, for error messages.
        package: the package whose modules register implementations; imported on the first access.
    """

    def __init__(self, setting: str, noun: str, package: str):
        self._setting = setting
        self._noun = noun
        self._package = package
        self._complete = False
        self._implementations: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under each name.

        Raises:
            ValueError: another implementation has the name.
        """

        def add(implementation: T) -> T:
            for name in names:
                if self._implementations.setdefault(name, implementation) is not implementation:
                    raise ValueError(f"{self._setting}: there is a {self._noun} {name!r} already")
            return implementation

        return add

    def find(self, name: str) -> T:
        """Return the implementation called `name`, or the attribute `module:attribute`.

        Raises:
            ConfigError: there is none.
        """
        if ":" in name:
            return import_attribute(name, self._setting)
        if name not in self._implementations and name.isidentifier() and find_spec(f"{self._package}.{name}"):
            import_module(f"{self._package}.{name}")             # often enough, and faster than the whole package
        if name not in self._implementations:
            check_known(name, self, f"{self._setting}: there is no {self._noun}")
        return self._implementations[name]

    def _complete_mapping(self) -> dict[str, T]:
        if not self._complete:
            self._complete = True                # before the imports, which may use the registry
            try:
                package = import_module(self._package)
                import_modules(self._package, package.__path__)
            except BaseException:
                self._complete = False
                raise
        return self._implementations

    def __getitem__(self, name: str) -> T:
        return self._complete_mapping()[name]

    def __setitem__(self, name: str, implementation: T) -> None:
        self._complete_mapping()[name] = implementation

    def __delitem__(self, name: str) -> None:
        del self._complete_mapping()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete_mapping())

    def __len__(self) -> int:
        return len(self._complete_mapping())


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module in the folders `path` of a package, so that the implementations in it are registered."""
    for module in pkgutil.iter_modules(path, f"{package}."):
        import_module(module.name)


def import_attribute(name: str, setting: str) -> Any:
    """Return the attribute `module:attribute` that the value of a setting names.

    Raises:
        ConfigError: the module cannot be imported or has no such attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{setting} must be a name or module:attribute with a module on Python's path, got {name}: {error}"
        ) from error
