"""Chat templates of unknown origin: rendered as transformers does, or refused in time and memory."""

import time
import tracemalloc

import pytest

from circuits.behaviours.template_trial import comes_to_an_end
from circuits.behaviours.tokens import Message, prompt_text
from circuits.errors import PromptError
from tests.tiny import tiny_tokenizer

CHAT = (Message("user", "Hello"),)
MESSAGES = [{"role": "user", "content": "Hello"}]
HOW = "add_generation_prompt"


def refused(template: object, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=message):
        prompt_text(tokenizer, CHAT)


NESTED = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


@pytest.mark.parametrize(
    "template",
    [
        NESTED,
        "{{ 'x' * 400000000 }}",
        "{{ 'x' * 99999999999 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
        "{{ 'a'.center(2000000000) }}",
        "{% set n = namespace(t='x') %}{% for a in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}" + NESTED + "{{ f() }}",
    ],
)
def test_a_template_without_end_is_refused_before_it_runs_here(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.behaviours.template_trial.CPU_SECONDS", 1)
    begun = time.monotonic()
    tracemalloc.start()
    refused(template, "chat template does not come to an end within 5 s of processor time, 1 GB of memory")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 // 0 }}", "refuses messages of the roles user .*zero"),
        ("{% include 'x' %}", "refuses messages of the roles user .*no loader"),
        ("{% import 'os' as x %}", "refuses messages of the roles user"),
        ("{% extends '/etc/passwd' %}", "refuses messages of the roles user"),
        ("{{ nothing.at.all }}", "refuses messages of the roles user"),
        ("{{ messages[7].content }}", "refuses messages of the roles user"),
        ("{% for", "refuses messages of the roles user"),
        ("{{ messages | no_filter }}", "refuses messages of the roles user"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses messages of the roles user"),
        ("{{ 5 + 'x' }}", "refuses messages of the roles user"),
        ("{{ raise_exception('only\nthis') }}", "refuses messages of the roles user .only"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses messages of the roles user"),
        ("{{ messages.append(1) }}", "refuses messages of the roles user"),
        (5, "refuses messages of the roles user"),
        ({"other": "x"}, "refuses messages of the roles user"),
    ],
)
def test_a_template_that_fails_is_refused_with_what_it_says(template: object, message: str) -> None:
    refused(template, message)


def test_a_template_is_tried_once_for_all_messages_of_the_same_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    runs: list[object] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: runs.append(args) or run(*args, **options))
    for content in ("a", "b", "c"):
        assert comes_to_an_end("{{ messages[0].content }} once", [{"role": "user", "content": content}], HOW, {})
    assert len(runs) == 1
    assert comes_to_an_end("{{ messages[0].content }} once", [{"role": "system", "content": "a"}], HOW, {})
    assert len(runs) == 2


def test_what_templates_of_known_models_use_comes_to_an_end() -> None:
    template = (
        "{%- set ns = namespace(system='') -%}{{ bos_token }}{% for m in messages %}{% if m.role == 'skip' %}"
        "{% continue %}{% endif %}{% generation %}{{ m.content | trim | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}{% if tools is not none %}x{% endif %}{{ dict(a=1).a }}"
    )
    assert comes_to_an_end(template, MESSAGES, HOW, {"bos_token": "<s>", "extra": ["x"]})
