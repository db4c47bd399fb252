"""``circuits check``: can this model be measured?"""

import typer

from circuits.cli.options import DEFAULT_MODEL, LOADING, Machine, Voice, command, then_loading
from circuits.cli.tables import facts, table


@command
def check(*, machine: Machine, voice: Voice) -> None:
    """Run the guards on a model: would measurements on it be right? Exit code 1 if not."""
    output = voice.output()
    from circuits.model import verified
    from circuits.models.loading import load_weights

    with output.progress() as progress:
        progress(LOADING, 0, 0)
        weights = load_weights(
            machine.model or DEFAULT_MODEL, device=machine.device, dtype=machine.dtype, progress=then_loading(progress)
        )
        progress("running the guards", 0, 0)
        model = verified(weights)
    passed = all(guard.passed for guard in model.guards)
    shape = model.info.shape
    heads = f"{shape.n_heads} heads" + (f" in {shape.n_kv_heads} key/value groups" if shape.grouped else "")
    output.show(
        facts(
            model.info.id,
            [
                ("architecture", f"{model.info.architecture}, {'parallel' if shape.parallel else 'sequential'} blocks"),
                ("shape", f"{shape.n_layers} layers, {heads}, d_model {shape.d_model}"),
                ("edges", f"{model.graph.n_edges:,}"),
                ("runs in", f"{model.dtype} on {model.device}"),
                ("weights", f"{model.info.digest[:16]} ({model.info.revision})"),
            ],
        ),
        table(
            "guards",
            ["guard", "error", "tolerance", ""],
            [
                [guard.name, f"{guard.error:.2g}", f"{guard.tolerance:.2g}", "passed" if guard.passed else "FAILED"]
                for guard in model.guards
            ],
            numbers=(1, 2),
        ),
    )
    for guard in model.guards:
        if not guard.passed:
            output.warn(f"{guard.name}: {guard.meaning}")
    output.finish(
        {
            "model": model.info.id,
            "passed": passed,
            "edges": model.graph.n_edges,
            "guards": [
                {"name": guard.name, "error": guard.error, "tolerance": guard.tolerance, "passed": guard.passed}
                for guard in model.guards
            ],
        }
    )
    if not passed:
        raise typer.Exit(1)
