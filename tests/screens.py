"""What a command shows on a terminal of some width while it works, and its estimates against what came.

    python -m tests.screens [--columns 80] [--at 0.1 0.25 0.5 0.75 0.9] -- discover ioi --out /tmp/found

Runs the command in a real pseudo-terminal and notes each time its line of progress changes. Prints the lines at these
shares of its time, with the seconds that were told to be left and those that were; the longest line; whether the share
ever went back; and the screen at the end.
"""

import argparse
import os
import pty
import re
import struct
import sys
import termios
import time
from fcntl import ioctl
from itertools import pairwise
from typing import NamedTuple

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEFT = re.compile(r"about (\d+) (s|min|h) left")
_SHARE = re.compile(r"(\d+) ?%")
_UNITS = {"s": 1, "min": 60, "h": 3600}


class Line(NamedTuple):
    """A line that the terminal showed, and when, in seconds from the start."""

    at: float
    text: str

    @property
    def left(self) -> int | None:
        """How many seconds the line says are left; None where it says nothing."""
        found = _LEFT.search(self.text)
        return int(found[1]) * _UNITS[found[2]] if found else None

    @property
    def share(self) -> int | None:
        """How many percent the line says are done."""
        found = _SHARE.search(self.text)
        return int(found[1]) if found else None


def shown(words: list[str], columns: int) -> tuple[list[Line], int]:
    """Return every line that a command shows on a terminal with so many columns, and its exit code."""
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        os.execv(sys.executable, [sys.executable, "-m", "circuits", *words])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    begun, lines, rest = time.monotonic(), list[Line](), ""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the end of a pseudo-terminal
            break
        if not data:
            break
        *whole, rest = re.split(r"[\r\n]+", rest + _ESCAPE.sub("", data.decode(errors="replace")))
        lines += [Line(time.monotonic() - begun, each.rstrip()) for each in whole if each.strip()]
    return lines, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def say(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Run a command, and print what it showed."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--columns", type=int, default=80)
    told.add_argument("--at", type=float, nargs="+", default=[0.1, 0.25, 0.5, 0.75, 0.9])
    told.add_argument("words", nargs="+")
    given = told.parse_args()
    lines, code = shown(given.words, given.columns)
    bars, end = [line for line in lines if line.share is not None and "stage" in line.text], lines[-1].at
    say(f"{' '.join(given.words)}: exit code {code} after {end:.1f} s, at {given.columns} columns")
    for share in given.at:
        line = next((each for each in bars if each.at >= share * end), None)
        if line is not None:
            told_left = "nothing" if line.left is None else f"{line.left} s"
            say(f"{line.at:7.1f} s: {line.text}\n{'':9} {told_left} told, {end - line.at:.1f} s came")
    shares = [line.share for line in bars if line.share is not None]
    back = sum(after < before for before, after in pairwise(shares))
    longest = max((len(line.text) for line in lines), default=0)
    say(f"{len(bars)} lines of progress, the share went back {back} times; longest line {longest} characters")
    last = max((i for i, line in enumerate(lines) if line in bars), default=-1)
    say("\n".join(line.text for line in lines[last + 1 :]))


if __name__ == "__main__":
    main()
