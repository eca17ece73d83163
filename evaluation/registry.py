"""Names -> classes, for datasets and tasks; one of another package joins by a decorator."""

from collections.abc import Callable, Mapping
from importlib import import_module

from ..errors import InputError

__all__ = ["Registry"]


class Registry:
    """The classes of one kind; a module of the package is imported when its name is asked for.

    Args:
        kind: what a message calls them.
        package: of the modules.
        modules: name -> the module that registers it.
        aliases: other name -> name.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        modules: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
    ):
        self.kind, self.package = kind, package
        self.modules, self.aliases = modules, aliases or {}
        self.classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make a class known by a name.

        Raises:
            InputError: another class has that name.
        """

        def decorate(cls: type) -> type:
            known = self.classes.setdefault(name, cls)
            if known.__qualname__ != cls.__qualname__:
                raise InputError(f"{self.kind} {name}: already registered by {known.__module__}")
            self.classes[name] = cls
            cls.name = name
            return cls

        return decorate

    def names(self) -> list[str]:
        """Every registered name, those of the package first."""
        return list(dict.fromkeys([*self.modules, *self.classes]))

    def find(self, name: str) -> type:
        """The class that a name or an alias stands for.

        Raises:
            InputError: no such name; lists those there are.
        """
        name = self.aliases.get(name, name)
        if name not in self.classes and name in self.modules:
            import_module(f".{self.modules[name]}", self.package)
        if name not in self.classes:
            raise InputError(f"{self.kind} {name!r}: expected one of {', '.join(self.names())}")
        return self.classes[name]
