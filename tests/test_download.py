"""Downloads from a server on this machine: resumed, verified, unpacked whole or not at all."""

import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfnet_distill.download import download
from hfnet_distill.errors import DownloadError
from hfnet_distill.evaluation import cli
from hfnet_distill.evaluation.datasets import download as module
from hfnet_distill.evaluation.datasets.download import Archive, fetch_hpatches
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.files import file_digest


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, from any byte on; breaks off after ``server.limit`` bytes."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        ranged = self.headers.get("Range") if self.server.resumes else None
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        self.server.starts.append(start)
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        server.folder, server.starts, server.limit, server.resumes = folder, [], 10**9, True
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def serve(server, data: bytes) -> tuple[str, str]:
    (server.folder / "file").write_bytes(data)
    return f"{server.url}/file", f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_goes_on_where_it_broke_off(server, tmp_path, resumes):
    data = np.random.default_rng(0).bytes(5000)
    url, digest = serve(server, data)
    server.limit, server.resumes = 2000, resumes
    with pytest.raises(DownloadError, match="broke off after 2000 of 5000 bytes"):
        download(url, tmp_path / "got", digest)
    assert not (tmp_path / "got").exists()
    server.limit, came = 10**9, []
    assert download(url, tmp_path / "got", digest, advance=came.append).read_bytes() == data
    assert server.starts == [0, 2000 if resumes else 0]
    assert sum(came) == 5000
    assert download(url, tmp_path / "got", digest).read_bytes() == data
    assert len(server.starts) == 2  # it was there
    assert not list(tmp_path.glob("*.partial"))


def test_all_came_but_was_not_renamed(server, tmp_path):
    url, digest = serve(server, b"all of it")
    (tmp_path / "got.partial").write_bytes(b"all of it")
    assert download(url, tmp_path / "got", digest).read_bytes() == b"all of it"


def test_other_bytes_are_refused_and_removed(server, tmp_path):
    url, _ = serve(server, b"something else")
    with pytest.raises(DownloadError, match="gave 14 bytes with the digest"):
        download(url, tmp_path / "got", "sha256:0")
    with pytest.raises(DownloadError, match="download failed"):
        download(f"{server.url}/none", tmp_path / "got", "sha256:0")
    assert not list(tmp_path.glob("got")) + list(tmp_path.glob("got.partial"))


def test_the_id_of_a_repository(tmp_path):
    (tmp_path / "file").write_bytes(b"hello\n")  # git hash-object
    expected = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert file_digest(tmp_path / "file", "git") == expected


def make_archive(path, sequences=("i_one", "v_two"), extra=()):
    image = cv2.imencode(".ppm", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with zipfile.ZipFile(path, "w") as file:
        for sequence in sequences:
            for number in range(1, 7):
                file.writestr(f"release/{sequence}/{number}.ppm", image)
                if number > 1:
                    file.writestr(f"release/{sequence}/H_1_{number}", "1 0 0\n0 1 0\n0 0 1\n")
        for name in extra:
            file.writestr(name, "elsewhere")


def serve_archive(server, **options) -> Archive:
    path = server.folder / "sequences.zip"
    make_archive(path, **options)
    url = f"{server.url}/sequences.zip"
    return Archive(url, path.stat().st_size, f"sha256:{file_digest(path)}", sequences=2)


def test_hpatches_is_fetched_once(server, run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ARCHIVE", archive := serve_archive(server))
    monkeypatch.setattr(module, "fetch_hpatches", partial(fetch_hpatches, archive=archive))
    root = tmp_path / "data" / "hpatches"
    for _ in range(2):
        run_command(cli.evaluate, "--root", root, "--download", "--quiet")
        assert len(HPatches(root).pairs) == 10
    assert server.starts == [0]
    assert [path.name for path in root.parent.iterdir()] == ["hpatches"]


def test_names_that_lead_elsewhere_are_left_in_the_archive(server, tmp_path):
    extra = ("../1.ppm", "/tmp/v_x/1.ppm.sh", "release/../../v_evil/7.ppm", "release/README")
    fetch_hpatches(tmp_path / "root" / "hpatches", serve_archive(server, extra=extra))
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["hpatches"]
    files = [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert len(files) == 22


def test_an_archive_with_too_little_leaves_nothing(server, tmp_path):
    archive = serve_archive(server, sequences=("i_one",))
    root = tmp_path / "root" / "hpatches"
    with pytest.raises(ValueError, match="holds 1 sequences, expected 2"):
        fetch_hpatches(root, archive)
    assert not root.exists()
    assert not list(root.parent.glob("*.partial"))


def test_another_dataset_is_not_touched(server, tmp_path):
    archive = serve_archive(server)
    fetch_hpatches(tmp_path / "hpatches", archive)
    (tmp_path / "hpatches" / "i_one").rename(tmp_path / "i_one")
    with pytest.raises(FileExistsError, match="with 1 sequences instead of 2"):
        fetch_hpatches(tmp_path / "hpatches", archive)
