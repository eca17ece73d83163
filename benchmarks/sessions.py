"""What ONNX Runtime's session options cost: time, the processor's time, memory.

    export-onnx --model small --output small.onnx
    python benchmarks/sessions.py small.onnx

Each setting runs in a process of its own with onnxruntime and NumPy alone, as on a robot, in turn
over several rounds. Between photographs it waits, as for a camera: threads that spin then keep a
core busy.
"""

import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

ROBOT = """
import json, sys, time
import numpy as np
import onnxruntime

path, threads, spinning, count, channels, height, width = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
shape = (1, int(channels), int(height), int(width))
image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
session.run(None, {"image": image})
seconds, busy = [], time.process_time()
for _ in range(int(count)):
    start = time.perf_counter()
    session.run(None, {"image": image})
    seconds.append(time.perf_counter() - start)
    time.sleep(0.05)
busy = (time.process_time() - busy) / int(count)
status = open("/proc/self/status").read()  # getrusage also counts the process forked from
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
print(json.dumps({"ms": 1e3 * np.median(seconds), "cpu_ms": 1e3 * busy, "peak_mb": peak}))
"""


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--size", default="640x480", help="Width x height of a photograph.")
@click.option("--channels", default=1, help="Of a photograph: 1 or 3.")
@click.option("--photographs", default=20, help="Of a round.")
@click.option("--rounds", default=3)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
def main(
    model: Path, size: str, channels: int, photographs: int, rounds: int, output: Path | None
) -> None:
    """Measure a file of profile sparse."""
    width, height = size.split("x")
    settings = list(product((1, 2), (0, 1)))
    found = {setting: [] for setting in settings}
    for _, setting in product(range(rounds), settings):
        arguments = [model, *setting, photographs, channels, height, width]
        command = [sys.executable, "-c", ROBOT, *map(str, arguments)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[setting].append(json.loads(said))
    table = Table("threads", "allow_spinning", "time", "processor's time", "peak memory")
    results = []
    for (threads, spinning), rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        results.append({"threads": threads, "allow_spinning": spinning, **middle})
        numbers = (
            f"{middle['ms']:.1f} ms",
            f"{middle['cpu_ms']:.1f} ms",
            f"{middle['peak_mb']:.0f} MB",
        )
        table.add_row(str(threads), str(spinning), *numbers)
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
