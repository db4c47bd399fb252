"""Figures of the README and the guides: tables that a script made, put between two markers that name them.

    python examples/guides/figures.py costs.md core_operations outputs/benchmarks/core_operations.md

puts the table that a benchmark wrote into a guide. The scripts beside this one print their tables, and with ``--write``
put them into the texts that show them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


def markers(name: str) -> tuple[str, str]:
    """Return the lines between which figures stand in a text."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def placed(text: str, name: str, new: str) -> str:
    """Return a text with other figures between the two markers of a name."""
    begin, end = markers(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"the file has no lines '{begin}' and '{end}' to write the figures between.")
    return f"{before}{begin}\n\n{new.strip()}\n\n{end}{after}"


def publish(file: str, name: str, new: str) -> None:
    """Print figures; with ``--write`` on the command line also put them into a guide, or into the README."""
    print(f"\n{file}, {name}:\n\n{new.strip()}")
    if "--write" in sys.argv:
        put(file, name, new)


def put(file: str, name: str, new: str) -> None:
    """Put figures into a guide, or into the README."""
    path = (ROOT if file == "README.md" else HERE) / file
    path.write_text(placed(path.read_text("utf-8"), name, new), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: {sys.argv[0]} GUIDE.md NAME TABLE.md")
    put(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text("utf-8"))
