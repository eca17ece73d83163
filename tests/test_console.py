"""What commands say of errors, interruptions and closed pipes."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from hfnet_distill.console import shared_options
from hfnet_distill.errors import InputError, NotFoundError


def said_of(action, code: int = 1) -> str:
    """What a command says that does this."""

    @click.command()
    @shared_options
    def command(**flags):
        action()

    result = CliRunner().invoke(command, [])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def raising(error):
    def action():
        raise error

    return action


WORKER = """Caught {name} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "fetch.py", line 55, in fetch
    data = self.dataset[index]
hfnet_distill.errors.{name}: p2.png: not a readable photograph: replace it
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a.png: too small"), "a.png: too small"),
        (OSError(28, "No space left on device", "s.zarr"), "s.zarr: No space left on device; free"),
        (InputError(WORKER.format(name="InputError")), "Error: p2.png: not a readable"),
        (NotFoundError(WORKER.format(name="NotFoundError")), "Error: p2.png: not a readable"),
        (InputError("caf\udce9.png: odd"), r"caf\xe9.png: odd"),
        (KeyboardInterrupt(), "run the same command again"),
        (KeyboardInterrupt("stopped at step 3"), "Error: stopped at step 3"),
    ],
)
def test_errors_become_a_sentence(error, message):
    assert message in said_of(raising(error))


def test_a_reader_that_has_seen_enough_is_no_error():
    assert said_of(raising(BrokenPipeError(32, "Broken pipe"))) == ""


def test_what_modules_log_is_said():
    log = logging.getLogger("hfnet_distill.data.images")
    said = said_of(lambda: log.warning("pics: %d files left out", 3), code=0)
    assert said == "pics: 3 files left out\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["import", "work"])
def test_a_signal_is_quiet_from_the_first_moment(tmp_path, number, moment):
    waiting = "print('here', flush=True); import time; time.sleep(60)"
    (tmp_path / "slow.py").write_text(waiting)
    code = (
        "import sys\n"
        "from hfnet_distill import commands\n"
        "from hfnet_distill.teacher_export import cli\n"
        "import click\n"
        "from hfnet_distill.console import shared_options\n"
        "@click.command()\n"
        "@shared_options\n"
        "def slow(**flags):\n"
        f"    {'import slow' if moment == 'import' else waiting}\n"
        "cli.export_teacher = slow\n"
        "commands.export_teacher()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    time.sleep(0.05)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert errors.startswith("Error: interrupted")
    assert errors.count("\n") <= 2


def test_help_imports_next_to_nothing():
    code = (
        "import sys\n"
        "from hfnet_distill.teacher_export import cli\n"
        "heavy = {'torch', 'cv2', 'numpy', 'zarr', 'h5py'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is for glibc")
def test_freed_memory_is_kept():
    script = """if True:
        import resource
        from hfnet_distill.commands import keep_memory
        keep_memory()
        def cleared_pages():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            b"x" * 2**27
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(cleared_pages(), cleared_pages())
    """
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    first, second = map(int, said.stdout.split())
    assert second < first / 10
