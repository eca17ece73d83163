"""Exports by several processes: of this machine, and of a Dask cluster that loses one.

The workers of this machine end when the process that started them does: tests in which they live on
show that they find it where they look.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from test_faults import digest

from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.teacher_export.check import _look
from hfnet_distill.teacher_export.cli import export_teacher
from hfnet_distill.teacher_export.workers import _fill, device_of, fill_in_workers

EXPORT = (
    sys.executable,
    "-c",
    "from hfnet_distill.teacher_export.cli import export_teacher; export_teacher()",
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list:
    """An export of SIFT's keypoints in twelve shards of two photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(24):
        image = rng.integers(0, 255, (60, 80)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), cv2.resize(image, (640, 480)))
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    config = tmp_path_factory.mktemp("config") / "small.toml"
    config.write_text(text.replace('shard_size = "auto"', "shard_size = 2"))
    return ["--model", "sift", "--images", folder, "--config", config, "--quiet"]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> dict[str, str]:
    """What one process writes, by format."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("zarr", "hdf5"):
        command = [*arguments, "--store", folder / name, "--format", name]
        export_teacher([str(part) for part in command], standalone_mode=False)
    return {name: digest(folder / name) for name in ("zarr", "hdf5")}


@pytest.fixture(autouse=True)
def pool():
    """None that other tests left: joblib cannot go on with one that it did not start."""
    get_reusable_executor().shutdown()


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_two_processes_write_what_one_writes(run_command, arguments, alone, tmp_path, format):
    store = tmp_path / "store"
    options = ("--store", store, "--format", format, "--workers", 2)
    run_command(export_teacher, *arguments, *options)
    assert digest(store) == alone[format]


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Nine photographs, of which two do not decode, one is small and one dark."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    bright = np.full((480, 640), 200, np.uint8)
    for number in range(9):
        cv2.imwrite(str(folder / f"{number}.png"), bright)
    for number in (3, 7):
        (folder / f"{number}.png").write_bytes(b"PNG")
    cv2.imwrite(str(folder / "5.png"), bright[:240])
    cv2.imwrite(str(folder / "8.png"), bright // 20)
    return folder


def check_alone_and(run_command, arguments, mixed, path, *options) -> None:
    """See that processes say of photographs what one says, and write the same store."""
    command = [*arguments[:2], "--images", mixed, *arguments[4:6]]  # says what it sees
    said, stores = [], []
    for number, more in enumerate(([], options)):
        store = path / f"store{number}"
        for skip, code in (((), 1), (("--skip-unreadable",), 0)):
            output = run_command(
                export_teacher, *command, "--store", store, *skip, *more, code=code
            )
            said.append(output.replace(str(store), "STORE"))
        stores.append(digest(store))
    assert "3.png: not a readable photograph" in said[0]
    assert "and 1 more; or leave such out with --skip-unreadable" in said[0]
    assert said[1].index("skipped: ") < said[1].index("3.png") < said[1].index("7.png")
    assert "1 of 9 photographs are smaller than 640x480" in said[1]
    assert "1 of 9 photographs have no pixel brighter" in said[1]
    assert said[:2] == said[2:]
    assert stores[0] == stores[1]
    assert RecordStore.open(store).names == [f"{number}.png" for number in (0, 1, 2, 4, 5, 6, 8)]


def test_two_processes_say_of_photographs_what_one_says(run_command, arguments, mixed, tmp_path):
    check_alone_and(run_command, arguments, mixed, tmp_path, "--workers", 2)


def test_photographs_are_looked_at_by_the_workers(run_command, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("hfnet_distill.teacher_export.check._look", _look_elsewhere)
    options = ("--store", tmp_path / "store", "--workers", 2, "--limit", 2)
    monkeypatch.setenv("PARENT", str(os.getpid()))
    run_command(export_teacher, *arguments, *options)


def _look_elsewhere(*task):
    assert os.getpid() != int(os.environ["PARENT"])
    return _look(*task)


def test_a_finished_export_has_nothing_to_do(run_command, arguments, alone, tmp_path):
    options = ("--store", tmp_path / "store", "--workers", 2)
    for _ in range(2):
        run_command(export_teacher, *arguments, *options)
    assert digest(tmp_path / "store") == alone["zarr"]


def test_a_photograph_that_breaks_meanwhile_is_named(run_command, arguments, tmp_path, monkeypatch):
    broken = Path(arguments[3]) / "17.png"
    whole = broken.read_bytes()
    # Called after every photograph was looked at and before the workers start.
    monkeypatch.setattr(
        "hfnet_distill.teacher_export.export.check_space", lambda *_: broken.write_bytes(b"PNG")
    )
    options = ("--store", tmp_path / "store", "--workers", 2)
    try:
        output = run_command(export_teacher, *arguments, *options, code=1)
    finally:
        broken.write_bytes(whole)
    assert "17.png: not a readable photograph" in output
    assert "Traceback" not in output


def test_a_worker_that_is_killed(run_command, arguments, alone, tmp_path, monkeypatch):
    monkeypatch.setattr("hfnet_distill.teacher_export.workers._fill", _die)
    options = ("--store", tmp_path / "store", "--workers", 2)
    output = run_command(export_teacher, *arguments, *options, code=1)
    assert "a worker was killed" in output
    monkeypatch.undo()
    run_command(export_teacher, *arguments, *options)
    assert digest(tmp_path / "store") == alone["zarr"]


def _die(job, numbers):
    if 11 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return _fill(job, numbers)


def test_processes_take_the_gpus_in_turn():
    assert [device_of("auto", number, 2) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cuda:1", 0, 2) == "cuda:1"
    assert [device_of("auto", 1, gpus) for gpus in (0, 1)] == ["auto", "auto"]


@pytest.mark.parametrize(
    ("batch_size", "tasks", "expected"),
    [
        (2, None, [[0], [1], [2], [4], [5], [6], [7], [9]]),
        (2, 3, [[0, 1, 2], [4, 5, 6], [7, 9]]),
        (8, None, [[0, 1, 2], [4, 5, 6, 7], [9]]),
        (3, None, [[0, 1, 2], [4, 5], [6, 7], [9]]),
        (8, 2, [[0, 1, 2, 4, 5, 6, 7], [9]]),
    ],
)
def test_no_batch_is_part_of_two_tasks(batch_size, tasks, expected):
    """Of shards of two photographs; some are done."""
    job = SimpleNamespace(settings=SimpleNamespace(batch_size=batch_size))
    store = SimpleNamespace(schema=SimpleNamespace(shard_size=2))
    found = []

    def run(delayed):
        for _, (_, numbers), _ in delayed:
            found.append(numbers)
            yield 0

    pending = [0, 1, 2, 4, 5, 6, 7, 9]
    fill_in_workers(job, store, pending, lambda count: None, run, tasks=tasks)
    assert found == expected


def test_a_cluster_cannot_write_one_hdf5_file(run_command, arguments, tmp_path):
    options = ("--store", tmp_path / "store", "--format", "hdf5", "--scheduler", "tcp://x:1")
    output = run_command(export_teacher, *arguments, *options, code=1)
    assert "several machines cannot write one HDF5 file" in output
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_when_the_export_is_killed(run_command, arguments, alone, tmp_path):
    store = tmp_path / "store"
    options = ("--store", store, "--workers", 2)
    command = [str(part) for part in (*EXPORT, *arguments, *options)]
    export = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (store / "done" / "c").is_dir())
        started = {pid for pid, parent in living().items() if parent == export.pid}
    finally:
        export.kill()
        export.wait()
    assert len(started) >= 2
    wait_until(lambda: not started & living().keys(), seconds=10)
    run_command(export_teacher, *arguments, *options)
    assert digest(store) == alone["zarr"]


def living() -> dict[int, int]:
    """The processes of this machine: id -> id of the parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(") ")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        if state not in "ZX":
            found[int(path.parent.name)] = int(parent)
    return found


