"""``circuits check``: can this model be measured?"""

from typing import TYPE_CHECKING, Any

import typer
from rich.console import RenderableType

from circuits.cli.arguments import DEFAULT_MODEL, LOADING, ModelOptions, then_loading
from circuits.cli.command import OutputOptions, command
from circuits.cli.tables import facts, table

if TYPE_CHECKING:
    from circuits.guards.checks import GuardResult
    from circuits.model import Model

_WIDE = 120
"""Columns from which on it is also said what a failure of the guards that passed would mean."""


@command
def check(*, model_options: ModelOptions, output_options: OutputOptions) -> None:
    """Run the guards on a model: would measurements on it be right? Exit code 1 if not."""
    output = output_options.output()
    from circuits.guards.checks import require
    from circuits.model import verified
    from circuits.models.loading import load_weights

    with output.progress() as progress:
        progress(LOADING, 0, 0)
        weights = load_weights(
            model_options.model or DEFAULT_MODEL,
            device=model_options.device,
            dtype=model_options.dtype,
            attention=model_options.attention,
            device_map=model_options.device_map,
            packed=model_options.packed,
            progress=then_loading(progress),
        )
        progress("running the guards", 0, 0)
        model = verified(weights)
    output.show(facts(model.info.id, _facts(model)), _guard_table(model.guards, wide=output.width >= _WIDE))
    output.finish(_document(model))
    if output.as_json and not all(guard.passed for guard in model.guards):
        raise typer.Exit(1)  # the document says what failed; a second object on stdout would be one too many
    require(model.guards, model.info.id)


def _guard_table(guards: "tuple[GuardResult, ...]", *, wide: bool) -> RenderableType:
    """List what was measured; what a failure means for those that failed, and on wide terminals for all."""
    failed = sum(not guard.passed for guard in guards)
    title = f"{failed} of {len(guards)} guards FAILED" if failed else f"all {len(guards)} guards passed"
    headings = ["guard", "error", "tolerance", "", *(["a failure means"] if wide or failed else [])]
    rows = [
        [
            guard.name,
            f"{guard.error:.2g}",
            f"{guard.tolerance:.1g}",
            "passed" if guard.passed else "FAILED",
            *([guard.meaning if wide or not guard.passed else ""] if wide or failed else []),
        ]
        for guard in guards
    ]
    return table(title, headings, rows, numbers=(1, 2))


def _facts(model: "Model") -> list[tuple[str, str]]:
    """Return what is known of a model, and which adapter describes it."""
    shape, kind = model.info.shape, _model_type(model)
    if _by_name(model):
        chosen = f"for models of type '{kind}'"
    else:
        chosen = f"recognised by its modules (the type '{kind}' has no entry)"
    heads = f"{shape.n_heads} heads"
    if shape.grouped:
        heads += f" on {shape.n_kv_heads} key/value head{'s' if shape.n_kv_heads > 1 else ''}"
    return [
        ("adapter", f"{model.info.architecture}, {chosen}"),
        ("blocks", f"{shape.n_layers}, {'parallel' if shape.parallel else 'sequential'}, d_model {shape.d_model}"),
        ("attention", f"{heads}, d_head {shape.d_head} ({model.attention})"),
        ("edges", f"{model.graph.n_edges:,}"),
        ("runs in", f"{model.dtype} on {model.device}"),
        ("prefix cache", str(model.tracer.prefix_cache)),
        ("weights", f"{model.info.digest[:16]} ({model.info.revision})"),
        ("held", "expanded" if model.packing is None else model.packing.describe()),
    ]


def _document(model: "Model") -> dict[str, object]:
    return {
        "model": model.info.id,
        "passed": all(guard.passed for guard in model.guards),
        "model_type": _model_type(model),
        "adapter": model.info.architecture,
        "adapter_chosen_by": "model type" if _by_name(model) else "modules",
        "edges": model.graph.n_edges,
        "dtype": model.dtype,
        "device": model.device,
        "attention": model.attention,
        "prefix_cache": str(model.tracer.prefix_cache),
        "guards": [
            {
                "name": guard.name,
                "error": guard.error,
                "tolerance": guard.tolerance,
                "passed": guard.passed,
                "meaning": guard.meaning,
            }
            for guard in model.guards
        ],
    }


def _model_type(model: "Model") -> str:
    config: Any = model.tracer.anatomy.module.config
    return str(config.model_type)


def _by_name(model: "Model") -> bool:
    """Return whether the adapter names the model's type; otherwise it was recognised by its modules."""
    return _model_type(model) in model.tracer.anatomy.architecture.model_types
