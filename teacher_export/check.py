"""Before an export starts: a look at every photograph, by all of its processes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib

from ..console import progress, say
from ..data.images import Look, check_image
from ..errors import InputError, UnreadablePhotographError

__all__ = ["readable_names"]

THREADS = 4  # OpenCV decodes without holding Python's lock, and files may be far away
DARK = 256 // 16  # of 8 bits; what the largest value of 12 bits is in a file of 16


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
        for looks in run(joblib.delayed(_look)(folder, part) for part in parts):
            advance(len(looks))
            for name, look in looks:
                if isinstance(look, str):
                    unreadable[name] = look
                    continue
                # Enlarging by up to a twentieth does no harm, and sizes are approximate.
                small += any(s < 0.95 * own for s, own in zip(look.size, size, strict=True))
                dark += 0 < look.brightest < DARK
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


def _look(folder: Path, names: list[str]) -> list[tuple[str, Look | str]]:
    """In a worker, or here: each name with what a look at it tells, or with what is wrong."""

    def look_at(name: str) -> tuple[str, Look | str]:
        try:
            return name, check_image(folder / name)
        except UnreadablePhotographError as error:
            return name, str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(look_at, names))
