"""``circuits models`` and ``circuits behaviours``: what is built in."""

from typing import Annotated

import typer

from circuits.behaviours import BUILT_IN, load_behaviour
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Prompt
from circuits.cli.arguments import ModelOptions
from circuits.cli.command import OutputOptions, command
from circuits.cli.output import Output
from circuits.cli.tables import table

EXAMPLES = 3


@command
def models(*, output_options: OutputOptions) -> None:
    """List the built-in models."""
    output = output_options.output()
    from circuits.models.fetching.builtin import BUILT_IN as BUILT_IN_MODELS

    known = list(BUILT_IN_MODELS.values())
    output.show(
        table("built-in models", ["name", "what it is"], [[model.name, model.description] for model in known]),
        "Or a folder, a .gguf file, or a Hugging Face id of a Llama, Mistral, Qwen2 or GPT-2 model: --model NAME",
    )
    output.finish({"models": [{"name": model.name, "description": model.description} for model in known]})


@command
def behaviours(
    show: Annotated[
        str | None, typer.Option("--show", metavar="BEHAVIOUR", help="Print a few prompt pairs of it.")
    ] = None,
    *,
    model_options: ModelOptions,
    output_options: OutputOptions,
) -> None:
    """List the built-in behaviours."""
    output = output_options.output()
    if show is not None:
        _show(load_behaviour(show), model_options, output)
        return
    known = list(BUILT_IN.values())
    output.show(
        table(
            "built-in behaviours", ["name", "what the model does"], [[each.name, each.description] for each in known]
        ),
        "Examples: circuits behaviours --show NAME. Or write a prompt file of your own: circuits discover FILE.jsonl",
    )
    output.finish(
        {"behaviours": [{"name": each.name, "description": each.description, "metric": each.metric} for each in known]}
    )


def _show(behaviour: Behaviour, model_options: ModelOptions, output: Output) -> None:
    pairs = [_row(pair) for pair in _pairs(behaviour, model_options, output)[:EXAMPLES]]
    fields = ("clean", "corrupted", "answers", "wrong answers")
    output.show(
        table(
            f"{behaviour.name}: {behaviour.description}",
            ["", "text"],
            [line for pair in pairs for line in [*zip(fields, pair, strict=True), ("", "")]],
        )
    )
    output.finish(
        {
            "name": behaviour.name,
            "description": behaviour.description,
            "pairs": [
                dict(zip(("clean", "corrupted", "answers", "wrong_answers"), pair, strict=True)) for pair in pairs
            ],
        }
    )


def _pairs(behaviour: Behaviour, model_options: ModelOptions, output: Output) -> list[Pair]:
    """Make the pairs; the built-in behaviours keep only words that are single tokens of the model."""
    with output.progress() as progress:
        tokenizer = model_options.tokenizer(progress)
        return list(behaviour.pairs(tokenizer))


def _row(pair: Pair) -> tuple[str, str, str, str]:
    answers = pair.answers or tuple(map(str, pair.answer_ids))
    wrong = pair.wrong_answers or tuple(map(str, pair.wrong_ids))
    return (_text(pair.clean), _text(pair.corrupted), _listed(answers), _listed(wrong))


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{one.role}: {one.content}" for one in prompt)


def _listed(texts: tuple[str, ...]) -> str:
    return ", ".join(repr(text) for text in texts)
