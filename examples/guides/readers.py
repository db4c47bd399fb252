"""What becomes of five collections of harmful requests as they are, for prompts.md.

    python examples/guides/readers.py DATASET [--write]

DATASET is the folder `dataset` of the code of arXiv:2406.11717 (refusal_direction), which holds collections with their
own headers, and harmless requests. Only tokens are counted, by the tokenizer of smollm2-135m: under a minute on one
processor core. No request is printed.
"""

import sys
from pathlib import Path

from figures import publish, table

import circuits

HARMLESS = "splits/harmless_test.json"
HARMFUL = (
    "raw/advbench.csv",
    "raw/harmbench_test.csv",
    "raw/jailbreakbench.csv",
    "raw/strongreject.csv",
    "splits/harmful_test.json",
)


def row(folder: Path, file: str) -> list[str]:
    """Return what becomes of one collection, paired with the harmless requests."""
    found = circuits.pair_requests(folder / file, folder / HARMLESS)
    (name, collection, _, requests, paired, dropped), _ = found.table
    differ = sorted(twins.differ for twins in found.pairs)
    return [collection, f"`{name}`", f"{requests:,}", f"{paired:,}", str(differ[len(differ) // 2]), dropped or "none"]


def main() -> None:
    """Pair each collection and publish the table."""
    folders = [each for each in sys.argv[1:] if not each.startswith("--")]
    if len(folders) != 1:
        raise SystemExit(__doc__)
    headings = ["collection", "file", "requests read", "in pairs", "differing tokens (median)", "dropped"]
    publish("prompts.md", "readers", table(headings, [row(Path(folders[0]), file) for file in HARMFUL]))


if __name__ == "__main__":
    main()
