"""The pages of documentation: links lead somewhere, commands have the flags that are shown."""

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from hfnet_distill.config import shipped_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("networks/packaged/*.md")]
STAGES = {
    "export-teacher": "teacher_export",
    "train-teacher": "teacher_export",
    "train-student": "student",
    "evaluate": "evaluation",
    "extract-features": "deployment",
    "export-onnx": "deployment",
    "live-features": "deployment",
}
"""Command -> the stage that has it in its ``cli.py``."""


def _anchors(page: Path) -> set[str]:
    """Those that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _flags(command: str) -> set[str]:
    module = import_module(f"hfnet_distill.{STAGES[command]}.cli")
    parameters = getattr(module, command.replace("-", "_")).params
    return {"--help", "--version", *(flag for p in parameters for flag in p.opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_that_are_shown(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))  # a command on several lines
    for line in text.splitlines():
        shown = re.search(rf"(?<![\w/-])({'|'.join(STAGES)}) (.*)", re.sub(r"\s# .*", "", line))
        if shown:
            arguments = re.split(r"[`;|]", shown[2])[0]
            assert set(re.findall(r"--[a-z0-9-]+", arguments)) <= _flags(shown[1]), line


@pytest.mark.parametrize("command", [name for name in STAGES if name != "live-features"])
def test_help_shows_what_a_flag_is_where_it_is_not_given(command):
    module = import_module(f"hfnet_distill.{STAGES[command]}.cli")
    parser = getattr(module, command.replace("-", "_"))
    shipped = {"device": "auto"}
    for table in parser.tables:
        shipped |= dict(getattr(shipped_settings(), table))
    context = click.Context(parser)
    for _ in range(2):  # asked twice it says the same
        parser.get_help(context)
    for parameter in parser.params:
        value = shipped.get(parameter.name)
        if isinstance(value, str | int | float):
            names, text = parameter.get_help_record(context)
            assert text.count(f"[default: {value}]") == 1, names
