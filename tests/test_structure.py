"""Who may import whom: the house's one rule about its rooms, and where Python finds them."""

import ast
import sys
from pathlib import Path

import pytest

import hfnet_distill

ROOT = Path(__file__).parent.parent
STAGES = ["teacher_export", "student", "evaluation", "deployment"]
MAY_IMPORT = {
    "hfnet_distill": {"hfnet_distill"},
    "data": {"hfnet_distill", "data"},
    "networks": {"hfnet_distill", "data", "networks"},
    **{stage: {"hfnet_distill", "data", "networks", stage} for stage in STAGES},
}
"""Room -> the rooms that its modules may import; the stages never meet."""
LAZILY = {ROOT / "hfnet_distill" / "__init__.py"}
"""What a user imports names everything, and imports none of it until it is asked for."""


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports, all of them relatively."""
    here = path.relative_to(ROOT).parts[:-1]
    here = here[1:] if here[0] == "hfnet_distill" else here
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("hfnet_distill") for alias in node.names), path
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = here[: len(here) + 1 - node.level]
            names = [*package, *(node.module or node.names[0].name).split(".")]
            rooms.add(names[0] if names[0] in MAY_IMPORT else "hfnet_distill")
        elif isinstance(node, ast.ImportFrom):
            assert not node.module.startswith("hfnet_distill"), path
    return rooms


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_keep_to_the_rule(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        if path not in LAZILY:
            assert imported_rooms(path) <= MAY_IMPORT[room], path


def test_the_package_is_all_that_is_installed():
    assert Path(hfnet_distill.__file__).parent == ROOT / "hfnet_distill"
    assert not {"data", "student", "evaluation"} & sys.modules.keys()
