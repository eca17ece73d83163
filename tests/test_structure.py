"""Who may import whom: the house's one rule about its rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"data", "teacher_export", "student", "evaluation"}
ALLOWED = {
    "data": {"data"},
    "teacher_export": {"data", "teacher_export"},
    "student": {"data", "student"},
    "evaluation": {"data", "evaluation"},
}


def imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {module.split(".")[0] for module in modules} & PACKAGES


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_keep_to_the_rule(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        allowed = PACKAGES if path.name == "extractors.py" else ALLOWED[package]
        assert imports(path) <= allowed, path
