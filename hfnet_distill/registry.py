"""Names -> networks, datasets, tasks and losses; the files in which users register their own."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import InputError, NotFoundError

__all__ = ["Registry", "import_plugins"]

Entry = TypeVar("Entry", bound=Callable)


class Registry(Generic[Entry]):
    """The classes or functions of one kind.

    Args:
        kind: what a message calls them.
        package: of the modules.
        modules: name -> the module that registers it, imported when the name is asked for.
        aliases: other name -> name.
    """

    def __init__(
        self,
        kind: str,
        package: str | None = None,
        modules: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ):
        self.kind, self.package = kind, package
        self.modules, self.aliases = modules or {}, aliases or {}
        self.entries: dict[str, Entry] = {}

    def register(self, name: str, **attributes: Any) -> Callable[[Entry], Entry]:
        """Decorator: make a class or a function known by a name, which it gets as ``name``.

        Args:
            attributes: that it gets as well.

        Raises:
            InputError: the name is taken. Defining the same class or function again is allowed.
        """

        def decorate(entry: Entry) -> Entry:
            known = self.entries.get(name, entry)
            owner = known.__module__
            if name in self.modules:  # the package's, imported or not
                owner = self._module(name)
            if (owner, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise InputError(
                    f"{self.kind} {name}: already registered by {owner}; choose another name than "
                    f"{', '.join(self.names())}"
                )
            for key, value in {"name": name, **attributes}.items():
                setattr(entry, key, value)
            self.entries[name] = entry
            return entry

        return decorate

    def names(self) -> list[str]:
        """Every registered name, those of the package first."""
        return list(dict.fromkeys([*self.modules, *self.entries]))

    def find(self, name: str) -> Entry:
        """What a name or an alias stands for.

        Raises:
            InputError: no such name; lists those there are.
        """
        name = self.aliases.get(name, name)
        if name not in self.entries and name in self.modules:
            import_module(self._module(name))
        if name not in self.entries:
            raise InputError(f"{self.kind} {name!r}: expected one of {', '.join(self.names())}")
        return self.entries[name]

    def _module(self, name: str) -> str:
        return f"{self.package}.{self.modules[name]}"


def import_plugins(files: Sequence[str | Path]) -> None:
    """Import Python files, each once in a process.

    Raises:
        NotFoundError: there is no such file.
        InputError: it cannot be imported; says why.
    """
    for file in files:
        path = Path(file).resolve()
        name = f"hfnet_distill_plugins.{path.stem}"
        if str(getattr(sys.modules.get(name), "__file__", "")) == str(path):
            continue
        if not path.is_file():
            raise NotFoundError(f"{file}: no such file; it is named as a plug-in in pipeline.toml")
        spec = spec_from_file_location(name, path)
        sys.modules[name] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{file}: the plug-in does not import: {error!r}") from error
