"""Chat templates of unknown origin: does rendering one come to an end, in a length that can be used?

A template is a program. Its loops, its ``'x' * 10**9`` and its ``10**10**9`` cannot be stopped once they run in this
process, so a template is tried in a process of its own first, with limits that its system enforces. This file is both:
what starts that process, and what runs in it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

CPU_SECONDS, WALL_SECONDS = 5, 120
MEMORY = 1 << 30
MOST_CHARACTERS = 10_000_000
_UNENDING = 9
LIMITS = f"{CPU_SECONDS} s of processor time, 1 GB of memory, {MOST_CHARACTERS // 10**6} million characters"


def comes_to_an_end(template: str, messages: Sequence[Mapping[str, str]], how: str, tokens: Mapping[str, Any]) -> bool:
    """Return whether a chat template renders messages within :data:`LIMITS`.

    ``how`` is the option that is set (``add_generation_prompt``), ``tokens`` are the texts of special tokens. Tried
    once for each template and order of roles, which costs about 0.2 s. A template that fails comes to an end, too.
    """
    roles = tuple(message["role"] for message in messages)
    texts = {name: text for name, text in tokens.items() if isinstance(text, str)}
    task = json.dumps({"template": template, "how": how, "tokens": texts, "seconds": CPU_SECONDS}, sort_keys=True)
    return _Trial(task, roles, json.dumps(list(map(dict, messages)))).passed


class _Trial:
    """One trial; equal to others of the same template and roles, whatever the messages say."""

    def __init__(self, task: str, roles: tuple[str, ...], messages: str) -> None:
        self._key, self.task, self.messages = (task, roles), task, messages

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def passed(self) -> bool:
        """Whether it passed, now or before."""
        return _passed(self)


@lru_cache(maxsize=256)
def _passed(trial: _Trial) -> bool:
    command = [sys.executable, "-P", str(Path(__file__)), trial.task]
    try:
        ended = subprocess.run(
            command, input=trial.messages, capture_output=True, text=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


def _limit(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on this system; the time on the wall is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _render() -> int:
    """Render the template of the command line with the messages of standard input, as transformers does."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja has it

        def parse(self, parser: Any) -> Any:
            parser.stream.skip()
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def today(form: str) -> str:
        return time.strftime(form)

    task = json.loads(sys.argv[1])
    messages = json.load(sys.stdin)
    _limit(task["seconds"])
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    cast("dict[str, Any]", environment.globals).update({"raise_exception": refuse, "strftime_now": today})
    context = {"messages": messages, "tools": None, "documents": None, task["how"]: True} | task["tokens"]
    length = 0
    for piece in environment.from_string(task["template"]).generate(context):
        length += len(piece)
        if length > MOST_CHARACTERS:
            return _UNENDING
    return 0


def _main() -> int:
    from jinja2 import TemplateError

    try:
        return _render()
    except MemoryError:
        return _UNENDING
    except (TemplateError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError):
        return 0  # it comes to an end; whoever renders it in earnest tells what it raised


if __name__ == "__main__":
    sys.exit(_main())
