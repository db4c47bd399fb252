"""The package's structure in figures: ``python -m tests.house`` prints them, ``test_house.py`` holds them to bounds.

Sources are read, not imported, so that any folder that holds a package ``circuits`` can be measured:
``python -m tests.house FOLDER``.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import networkx as nx

ROOT = Path(__file__).parents[1]

DOORS = frozenset(
    {
        ("circuits.circuit", "circuits.drawing.pictures"),
        ("circuits.circuit", "circuits.showing"),
        ("circuits.scores", "circuits.showing"),
        ("circuits.comparison.pair", "circuits.drawing.pictures"),
        ("circuits.comparison.several", "circuits.drawing.node_map"),
    }
)
"""Late imports that are declared: the method ``draw`` of values that draw themselves, and what it opens."""

NUMBERED = ("senders_per_layer", "receivers_per_layer")
"""What places among senders and receivers are computed from."""
LONG = 60
"""Lines of a function, without its docstring, beyond which it is called long."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """What is imported, and when: as the module is (``now``), inside a function (``late``), for ``types`` only."""

    name: str
    when: str


def imports_of(tree: ast.AST) -> Iterator[Import]:
    """Every import of a source; ``from a import b`` gives ``a.b``."""
    yield from _imports(tree, "now")


def _imports(tree: ast.AST, when: str) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import("." * node.level + f"{node.module or ''}.{alias.name}", when) for alias in node.names)
        elif isinstance(node, (*_FUNCTIONS, ast.Lambda)):
            yield from _imports(node, "late" if when == "now" else when)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.body:
                yield from _imports(ast.Module([part], []), "types")
            for part in node.orelse:
                yield from _imports(ast.Module([part], []), when)
        else:
            yield from _imports(node, when)


@dataclass(frozen=True)
class House:
    """Sources by module name; ``texts`` are those of examples and guides by file."""

    sources: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def at(cls, root: Path) -> "House":
        """Read a checkout."""
        files = sorted((root / "circuits").rglob("*.py"))
        names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files]
        guides = [root / "README.md", *root.glob("examples/*.py"), *root.glob("examples/guides/**/*.*")]
        texts = {
            str(path.relative_to(root)): path.read_text("utf-8") for path in guides if path.suffix in (".py", ".md")
        }
        return cls({name: path.read_text("utf-8") for name, path in zip(names, files, strict=True)}, texts)

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """The parsed sources."""
        return {module: ast.parse(source) for module, source in self.sources.items()}

    def arrows(self, *kinds: str, doors: Iterable[tuple[str, str]] = ()) -> "nx.DiGraph[str]":
        """Return which module imports which; the face ``circuits``, which names everything for types, imports none."""
        arrows: nx.DiGraph[str] = nx.DiGraph()
        arrows.add_nodes_from(self.sources)
        for module, tree in self.trees.items():
            for imported in imports_of(tree):
                if imported.when in kinds and module != "circuits":
                    found = (self._module(imported.name),)
                    arrows.add_edges_from((module, one) for one in found if one not in ("", "circuits", module))
        arrows.remove_edges_from(list(doors))
        return arrows

    def _module(self, imported: str) -> str:
        """Return the module that an import names, itself or by what is taken from it."""
        names = (imported, imported.rpartition(".")[0])
        return next((name for name in names if name in self.sources), "")

    def circles(self, *kinds: str, doors: Iterable[tuple[str, str]] = ()) -> list[list[str]]:
        """Return the groups of modules that import each other, directly or through others."""
        groups = nx.strongly_connected_components(self.arrows(*kinds, doors=doors))
        return sorted(sorted(group) for group in groups if len(group) > 1)

    def reached(self, module: str, *kinds: str, doors: Iterable[tuple[str, str]] = ()) -> list[str]:
        """Return the modules that one imports, directly or through others; packages without own code are none."""
        found = nx.descendants(self.arrows(*kinds, doors=doors), module)
        return sorted(name for name in found if _has_code(self.trees[name]))

    def lines(self, modules: Iterable[str]) -> int:
        """Return how many lines some modules have."""
        return sum(len(self.sources[name].splitlines()) for name in modules)

    def file_names(self) -> dict[str, list[str]]:
        """Return the file names that occur more than once, with their modules."""
        return _twice((module.rpartition(".")[2], module) for module in self.sources if not self._is_package(module))

    def class_names(self) -> dict[str, list[str]]:
        """Return the public class names that occur more than once, with their modules."""
        return _twice(
            (node.name, module)
            for module, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )

    def folders(self) -> Counter[str]:
        """Return how many files each folder has, without ``__init__``."""
        return Counter(module.rpartition(".")[0] for module in self.sources if not self._is_package(module))

    def _is_package(self, module: str) -> bool:
        return any(other.startswith(module + ".") for other in self.sources)

    def functions(self) -> list[tuple[int, str]]:
        """Return every function with its lines (docstrings not counted), the longest first."""
        found = [
            (_length(node), f"{module}.{node.name}")
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, _FUNCTIONS)
        ]
        return sorted(found, reverse=True)

    def unlisted(self) -> dict[str, list[str]]:
        """Return what examples and guides import from the package past its face, by file."""
        found = {
            name: sorted(set(re.findall(r"^\s*(?:from|import) (circuits\.[\w.]+)", text, re.MULTILINE)))
            for name, text in self.texts.items()
        }
        return {name: modules for name, modules in found.items() if modules}

    def readers(self, *attributes: str) -> list[str]:
        """Return the modules in which one of some attributes is read."""
        return sorted(
            module
            for module, tree in self.trees.items()
            if any(isinstance(node, ast.Attribute) and node.attr in attributes for node in ast.walk(tree))
        )

    def docstrings(self, *words: str) -> int:
        """Return how many docstrings begin with one of some words."""
        return sum(
            (ast.get_docstring(node) or "").startswith(tuple(f"{word} " for word in words))
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        )


def _has_code(tree: ast.Module) -> bool:
    return len(tree.body) > (ast.get_docstring(tree) is not None)


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body
    documented = ast.get_docstring(function) is not None
    docstring = (body[0].end_lineno or 0) - body[0].lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def _twice(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, module in named:
        found[name].append(module)
    return {name: modules for name, modules in sorted(found.items()) if len(modules) > 1}


def table(house: House) -> Iterator[str]:
    """Return the figures, a line each."""
    every = ("now", "late", "types")
    code = house.lines(house.sources)
    circles = house.circles(*every)
    behind = house.circles(*every, doors=DOORS)
    reached, open_ = house.reached("circuits.circuit", *every), house.reached("circuits.circuit", *every, doors=DOORS)
    functions = house.functions()
    long = [each for each in functions if each[0] > LONG]
    yield f"modules {len(house.sources)}, lines {code:,}"
    yield f"circles (late and type-only imports counted) {[len(group) for group in circles]}"
    yield f"circles without the declared doors {[len(group) for group in behind]}"
    yield f"circuits.circuit reaches {len(reached)} modules, {house.lines(reached):,} lines"
    yield f"... without the declared doors {len(open_)} modules, {house.lines(open_):,} lines"
    yield f"file names twice {len(house.file_names())}: {', '.join(house.file_names())}"
    yield f"class names twice {len(house.class_names())}: {', '.join(house.class_names())}"
    yield "files by folder " + ", ".join(f"{name or '.'} {count}" for name, count in house.folders().most_common())
    yield f"functions {len(functions)}, longer than {LONG} lines {len(long)}: {', '.join(f'{n} {c}' for c, n in long)}"
    yield "longest " + ", ".join(f"{name.removeprefix('circuits.')} {count}" for count, name in functions[:5])
    yield f"examples and guides past the face {house.unlisted()}"
    yield f"places of senders and receivers are computed in {house.readers(*NUMBERED)}"
    yield f"where lower is better is told apart in {house.readers('lower_is_better')}"
    yield f"docstrings that begin Give {house.docstrings('Give')}, Say {house.docstrings('Say')}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in table(House.at(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)))
