"""The direction of the arrows between modules, and the things the source text may not contain.

Rules are functions from (module name, parsed source) to complaints, so each can be shown to fire on a bad source.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import circuits
from tests.house import DOORS, imports_of

PACKAGE = Path(circuits.__file__).parent

ROWS = (
    ("errors", "reference"),
    ("guides",),
    ("files",),
    ("settings", "equality"),
    ("vocabulary",),
    ("progress",),
    ("progress_line",),
    ("elements",),
    ("graph",),
    ("builder", "numbering"),
    ("scores",),
    ("statistics",),
    ("records", "circuit"),
    ("showing",),
    ("comparison",),
    ("interchange", "diagrams"),
    ("drawing",),
    ("report",),
    ("drawing.pictures", "drawing.saved", "report.comparison_files"),
    ("report.widget",),
    ("behaviours",),
    ("metrics",),
    ("models",),
    ("recording",),
    ("tracing.plan",),
    ("adapters",),
    ("memory",),
    ("tracing",),
    ("passes",),
    ("guards",),
    ("patching", "directions.means"),
    ("model",),
    ("openings", "directions", "prompt_reading"),
    ("scoring", "pruning", "evaluation", "heads"),
    ("comparison.crossed_runs", "comparison.comparing"),
    ("ablation",),
    ("steering", "certainty", "neurons"),
    ("discovery_settings",),
    ("discovery",),
    ("cross_fitting", "rivals"),
    ("results",),
    ("campaigns",),
    ("cli",),
    ("campaigns.worker",),
    ("__init__", "__main__"),
)
"""A module imports its own unit and units of earlier rows (and neighbours in its row, but never in a circle).

A unit is a part of the package, or a module of it that has a row of its own.
"""

LIGHT = (
    "errors",
    "reference",
    "guides",
    "files",
    "vocabulary",
    "settings",
    "equality",
    "elements",
    "graph",
    "builder",
    "numbering",
    "scores",
    "statistics",
    "records",
    "circuit",
    "comparison",
    "interchange",
    "diagrams",
    "drawing",
    "report",
    "drawing.pictures",
    "drawing.saved",
    "report.comparison_files",
    "behaviours",
)
"""Units that must work without torch."""

HEAVY = ("torch", "transformers", "nnsight", "pandas", "matplotlib", "peft", "gguf", "scipy", "pygraphviz")
"""Imports that take so long that light units, the command line and ``import circuits`` may not make them at once."""

FENCED = {
    "nnsight": "circuits.tracing.tracer",
    "graphviz": "circuits.drawing.render",
    "pygraphviz": "circuits.drawing.render",
    "ray": "circuits.campaigns.ray_workers",
    "datasets": "circuits.behaviours.reading.hub_datasets",
    "submitit": "circuits.campaigns.slurm_workers",
}
TENSORS = "circuits.interchange.tensors"
"""The one module that reads and makes files of tensors as torch saves them, with ``weights_only=True``."""
PICKLING = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")

Rule = Callable[[str, ast.Module], Iterator[str]]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def unit(module: str) -> str:
    """The part of the package a module belongs to: the longest name in :data:`ROWS`, or its first name."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if row(name) is not None), parts[0] if parts else "__init__")


def row(name: str) -> int | None:
    return next((i for i, names in enumerate(ROWS) if name in names), None)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a source, functions included; ``from a import b`` gives ``a.b``."""
    return (imported.name for imported in imports_of(tree))


def imports_at_once(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported when the source is: outside functions and ``if TYPE_CHECKING``."""
    return (imported.name for imported in imports_of(tree) if imported.when == "now")


def root(imported: str) -> str:
    return imported.split(".", maxsplit=1)[0]


# -------------------------------------------------------------------------------------------------------------- rules


def imports_point_upwards(module: str, tree: ast.Module) -> Iterator[str]:
    own = row(unit(module))
    if own is None:
        yield f"{module} belongs to no row: give '{unit(module)}' a place in ROWS"
        return
    at_once = set(imports_at_once(tree))
    for imported in imports(tree):
        if imported.startswith("."):
            yield f"{module} imports {imported} relatively"
        elif imported not in at_once and any(imported.startswith(f"{door}.") for way, door in DOORS if way == module):
            continue
        elif root(imported) == "circuits":
            target = unit(imported)
            there = row(target)
            if target != unit(module) and (there is None or there > own):
                yield f"{module} imports {imported}, which is not above it"


def fenced_packages_stay_in_their_module(module: str, tree: ast.Module) -> Iterator[str]:
    for imported in imports(tree):
        home = FENCED.get(root(imported))
        if home is not None and module != home:
            yield f"{module} imports {root(imported)}; only {home} may"


def light_units_do_without_torch(module: str, tree: ast.Module) -> Iterator[str]:
    if unit(module) in LIGHT and module != TENSORS:
        yield from (f"{module} imports {name}" for name in imports(tree) if root(name) == "torch")


