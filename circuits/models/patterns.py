"""Regular expressions of unknown origin: does matching them come to an end?

Some take longer than the universe is old (``(a+)+$`` on thirty letters), and nothing in this process can stop a match
that has begun. So they are tried in a process of their own first, which can be.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

PATTERN_SECONDS = 5
_PLAIN = re.compile(r"[\w.\-]*")
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    print(json.dumps(pattern), flush=True)
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        continue
    for name in names:
        compiled.fullmatch(name), compiled.match(name)
"""


def slow_pattern(patterns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first pattern that takes longer than :data:`PATTERN_SECONDS` to be matched with all names, if any.

    Plain names are no patterns. What is not a regular expression at all is left to whoever compiles it.
    """
    tried = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    if not tried:
        return None
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        subprocess.run(
            command,
            input=json.dumps([tried, list(names)]),
            capture_output=True,
            text=True,
            timeout=PATTERN_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as slow:
        begun = (slow.stdout or b"").decode().splitlines()
        return json.loads(begun[-1]) if begun else tried[0]
    return None
