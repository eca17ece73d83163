"""What only some uses need is imported when they need it."""

from importlib import import_module
from types import ModuleType

from .errors import InputError

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import a module of one of the package's extras.

    Raises:
        InputError: it is not installed; says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(
            f"{error.name} is not installed; pip install hfnet-distill[{extra}]"
        ) from error
