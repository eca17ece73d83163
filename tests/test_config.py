"""pipeline.toml: what is shipped is valid, what is wrong is named."""

from pathlib import Path

import pytest

from hfnet_distill.config import load_settings, override

SHIPPED = Path(__file__).parent.parent / "pipeline.toml"


def edited(tmp_path, old: str, new: str) -> Path:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "pipeline.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_what_is_shipped_is_valid():
    settings = load_settings(SHIPPED)
    assert settings.export.size == (640, 480)
    assert settings.train.crop is None or len(settings.train.crop) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shard_size", "shard_sise", r"key export\.shard_size is missing|unknown key"),
        ('shard_size = "auto"', 'shard_size = "16"', r"export\.shard_size: .*'16'"),
        ("epochs = 40", "", r"key train\.epochs is missing"),
        ("epochs = 40", 'epochs = "30"', r"train\.epochs: .*'30'"),
        ("epochs = 40", "epochs = 0", r"train\.epochs: .*greater than or equal to 1"),
        ('size = "640x480"', 'size = "640"', r"export\.size: .*640x480"),
        ('size = "640x480"', 'size = "641x480"', "multiples of 8"),
        ("[evaluate]", "[evaluate", "not valid TOML"),
        ("[evaluate]", "[judge]", "unknown key judge"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        load_settings(edited(tmp_path, old, new))


def test_recipes_say_what_they_change(tmp_path):
    recipes = [*(SHIPPED.parent / "recipes").glob("*.toml")]
    assert recipes
    shipped = load_settings(SHIPPED)
    for recipe in recipes:
        settings = load_settings(recipe)
        assert settings.export == shipped.export
        assert settings.train != shipped.train


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.toml"):
        load_settings(tmp_path / "other.toml")


def test_flags_override_and_are_validated():
    export = load_settings(SHIPPED).export
    assert override(export, size="320x240", format=None).size == (320, 240)
    with pytest.raises(ValueError, match="batch_size"):
        override(export, batch_size=0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_does_not_matter(tmp_path, encoding):
    path = tmp_path / "marked.toml"
    path.write_bytes(SHIPPED.read_text("utf-8").replace("\n", "\r\n").encode(encoding))
    assert load_settings(path) == load_settings(SHIPPED)