def wait_until(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler on this machine, and its two workers."""
    pytest.importorskip("distributed", reason="install hfnet-distill[cluster]")
    file = tmp_path / "scheduler.json"
    common = ("--scheduler-file", file, "--no-dashboard")
    worker = ("dask", "worker", *common, "--nthreads", "1", "--no-nanny")
    commands = [
        ("dask", "scheduler", *common, "--port", "0", "--host", "127.0.0.1"),
        worker,
        worker,
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [str(Path(sys.executable).parent / program), *map(str, rest)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environment,
        )
        for program, *rest in commands
    ]
    from distributed import Client

    wait_until(file.exists)
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=60)
        address = client.scheduler.address
    yield address, processes[1:]
    for process in processes:
        process.kill()
        process.wait()


def test_a_cluster_says_of_photographs_what_one_process_says(
    cluster, run_command, arguments, mixed, tmp_path
):
    check_alone_and(run_command, arguments, mixed, tmp_path, "--scheduler", cluster[0])


def test_a_cluster_that_loses_a_worker_writes_the_same_bytes(cluster, arguments, alone, tmp_path):
    address, workers = cluster
    store = tmp_path / "store"
    command = [*EXPORT, *arguments, "--store", store, "--scheduler", address]
    export = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    done = store / "done" / "c"
    wait_until(lambda: done.is_dir() and len(list(done.iterdir())) >= 2)
    workers[0].send_signal(signal.SIGKILL)
    pending = RecordStore.open(store).pending_shards()
    _, errors = export.communicate(timeout=120)
    assert export.returncode == 0, errors
    assert pending, "the worker died too late for this to be a test"
    assert RecordStore.open(store).complete
    assert digest(store) == alone["zarr"]


def test_a_scheduler_that_does_not_answer(run_command, arguments, tmp_path):
    pytest.importorskip("distributed", reason="install hfnet-distill[cluster]")
    options = ("--store", tmp_path / "store", "--scheduler", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers" in run_command(export_teacher, *arguments, *options, code=1)
