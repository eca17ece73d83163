"""Before an export starts: a look at every photograph, by all of its processes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import joblib

from ..console import progress, say
from ..data.images import Look, check_image
from ..errors import InputError, UnreadablePhotographError

__all__ = ["readable_names"]

THREADS = 4  # OpenCV decodes without holding Python's lock, and files may be far away
DARK = 256 // 16  # of 8 bits; what the largest value of 12 bits is in a file of 16


class _Seen(NamedTuple):
    """What a look at some photographs tells.

    Attributes:
        count: of them.
        small, dark: how many are smaller than a teacher sees them, and have no bright pixel.
        unreadable: name -> what is wrong with it.
    """

    count: int
    small: int
    dark: int
    unreadable: dict[str, str]


def readable_names(
    folder: Path,
    names: list[str],
    size: tuple[int, int],
    run: Callable[[Iterable], Iterator],
    *,
    per_task: int,
    skip: bool,
    quiet: bool,
) -> list[str]:
    """The photographs that decode, in the order given; says how many are small or dark.

    Args:
        size: (width, height) in which a teacher sees them.
        run: does joblib's tasks, in any order, such as ``workers.worker_pool`` yields.
        per_task: photographs that a process looks at before it reports.
        skip: leave out photographs that do not decode, and name each.

    Raises:
        InputError: a photograph does not decode and is not to be skipped, or none does.
    """
    small = dark = 0
    unreadable: dict[str, str] = {}
    parts = (names[start : start + per_task] for start in range(0, len(names), per_task))
    with progress("check photographs", len(names), quiet=quiet) as advance:
        for seen in run(joblib.delayed(_look)(folder, part, size) for part in parts):
            advance(seen.count)
            small += seen.small
            dark += seen.dark
            unreadable |= seen.unreadable
    if small:
        say(
            f"{small} of {len(names)} photographs are smaller than {size[0]}x{size[1]} and blurred "
            "by being enlarged; take larger ones, or see python -m hfnet_distill.data.mosaics "
            "--help",
            quiet=quiet,
        )
    if dark:
        say(
            f"{dark} of {len(names)} photographs have no pixel brighter than a sixteenth of white; "
            "where they are 16-bit files of 12-bit values, multiply those by 16",
            quiet=quiet,
        )
    if not unreadable:
        return names
    errors = [unreadable[name] for name in names if name in unreadable]
    if not skip:
        others = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{others}; or leave such out with --skip-unreadable")
    for error in errors:
        say(f"skipped: {error}")
    if len(errors) == len(names):
        raise InputError(f"{folder}: none of the {len(names)} photographs can be decoded")
    return [name for name in names if name not in unreadable]


def _look(folder: Path, names: list[str], size: tuple[int, int]) -> _Seen:
    """In a worker, or here."""
    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(partial(_look_at, folder), names))
    good = [look for look in looks if isinstance(look, Look)]
    # Enlarging by up to a twentieth does no harm, and sizes are approximate.
    small = sum(min(w / size[0], h / size[1]) < 0.95 for (w, h), _ in good)
    dark = sum(0 < look.brightest < DARK for look in good)
    looked_at = zip(names, looks, strict=True)
    unreadable = {name: look for name, look in looked_at if isinstance(look, str)}
    return _Seen(len(names), small, dark, unreadable)


def _look_at(folder: Path, name: str) -> Look | str:
    try:
        return check_image(folder / name)
    except UnreadablePhotographError as error:
        return str(error)
