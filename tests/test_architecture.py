"""The architecture as a test: who may import whom, what stays pure, no stray print, nothing unused, no giant modules.

The table of rooms is the one of docs/internals.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MAX = 500

BASE = {"gfscore.ids", "gfscore.errors", "gfscore.checksum"}
# A room → the rooms of ours that it may import (itself always).
ROOMS: dict[str, set[str]] = {
    "gfscore.ids": set(),
    "gfscore.errors": {"gfscore.ids"},
    "gfscore.checksum": {"gfscore.ids"},
    "gfscore.metadata": {"gfscore.ids", "gfscore.errors"},
    "gfscore.replica": BASE,
    "gfscore.env": BASE | {"gfscore.rpc"},  # rpc: the one place that ties a real environment together
    "gfscore.storage": BASE | {"gfscore.metadata", "gfscore.replica", "gfscore.env"},
    "gfscore.proto": set(),
    "gfscore.rpc": BASE | {"gfscore.proto", "gfscore.env"},
    "gfscore.client": BASE | {"gfscore.rpc", "gfscore.proto", "gfscore.env"},
    "gfscore.server": BASE
    | {"gfscore.metadata", "gfscore.replica", "gfscore.env", "gfscore.storage", "gfscore.proto", "gfscore.rpc"},
    "gfsmount": BASE | {"gfscore.client", "gfscore.env"},
    "gfsmount.cli": BASE | {"gfsmount", "gfscore.client", "gfscore.env", "gfscore.server", "gfscore.rpc"},
}
PURE = ("gfscore.metadata", "gfscore.replica", "gfscore.ids", "gfscore.errors")
IMPURE_LIBRARIES = {
    "asyncio", "fcntl", "google", "grpc", "io", "lmdb", "logging", "mmap", "os", "pathlib", "secrets", "select",
    "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "trio", "uuid",
}  # fmt: skip
# A library → the modules (by prefix) that may import it.
ONLY_IN = {
    "grpc": ("gfscore.rpc",),
    # Ports and readiness of local processes speak to the kernel, not to our servers.
    "socket": ("gfscore.rpc", "gfsmount.localcluster.ports", "gfsmount.cli.role"),
    "google": ("gfscore.rpc", "gfscore.proto"),
    "pyfuse3": (
        "gfsmount.mount",
        "gfsmount.turns",
        "gfsmount.fuse_ops",
        "gfsmount.operations",
        "gfsmount.context",
        "gfsmount.notifier",
    ),
    "lmdb": ("gfscore.storage",),
    "click": ("gfsmount.cli",),
    "rich": ("gfsmount.cli",),
}
# Shipped for tests, ours and those of programs on the library: in-memory twins, and the checker of the metadata.
FOR_TESTS = ("gfscore.env.memory", "gfscore.rpc.memory", "gfscore.metadata.validate")
# Started by name: by pip's scripts, `python -m`, or programs that use the library.
ENTRY_POINTS = {"gfsmount.cli.main", "gfsmount.cli.__main__", "gfsmount.cli.mount_helper", "gfscore.client.sync"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("gfscore", "gfsmount")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
KNOWN = {*MODULES, "gfscore.proto.gfs_pb2"}


def imports(module: str, *, at_runtime: bool) -> Iterator[str]:
    """Full names of what `module` imports; with `at_runtime` not what only type checkers see."""
    skipped: set[ast.AST] = set()
    tree = TREES[module]
    for node in ast.walk(tree):
        if at_runtime and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in KNOWN else node.module


def room_of(module: str) -> str:
    fitting = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    assert fitting or module == "gfscore", f"{module} belongs to no room: add it to docs/internals.md and here"
    return max(fitting, key=len, default=module)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards_only(module: str) -> None:
    room = room_of(module)
    for name in imports(module, at_runtime=True):
        if not name.startswith(("gfscore", "gfsmount")):
            continue
        other = room_of(name)
        assert other == room or other in ROOMS[room], f"{module} ({room}) imports {name}"


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if name.startswith(PURE)])
def test_pure_cores_do_no_io_and_read_no_clock(module: str) -> None:
    used = {name.partition(".")[0] for name in imports(module, at_runtime=True)}
    assert not used & IMPURE_LIBRARIES
    assert not any(isinstance(node, (ast.AsyncFunctionDef, ast.Await)) for node in ast.walk(TREES[module]))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_library_stays_in_its_room(module: str) -> None:
    for name in imports(module, at_runtime=False):
        allowed = ONLY_IN.get(name.partition(".")[0])
        assert allowed is None or module.startswith(allowed), f"{module} imports {name}"


def test_families_of_fuse_operations_do_not_import_one_another() -> None:
    family = "gfsmount.fuse_ops."
    for module in MODULES:
        if module.startswith(family):
            assert not [name for name in imports(module, at_runtime=True) if name.startswith(family)], module


def test_only_the_driver_loads_pyfuse3() -> None:
    """What a host without libfuse runs must not reach pyfuse3 through any chain of imports at module level."""
    for start in ("gfsmount.cli.main", "gfsmount.cli.master", "gfsmount.cli.chunkserver", "gfsmount.cli.up"):
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            module = waiting.pop()
            if module in seen or module not in MODULES:
                continue
            seen.add(module)
            top = {name for name in imports(module, at_runtime=True) if _at_module_level(module, name)}
            assert "pyfuse3" not in top, f"{start} loads {module}, which loads pyfuse3"
            waiting += top


def _at_module_level(module: str, name: str) -> bool:
    return any(
        (isinstance(node, ast.Import) and any(alias.name == name for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module == name or name.startswith(f"{node.module}.")))
        for node in TREES[module].body
    )


def test_nothing_prints_but_the_command() -> None:
    for module, tree in TREES.items():
        if module.startswith("gfsmount.cli"):
            continue
        calls = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_print(node.func)]
        assert not calls, f"{module} prints in lines {calls}: log it"


def _is_print(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id == "print"


def test_every_module_is_imported_by_somebody() -> None:
    from gfsmount.cli.main import COMMANDS

    used = {name for module in MODULES for name in imports(module, at_runtime=False) if name != module}
    used |= ENTRY_POINTS | {f"gfsmount.cli.{module}" for module, _ in COMMANDS.values()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert not [name for name in sorted(set(MODULES) - used - packages) if not name.startswith(FOR_TESTS)]


def test_every_command_has_its_module_with_help() -> None:
    from gfsmount.cli.main import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None and command.name == name and command.help


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_small_and_say_what_they_are_for(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert source.count("\n") <= LINES_MAX
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"
