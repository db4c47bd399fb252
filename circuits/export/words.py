"""What a report says about a circuit in words."""

from circuits.circuit import Circuit
from circuits.records import Areas, Evaluation
from circuits.vocabulary import Universe


def evaluation_sentences(circuit: Circuit) -> list[str]:
    """Say in words how well the circuit works, and what each number means."""
    evaluation = circuit.evaluation
    if evaluation is None:
        return ["This circuit was not evaluated on held-out prompts."]
    low, high = evaluation.faithfulness_ci
    unit = circuit.behaviour.unit
    sentences = [
        f"On {evaluation.n} held-out prompt pairs the circuit has a faithfulness of {evaluation.faithfulness:.2f}, "
        f"interval [{low:.2f}, {high:.2f}]: 1 is the whole model, 0 is every edge corrupted.",
        f"Mean {circuit.behaviour.metric}: clean {evaluation.metric_clean:.2f}, circuit alone "
        f"{evaluation.metric_circuit:.2f}, all corrupted {evaluation.metric_corrupted:.2f} {unit}.",
        *_optional_sentences(evaluation),
    ]
    if evaluation.faithfulness > 1:
        sentences.append("A faithfulness above 1 means that the circuit overshoots the model; that is not better.")
    return sentences


def _optional_sentences(evaluation: Evaluation) -> list[str]:
    sentences: list[str] = []
    if evaluation.necessity is not None:
        sentences.append(
            f"With the circuit's edges corrupted and all others kept, {evaluation.necessity:.2f} of the behaviour is "
            "left (0: the circuit is necessary)."
        )
    if evaluation.accuracy_clean is not None and evaluation.accuracy_circuit is not None:
        sentences.append(
            f"The answer beats the wrong answer on {evaluation.accuracy_clean:.0%} of the pairs in the whole model, on "
            f"{evaluation.accuracy_circuit:.0%} in the circuit."
        )
    random = evaluation.random_baseline
    if random is not None:
        sentences.append(
            f"{random.n} random circuits of the same size: median faithfulness {random.median:.2f}, 5-95 % "
            f"[{random.q05:.2f}, {random.q95:.2f}]."
        )
    sentences += [_areas_sentence(areas) for areas in evaluation.areas]
    return sentences


def _areas_sentence(areas: Areas) -> str:
    parts = [] if areas.cpr is None else [f"under f of the ranking by score (CPR) {areas.cpr:.3f}, 1 at best"]
    parts += [] if areas.cmd is None else [f"under |1 - f| of the ranking by |score| (CMD) {areas.cmd:.3f}, 0 at best"]
    counted = f"{areas.edges:,} edges ({Universe(areas.universe).words})"
    return f"By the rule of the MIB benchmark, the area over shares of {counted} is {'; '.join(parts)}."


def facts(circuit: Circuit) -> list[tuple[str, str]]:
    """Give what the circuit is of and how it was found, as names and values."""
    model, behaviour, method, origin = circuit.model, circuit.behaviour, circuit.method, circuit.provenance
    known = [
        ("Model", model.id),
        ("Revision", model.revision),
        ("Weights", model.digest),
        ("Tokenizer", model.tokenizer_digest),
        ("Behaviour", f"{behaviour.name}, {behaviour.n_discovery} pairs for discovery, {behaviour.n_heldout} held out"),
        ("Prompts", behaviour.digest),
        ("Metric", f"{behaviour.metric} ({behaviour.unit})"),
        ("Scores", f"{method.scorer}, {'measured' if circuit.measured else 'estimated'}, {method.direction}"),
        ("Ablation", method.ablation),
        ("Pruner", method.pruner + (f", target {method.target:g}" if method.target is not None else "")),
        ("Seed", str(method.seed)),
        ("Numbers", method.dtype),
        ("Device", origin.device),
        ("Time", f"{origin.wall_seconds:.0f} s" if origin.wall_seconds else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))),
    ]
    return [(name, value) for name, value in known if value]
