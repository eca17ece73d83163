"""What the commands share: error messages, a progress bar, common options."""

import builtins
import functools
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from . import errors
from .errors import LOADER_KILLED, DistillError

__all__ = [
    "SettingsCommand",
    "StorePath",
    "deferred_interrupt",
    "progress",
    "say",
    "shared_options",
    "user_errors",
]

_console = Console(stderr=True)


class StorePath(click.ParamType):
    """A store's path, or its URL on object storage as a string."""

    name = "path"

    def convert(self, value, param, context):
        return value if isinstance(value, str) and "://" in value else Path(value)


class SettingsCommand(click.Command):
    """A command whose flags override keys of the same name of some tables of pipeline.toml.

    Its help shows what those keys are in the file that is shipped.
    """

    def __init__(self, *args, tables: tuple[str, ...], **kwargs):
        super().__init__(*args, **kwargs)
        self.tables = tables

    def get_help(self, ctx: click.Context) -> str:
        from .config import shipped_settings

        settings = shipped_settings()
        shipped = {"device": "auto"}
        for table in self.tables:
            shipped |= dict(getattr(settings, table))
        for option in self.params:
            value, said = shipped.get(option.name), option.help or ""
            if value not in (None, []) and not option.show_default and "[default: " not in said:
                shown = "x".join(map(str, value)) if isinstance(value, tuple) else value
                option.help = f"{said}  [default: {shown}]".strip()
        return super().get_help(ctx)


def user_errors(command: Callable) -> Callable:
    """Turn errors that a user can cause into one sentence and exit code 1 (2 for a wrong flag).

    These are what the project raises on purpose, errors of the operating system, and Ctrl-C.
    Anything else is a bug and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args, traceback: bool = False, **kwargs):
        logging.captureWarnings(True)
        logging.getLogger(__package__).addHandler(_saying)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            message = str(error) or (
                "interrupted; run the same command again to go on from what was finished"
            )
            raise click.ClickException(message) from None
        except BrokenPipeError:
            raise  # whoever read the output has seen enough; click ends without a word
        except Exception as error:
            if (said := _in_words(error)) is None:
                say("this is a bug: please report it with the traceback below")
                raise
            if traceback:
                raise
            raise click.ClickException(_printable(said)) from None

    return wrapped


class _SayingHandler(logging.Handler):
    """Says what a module wants a user to know, beside the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


_saying = _SayingHandler(logging.WARNING)


def _printable(text: str) -> str:
    """A text whose names of files may not be UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _in_words(error: Exception) -> str | None:
    """What to say of an error that a user can cause; None for a bug."""
    # An error of a loader's process, which PyTorch hides in a traceback.
    pattern = r"Caught (\w+) in DataLoader worker process.*\n[\w.]+: (.*)"
    if found := re.match(pattern, str(error), re.DOTALL):
        kind = getattr(errors, found[1], None) or getattr(builtins, found[1], None)
        if kind and issubclass(kind, (DistillError, OSError)):
            return found[2].strip()
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; free some space and run the same command again" if error.errno == 28 else ""
        return f"{where}{error.strerror}{advice}"
    if isinstance(error, DistillError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return "memory ran out; lower --batch-size, --size or the number of workers"
    if re.match(r"DataLoader worker .* is killed by signal", str(error)):
        return LOADER_KILLED
    return None


def shared_options(command: Callable) -> Callable:
    """What every command takes, as ``--config`` and ``--quiet``, and ``user_errors``."""
    options = (
        click.version_option(package_name="hfnet-distill", prog_name="hfnet-distill"),
        click.option("--device", help="auto, cpu, cuda or cuda:N."),
        click.option("--config", type=click.Path(), help="Settings; pipeline.toml if not given."),
        click.option("--quiet", is_flag=True, help="No progress bar, only errors and results."),
        click.option("--traceback", is_flag=True, help="Show where in the code an error arose."),
    )
    command = user_errors(command)
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C and SIGTERM until the end of a step.

    Yields a function that says whether one was sent; always no outside the main thread, which alone
    receives signals.
    """
    sent = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: sent.append(True))
    try:
        yield lambda: bool(sent)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(message: str, *, quiet: bool = False) -> None:
    """Print a line about the run to standard error."""
    if not quiet:
        _console.print(_printable(message), highlight=False, markup=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text("" if not task.speed else f"{task.speed:.1f}/s")


@contextmanager
def progress(
    title: str, total: int, *, done: int = 0, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time left; yields ``advance(count=1, note="")``.

    If standard error is a file, a line every half minute replaces the bar.
    """
    bar = Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=_console,
        disable=quiet or not _console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        start = said = time.monotonic()

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal said
            bar.update(task, advance=count, note=note)
            now = time.monotonic()
            if bar.disable and not quiet and now - said > 30:
                said, finished = now, round(bar.tasks[0].completed)
                rate = (finished - done) / (now - start)
                left = timedelta(seconds=round((total - finished) / rate)) if rate else "?"
                say(f"{title} {finished}/{total}, {rate:.1f}/s, {left} left {note}".rstrip())

        yield advance
