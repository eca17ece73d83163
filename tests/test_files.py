"""Texts as people's editors save them, and files that are whole or absent."""

import pytest

from hfnet_distill.errors import InputError, NotFoundError
from hfnet_distill.files import beside, read_text, sweep

TEXT = "a = 1\n# \u00e9\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_common_encoding_is_read(tmp_path, encoding, ending):
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\n", ending).encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


def test_others_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt: not a text .* byte 8 is 0xe9"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(NotFoundError, match=r"b\.txt: no such file"):
        read_text(tmp_path / "b.txt")


def test_an_empty_file_is_an_empty_text(tmp_path):
    (tmp_path / "a.txt").touch()
    assert read_text(tmp_path / "a.txt") == ""


def test_what_killed_writers_left_is_swept(tmp_path):
    path = tmp_path / "store[1].h5"
    for left in (beside(path), beside(tmp_path / "other.h5")):
        left.write_bytes(b"half")
    beside(path).mkdir()
    sweep(path)
    assert [entry.name.split(".")[0] for entry in tmp_path.iterdir()] == ["other"]