def heavy_packages_wait(module: str, tree: ast.Module) -> Iterator[str]:
    if unit(module) in (*LIGHT, "cli", "__init__", "__main__"):
        heavy = (name for name in imports_at_once(tree) if root(name) in HEAVY)
        yield from (f"{module} imports {name} as soon as it is imported" for name in heavy)


def errors_are_caught_by_name(module: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.walk(node.type) if node.type else [ast.Name("BaseException")]
            for name in caught:
                # The one border to other packages, which raises an error of this package for whatever they raise.
                border = module == "circuits.errors"
                if isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") and not border:
                    yield f"{module}:{node.lineno} catches {name.id}"


def nothing_is_pickled(module: str, tree: ast.Module) -> Iterator[str]:
    for imported in imports(tree):
        if root(imported) in PICKLING and (module, imported) != (TENSORS, "pickle.UnpicklingError"):
            yield f"{module} imports {imported}"
    if module == TENSORS:
        yield from _only_weights_are_read(module, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save") and module != TENSORS:
            yield f"{module}:{node.lineno} uses {ast.unparse(node)}, which pickles"
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            yield from () if ast.unparse(node.value) == "False" else (f"{module} passes {node.arg}",)
        if isinstance(node, ast.Attribute) and node.attr in ("to_pickle", "read_pickle"):
            yield f"{module}:{node.lineno} uses {node.attr}"


def _only_weights_are_read(module: str, tree: ast.Module) -> Iterator[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    for call in calls:
        if "weights_only=True" not in [ast.unparse(keyword) for keyword in call.keywords]:
            yield f"{module}:{call.lineno} uses torch.load without weights_only=True"


RULES: tuple[Rule, ...] = (
    imports_point_upwards,
    fenced_packages_stay_in_their_module,
    light_units_do_without_torch,
    heavy_packages_wait,
    errors_are_caught_by_name,
    nothing_is_pickled,
)


def modules_naming_cuda(sources: dict[str, str]) -> list[str]:
    """Modules whose code names the device kind; docstrings and comments may."""
    return [module for module, source in sources.items() if "cuda" in code_only(source)]


def code_only(source: str) -> str:
    """A source without comments and free-standing strings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ...
    return ast.unparse(tree)


# ------------------------------------------------------------------------------------------------ the package follows


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_follows_the_rule(rule: Rule) -> None:
    complaints = [text for module, source in SOURCES.items() for text in rule(module, ast.parse(source, module))]
    assert complaints == []


def test_the_text_cuda_appears_in_one_module_at_most() -> None:
    assert len(modules_naming_cuda(SOURCES)) <= 1, modules_naming_cuda(SOURCES)


def test_the_sources_that_are_checked_are_those_of_the_package() -> None:
    assert {"circuits.__init__", "circuits.graph", "circuits.patching.protocol"} <= set(SOURCES)


LIGHT_MODULES = [
    module.removesuffix(".__init__")
    for module in SOURCES
    if unit(module) in (*LIGHT, "__init__", "cli") and not module.endswith("__main__")
]


@pytest.mark.parametrize(
    "batch", [("circuits",), ("circuits.circuit",), tuple(LIGHT_MODULES)], ids=["package", "circuit", "all"]
)
def test_light_modules_are_imported_without_torch_and_nnsight(batch: tuple[str, ...]) -> None:
    assert loaded_by(f"import {', '.join(batch)}", ("torch", "nnsight", "transformers", "matplotlib", "pandas")) == []


def test_what_is_loaded_is_noticed() -> None:
    assert loaded_by("import json, circuits.circuit", ("json", "networkx", "torch")) == ["json", "networkx"]


def loaded_by(statement: str, watched: tuple[str, ...]) -> list[str]:
    code = f"import sys; {statement}; print(*[name for name in {watched} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=PACKAGE.parent)
    return done.stdout.split()


# --------------------------------------------------------------------------------------------------- each rule fires


@pytest.mark.parametrize(
    ("rule", "module", "source", "complaint"),
    [
        (imports_point_upwards, "circuits.graph", "from circuits.builder import build_graph", "circuits.builder"),
        (imports_point_upwards, "circuits.graph", "def f():\n    import circuits.scores", "circuits.scores"),
        (imports_point_upwards, "circuits.graph", "from circuits import builder", "circuits.builder"),
        (imports_point_upwards, "circuits.graph", "import circuits", "not above"),
        (imports_point_upwards, "circuits.scoring.exact", "from circuits.discovery import discover", "discovery"),
        (imports_point_upwards, "circuits.drawing.dot", "from circuits.tracing.runs import Run", "circuits.tracing"),
        (imports_point_upwards, "circuits.graph", "from circuits.nowhere import x", "circuits.nowhere"),
        (imports_point_upwards, "circuits.graph", "from . import errors", "relatively"),
        (imports_point_upwards, "circuits.utils", "", "belongs to no row"),
        (imports_point_upwards, "circuits.circuit", "from circuits.drawing.pictures import draw", "not above"),
        (
            imports_point_upwards,
            "circuits.scores",
            "def f():\n    from circuits.drawing.pictures import draw",
            "not above",
        ),
        (
            fenced_packages_stay_in_their_module,
            "circuits.tracing.runs",
            "import nnsight",
            "only circuits.tracing.tracer",
        ),
        (fenced_packages_stay_in_their_module, "circuits.cli", "def f():\n    from graphviz import Source", "render"),
        (fenced_packages_stay_in_their_module, "circuits.drawing.dot", "import pygraphviz.agraph", "render"),
        (fenced_packages_stay_in_their_module, "circuits.cli.working", "import ray", "ray_workers"),
        (fenced_packages_stay_in_their_module, "circuits.campaigns.jobs", "import submitit", "slurm_workers"),
        (
            light_units_do_without_torch,
            "circuits.behaviours.built_in.ioi",
            "def f():\n    import torch",
            "imports torch",
        ),
        (light_units_do_without_torch, "circuits.scores", "from torch.nn import Module", "torch.nn"),
        (heavy_packages_wait, "circuits.cli", "import pandas as pd", "pandas"),
        (heavy_packages_wait, "circuits.files.atomic", "try:\n    import scipy\nfinally:\n    pass", "scipy"),
        (heavy_packages_wait, "circuits.cli", "class A:\n    from torch import nn", "torch.nn"),
        (errors_are_caught_by_name, "circuits.cli", "try:\n    f()\nexcept:\n    pass", "catches BaseException"),
        (errors_are_caught_by_name, "circuits.cli", "try:\n    f()\nexcept Exception as e:\n    pass", "cli:3"),
        (
            errors_are_caught_by_name,
            "circuits.cli",
            "try:\n    f()\nexcept (OSError, Exception):\n    pass",
            "Exception",
        ),
        (nothing_is_pickled, "circuits.circuit", "import pickle", "imports pickle"),
        (nothing_is_pickled, "circuits.circuit", "from joblib import dump", "joblib"),
        (nothing_is_pickled, "circuits.models.fetching.hub", "x = torch.load(path)", "torch.load"),
        (nothing_is_pickled, "circuits.interchange.tensors", "x = torch.load(path)", "without weights_only=True"),
        (
            nothing_is_pickled,
            "circuits.interchange.tensors",
            "x = torch.load(path, weights_only=False)",
            "without weights_only",
        ),
        (nothing_is_pickled, "circuits.interchange.tensors", "import pickle", "imports pickle"),
        (nothing_is_pickled, "circuits.models.fetching.hub", "np.load(path, allow_pickle=True)", "allow_pickle"),
        (nothing_is_pickled, "circuits.models.fetching.hub", "load(path, trust_remote_code=flag)", "trust_remote_code"),
        (nothing_is_pickled, "circuits.scores", "frame.to_pickle(path)", "to_pickle"),
    ],
)
def test_a_bad_source_is_complained_about(rule: Rule, module: str, source: str, complaint: str) -> None:
    assert any(complaint in text for text in rule(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (imports_point_upwards, "circuits.builder", "from circuits.graph import Node\nfrom circuits import errors"),
        (imports_point_upwards, "circuits.pruning.minimal", "from circuits.evaluation.evaluating import ratio"),
        (imports_point_upwards, "circuits.circuit", "def f():\n    from circuits.drawing.pictures import draw"),
        (imports_point_upwards, "circuits.tracing.runs", "from circuits.tracing.plan import Plan\nimport numpy"),
        (fenced_packages_stay_in_their_module, "circuits.tracing.tracer", "import nnsight"),
        (fenced_packages_stay_in_their_module, "circuits.drawing.render", "import graphviz, pygraphviz"),
        (light_units_do_without_torch, "circuits.metrics", "import torch"),
        (heavy_packages_wait, "circuits.cli", "def f():\n    import torch"),
        (heavy_packages_wait, "circuits.cli", "if TYPE_CHECKING:\n    import torch"),
        (errors_are_caught_by_name, "circuits.cli", "try:\n    f()\nexcept (OSError, ValueError):\n    pass"),
        (nothing_is_pickled, "circuits.scores", "np.load(path, allow_pickle=False)\nload(m, trust_remote_code=False)"),
    ],
)
def test_a_good_source_is_not(rule: Rule, module: str, source: str) -> None:
    assert list(rule(module, ast.parse(source))) == []


def test_cuda_in_a_second_module_is_noticed() -> None:
    sources = {
        "device": "device = 'cuda'",
        "memory": "def f():\n    torch.cuda.empty_cache()",
        "message": "raise Absent('CUDA is absent')",
        "docstring": 'def f(device):\n    """``device`` is cpu or cuda."""  # or cuda:1',
    }
    assert modules_naming_cuda(sources) == ["device", "memory"]
