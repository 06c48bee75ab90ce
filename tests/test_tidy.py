"""The project's shape: layout, sizes, docstrings, pure modules, words, options named in documents.

Run as a program it prints the files of the pure modules, for the coverage goal of the Makefile.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mirrorfs import config as mirrorfs_config
from xrootdfs import config as xrootdfs_config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mirrorfs", "replicator", "xrootdfs")
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "docs",
    "mirrorfs",
    "mount-scripts",
    "pyproject.toml",
    "replicator",
    "tests",
    "xrootdfs",
}
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
FORBIDDEN_IN_PURE = {
    "os", "io", "pathlib", "shutil", "socket", "subprocess", "threading", "time", "random",
    "logging", "trio", "pyfuse3", "XRootD",
}  # fmt: skip
# Written in two pieces, so that this file does not find itself.
FORBIDDEN_WORDS = re.compile(
    r"/wo"
    + r"rk/|/ro"
    + r"ot/|/ho"
    + r"me/[a-z]|deb"
    + r"ian\.org|py"
    + r"pi\.org|python"
    + r"hosted"
    r"|\bTO" + r"DO\b|\bFIX" + r"ME\b|\bX" + r"XX\b|NotImple" + r"mentedError",
)


def _tracked() -> list[Path]:
    """Files of the project: what git knows, or in an unpacked archive whatever is there."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def _python() -> list[Path]:
    return [path for path in _tracked() if path.suffix == ".py"]


def _texts() -> Iterator[tuple[Path, str]]:
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _in_package(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in PACKAGES


def pure_files() -> list[Path]:
    """Files of the modules that docs/style.md marks (P), from the contract in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    pure = next(contract for contract in contracts if contract["id"] == "pure")
    return [ROOT / f"{name.replace('.', '/')}.py" for name in pure["source_modules"]]


def test_nothing_stands_at_the_top_that_the_layout_does_not_name() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in _tracked()}
    assert found <= TOP_LEVEL


@pytest.mark.parametrize("name", sorted(TOP_LEVEL))
def test_what_the_layout_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_style_names_every_module_and_marks_the_pure_ones() -> None:
    layout = (ROOT / "docs/style.md").read_text().split("## 1.")[1].split("## 2.")[0]
    unnamed = []
    for path in _python():
        if not _in_package(path) or path.name == "__init__.py":
            continue
        package, *rest = path.relative_to(ROOT).parts
        part = layout.split(f"    {package}/")[1]
        line = re.search(rf"(?m)^ .*[ /]{re.escape('/'.join(rest))} .*$", part)
        if line is None or ("(P)" in line[0]) != (path in pure_files()):
            unnamed.append(str(path.relative_to(ROOT)))
    assert unnamed == []


def test_package_init_files_are_empty() -> None:
    full = [p for p in _python() if _in_package(p) and p.name == "__init__.py" and p.read_bytes()]
    assert full == []


def test_modules_say_what_they_are_for() -> None:
    modules = [path for path in _python() if path.name != "__init__.py"]
    assert [path for path in modules if not ast.get_docstring(_tree(path))] == []


def test_public_names_are_documented() -> None:
    bare = []
    for path in _python():
        if not _in_package(path):
            continue
        bare += [f"{path}:{node.lineno} {node.name}" for node in _public(_tree(path).body)]
    assert bare == []


def _public(
    body: list[ast.stmt],
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods without a docstring."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not _documented_elsewhere(node):
            yield node
        if isinstance(node, ast.ClassDef) and not node.bases:
            yield from _public(node.body)


def _documented_elsewhere(node: ast.AST) -> bool:
    """Setters and overloads: their first definition carries the docstring."""
    names = {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])}
    return any(name.endswith((".setter", "overload")) for name in names)


def test_functions_and_modules_stay_small() -> None:
    long = []
    for path in _python():
        lines = len(path.read_text().splitlines())
        if lines > MODULE_LINES_MAX:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    long.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def test_pure_modules_import_nothing_that_does_io() -> None:
    for path in pure_files():
        for node in ast.walk(_tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_IN_PURE, path


def test_no_words_that_belong_elsewhere() -> None:
    found = []
    for path, text in _texts():
        for number, line in enumerate(text.splitlines(), 1):
            if FORBIDDEN_WORDS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_texts_end_with_one_newline_and_have_no_trailing_blanks() -> None:
    odd = []
    for path, text in _texts():
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            odd.append(f"{path}: end")
        odd += [
            f"{path}:{n}" for n, line in enumerate(text.splitlines(), 1) if line != line.rstrip()
        ]
    assert odd == []


def test_scripts_are_executable() -> None:
    scripts = [path for path, text in _texts() if text.startswith("#!")]
    assert scripts
    assert [path for path in scripts if not path.stat().st_mode & 0o111] == []


def test_licence_is_apache() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"


def _main(program: str) -> click.Group:
    """The command group that has all the program's commands."""
    names = vars(importlib.import_module(f"{program}.cli")).values()
    groups = [value for value in names if isinstance(value, click.Group)]
    return max(groups, key=lambda group: len(_commands(group)))


def _options(command: click.Command) -> set[str]:
    """Every option of a command and of the commands below it."""
    found = {option for parameter in command.params for option in parameter.opts}
    for below in getattr(command, "commands", {}).values():
        found |= _options(below)
    return found


def _commands(command: click.Command) -> set[str]:
    return set(getattr(command, "commands", {}))


PROGRAMS = ("mirrorfs", "replicator", "xrootdfs")
OPTIONS = {"mirrorfs": mirrorfs_config.read_options, "xrootdfs": xrootdfs_config.read_options}
# Documents that speak of what exists now; a section "Planned" of theirs is left out.
DOCUMENTS = ("README.md", "docs/limits.md", "docs/design.md", "docs/install.md")


def _said(document: str) -> Iterator[str]:
    """The document's pieces of code, without what it says is planned."""
    text = (ROOT / document).read_text()
    text = re.sub(r"(?ms)^#+ [^\n]*Planned.*?(?=^#{1,2} |\Z)", "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("    "):
            yield paragraph
        else:
            yield from re.findall(r"`([^`]+)`", paragraph.replace("\n", " "))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_commands_and_options_that_exist(document: str) -> None:
    wrong = []
    for program in PROGRAMS:
        main = _main(program)
        for piece in _said(document):
            for line in re.findall(rf"(?m)^\s*(?:\$ )?{program} ([a-z].*)$", piece):
                words = line.split(" #")[0].split()
                if words[0] not in _commands(main):
                    wrong.append(f"{program} {words[0]}")
                options = {w.split("=")[0] for w in words if re.match(r"--[a-z]|-[a-zA-Z]$", w)}
                known = _options(main) | {"--help", "--version", "-h"}
                wrong += [f"{program} {line}: {option}" for option in options - known]
                if line.startswith("mount ") and "-o" in words:
                    OPTIONS[program]([words[words.index("-o") + 1]])
    assert wrong == []


if __name__ == "__main__":
    sys.stdout.write(",".join(str(path.relative_to(ROOT)) for path in pure_files()) + "\n")
