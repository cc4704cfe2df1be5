"""Imports run one way, those inside of functions too: a room knows the rooms below it, and none above."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vpexp
from vpexp.deploy.package import ROOMS as SERVED

ROOMS = (  # from the lowest to the highest
    *("errors", "registry", "files", "signals", "runtime", "console", "devices", "runfolder", "config", "tracking"),
    *("data", "visuals", "synthetic", "models", "inference", "embeddings", "evaluation", "training", "deploy"),
    *("reporting", "survey", "demo", "stages.shared", "stages"),
    *("resolve", "run", "command_line", "sweeps", "engine", "cli", "__main__"),
)


def list_imports(*, at_start: bool = False) -> dict[str, set[str]]:
    """List what each module of vpexp imports of the others, in functions too; ``at_start``: when it is imported itself."""
    root = Path(vpexp.__file__).parent
    files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items() if name != "__init__"}
    found = {}
    for module, file in modules.items():
        found[module] = set()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body if at_start else ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vpexp"):
                named = {f"{node.module}.{alias.name}".removeprefix("vpexp.") for alias in node.names}
                inner = node.module.removeprefix("vpexp").removeprefix(".")
                found[module] |= {name if name in modules else inner for name in named} & modules.keys()
    return found


def find_room(module: str) -> int:
    """Find the place of the room that a module lies in."""
    rooms = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    assert rooms, f"vpexp.{module} is in no room: name it in ROOMS"
    return ROOMS.index(max(rooms, key=len))


def test_imports__lead_down():
    edges = [(module, other) for module, others in list_imports().items() for other in others]
    assert len(edges) > 500
    assert [edge for edge in edges if find_room(edge[0]) < find_room(edge[1])] == []


def test_imports__lead_in_no_circle():
    try:
        TopologicalSorter(list_imports()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {error.args[1]}")


def test_served_code__has_all_that_it_imports():
    root, imports = Path(vpexp.__file__).parent, list_imports(at_start=True)
    files = [file.relative_to(root).with_suffix("") for room in SERVED for file in root.glob(room)]
    copied = {".".join(file.parts).removesuffix(".__init__") for file in files}
    reached, found = set(), ["deploy.serving", "inference.graph_predictor"]
    while found:
        module = found.pop()
        reached.add(module)
        found += imports[module] - reached
    assert len(reached) > 10
    assert reached <= copied
