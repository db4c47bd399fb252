"""Rows of a prompt file, and pairs, that cannot be used: refused together with what is wrong, or listed."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = 3
"""How many of them one error message describes."""
UNUSABLE = "unusable.csv"
"""The file in which commands list what they left out."""
ADVICE = (
    "`circuits prompts FILE` lists every unusable row and writes the rest; --skip-unusable (in Python, "
    "`load_behaviour(path, skip_unusable=True)`) goes on without them."
)


@dataclass(frozen=True)
class Unusable:
    """What cannot be used, and why: ``source`` says where it is (``pairs.csv, line 3``), ``text`` the whole message."""

    source: str
    text: str

    @property
    def reason(self) -> str:
        """What is wrong, without the place."""
        return self.text.removeprefix(self.source).lstrip(",: ")


def in_order(problems: Iterable[Unusable]) -> tuple[Unusable, ...]:
    """Return them by the number that their place ends with, as the rows of one file follow each other."""
    return tuple(sorted(problems, key=lambda problem: int((re.search(r"\d+$", problem.source) or ["0"])[0])))


def refusal(problems: Sequence[Unusable], total: int) -> str:
    """Return the message that refuses ``total`` rows or pairs because of some of them: the first three, and advice."""
    more = len(problems) - SHOWN
    lines = [problem.text for problem in problems[:SHOWN]]
    if more > 0:
        lines.append(f"... and {more:,} more of {total:,} pairs cannot be used.")
    if len(problems) < total:
        lines.append(ADVICE)
    return "\n".join(lines)


def listing(problems: Sequence[Unusable]) -> str:
    """Return all of them as CSV text: columns ``row`` and ``reason``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "reason"])
    writer.writerows([problem.source, problem.reason] for problem in problems)
    return text.getvalue()
