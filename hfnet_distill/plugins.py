"""Plug-ins: Python files of the user that register networks, datasets, tasks or losses."""

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from .errors import InputError, NotFoundError

__all__ = ["import_plugins"]


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
