"""The rooms of docs/architecture.md: who may import whom, and which third-party modules."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mnist_ray"

TOP = {"errors", "console", "__init__"}
DRAWING = {"jinja2", "markupsafe", "matplotlib"}
TABLES = {"pandas", "pyarrow", "PIL"}
DATA = {"numpy", "pyarrow", "cv2", "fsspec"}
RULES: dict[str, tuple[set[str], set[str], set[str]]] = {
    # room: rooms it may import, third-party modules at import, more inside functions
    "errors": (set(), set(), set()),
    "console": (set(), set(), {"rich"}),
    "__init__": (set(), set(), {"library"}),
    "recipes": (set(), set(), set()),
    "flags": ({"errors"}, set(), set()),
    "config": ({"console", "errors", "recipes", "flags"}, {"tyro"}, set()),
    "data": ({"errors"}, DATA, {"torchvision", "mlxtend", "filelock", "obstore", "pillow_heif", "PIL"}),
    "learn": (TOP | {"config", "recipes", "flags", "data"}, DATA | {"torch"}, {"tensorboardX"}),
    "artifact": (TOP | {"config", "recipes", "data", "learn"}, DATA | {"torch", "safetensors"}, set()),
    "scoring": (TOP | {"config", "flags", "data"}, DATA, set()),
    "report": (
        TOP | {"config", "flags", "data", "scoring"},
        DATA | {"jinja2", "markupsafe", "matplotlib"},
        {"torch", "artifact", "learn"},
    ),
    "run": (TOP | {"config", "data", "scoring", "learn.control"}, set(), {"joblib", "torch", "artifact", "learn", "report"}),
    "run/forked": ({"run", "artifact"}, {"pyarrow"}, set()),
    "cluster": (TOP | {"config", "flags", "data", "run", "scoring", "learn.control"}, set(), {"ray", "grpc", "yaml"}),
    "cluster/actors": (TOP | {"config", "data", "run", "scoring", "cluster"}, DATA | {"ray"}, set()),
    "cluster/node": ({"data"}, set(), {"torch", "yaml"}),
    "train_job": (TOP | {"config", "flags", "recipes", "data", "run", "cluster", "artifact.seal"}, set(), {"artifact"}),
    "engines": (TOP | {"config", "flags", "run", "cluster", "scoring"}, set(), {"report"}),
    "score_job": (TOP | {"config", "flags", "data", "run", "engines", "scoring", "artifact.seal"}, set(), {"report"}),
    "cli": (
        TOP | {"config", "flags", "run.lean", "run.signals"},
        {"tyro"},
        {"train_job", "score_job", "artifact", "scoring", "data", "report", "cluster.doctor", "run.forkserver", "rich"},
    ),
    "library": (
        TOP | {"config", "flags", "recipes", "run.signals"},
        {"numpy"},
        {"train_job", "score_job", "artifact", "scoring", "data"} | TABLES,
    ),
    "__main__": ({"cli"}, set(), set()),
}


def _imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether the import is inside a function or for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = str(node.module)
            names = [f"{module}.{alias.name}" for alias in node.names]
            package = PACKAGE.parent / module.replace(".", "/")
            yield from ((name if package.is_dir() else module, inside) for name in names)
        else:
            function = isinstance(node, ast.FunctionDef)
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from _imports(node, inside or function or for_types)


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_is_allowed(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    room = relative.parts[0]
    rooms, at_import, inside_functions = RULES.get(str(relative), RULES[room])
    for name, inside in _imports(ast.parse(path.read_text())):
        top, *rest = name.split(".")
        if top in sys.stdlib_module_names:
            continue
        target = ".".join(rest[:2]) if top == "mnist_ray" else top
        allowed = rooms | at_import | {room} | (inside_functions if inside else set())
        assert target.split(".")[0] in allowed or target in allowed or not target, f"{relative} imports {name}"


def test_only_dist_calls_torch_distributed() -> None:
    users = [path.name for path in _modules() if "torch.distributed" in path.read_text().replace("of torch.distributed", "")]
    assert users == ["dist.py"]


def test_only_runtime_calls_ray_init() -> None:
    assert [path.name for path in _modules() if "ray.init(" in path.read_text()] == ["runtime.py"]
