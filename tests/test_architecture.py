"""The layers, the public names, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cjdask

PACKAGE = Path(cjdask.__file__).parent

LAYERS = [
    {"status", "command", "errors", "resources"},
    {"backends", "protocols"},
    {"scheduler"},
    {"monitor", "journal", "run", "jobscript"},
    {"cluster", "executor", "job"},
    {"cli", "testing"},
]
"""From the bottom up. A module may import from its own layer and from those below."""

ALONE = {"embedded", "cluster_drain", "executor_runner"}
"""Programs that run by themselves on other machines: they import nothing of the package."""

ONLY = {"dask": "cluster", "distributed": "cluster", "dask_jobqueue": "cluster"}
ONLY["paramiko"] = "protocols.paramiko"


def module_name(path: Path) -> str:
    """Return the dotted name of a module inside the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(part: str) -> int:
    """Return the layer of a top-level module of the package."""
    stem = part.split("_")[0]
    return next(i for i, layer in enumerate(LAYERS) if part in layer or stem in layer)


MODULES = {module_name(path): imports(path) for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {""}))
def test_imports_point_down(module: str) -> None:
    """A module imports from its own layer and those below, never from above."""
    own = {name.removeprefix("cjdask.") for name in MODULES[module] if name.startswith("cjdask.")}
    top = module.split(".")[0]
    if top in ALONE:
        assert not own
        return
    for imported in own:
        part = imported.split(".")[0]
        assert level(part) <= level(top), f"{module} imports {imported} from a layer above"
        if top in ("backends", "protocols") and part in ("backends", "protocols"):
            assert part == top, f"{module} imports {imported}: they are strangers to each other"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_stay_in_their_place(module: str) -> None:
    """Only the cluster imports dask, only its protocol imports paramiko."""
    for imported in MODULES[module]:
        home = ONLY.get(imported.split(".")[0])
        assert home is None or module.startswith(home), f"{module} imports {imported}"


def loaded_by(module: str) -> set[str]:
    """Return the names of all modules that importing one loads."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_is_light() -> None:
    """``import cjdask`` loads neither dask nor paramiko, nor any public name's module."""
    loaded = loaded_by("cjdask")
    assert not loaded & {"dask", "distributed", "dask_jobqueue", "paramiko", "click", "pytest"}
    assert {name for name in loaded if name.split(".")[0] == "cjdask"} == {"cjdask"}


def test_the_command_needs_no_pytest() -> None:
    """The command ``cjdask`` runs where pytest is not installed, and does not load dask."""
    loaded = loaded_by("cjdask.cli")
    assert "cjdask.testing.dialogues" in loaded
    assert not loaded & {"dask", "distributed", "pytest"}


@pytest.mark.parametrize("name", cjdask.__all__)
def test_public_names_load(name: str) -> None:
    """Every exported name can be loaded and is documented."""
    value = getattr(cjdask, name)
    assert value.__doc__
    assert name in dir(cjdask)


def test_type_checkers_see_the_same_names() -> None:
    """The names for type checkers are those that load at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names == {*cjdask.__all__, "map"}


def test_a_star_import_leaves_the_builtin() -> None:
    """``from cjdask import *`` does not replace ``map``, which ``cjdask.map`` is as well."""
    assert "map" not in cjdask.__all__
    assert cjdask.map is not map


def test_calls_need_no_dask() -> None:
    """Calls in array mode are submitted without loading dask."""
    loaded = loaded_by("cjdask.executor, cjdask.executor_backends")
    assert "cjdask.executor_array" in loaded
    assert not loaded & {"dask", "distributed", "cjdask.executor_pool"}


def test_the_side_of_the_nodes_is_light() -> None:
    """What each task of an array starts loads next to nothing."""
    code = f"import sys; sys.path[:0] = [{str(PACKAGE)!r}]; import executor_runner"
    code += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {
        "cjdask",
        "cloudpickle",
        "json",
        "pickle",
        "re",
        "typing",
    }


def test_unknown_names_are_refused() -> None:
    """A name that is not there is an AttributeError, as for any module."""
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cjdask.nonsense
