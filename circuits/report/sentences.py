"""What a report says about a circuit in words."""

from circuits.circuit import Circuit
from circuits.records import Areas, Evaluation
from circuits.statistics import Likeness
from circuits.vocabulary import Universe

_TARGET, _CLOSE = 0.9, 0.1
"""The fidelity that a circuit should have, and how far its faithfulness may be from 1."""
_TRACKED = 0.9
"""From this correlation on a circuit follows which prompts have more of the behaviour; below, in part."""
_LEFT = 0.2
"""From this necessity on it is said in words that the behaviour can do without the circuit."""


def evaluation_sentences(circuit: Circuit) -> list[str]:
    """Return in words how well the circuit works, and what each number means."""
    evaluation = circuit.evaluation
    if evaluation is None:
        return ["This circuit was not evaluated on held-out prompts."]
    unit = circuit.behaviour.unit
    sentences = [
        *verdict(evaluation, circuit.method.target),
        *_likeness_sentences(evaluation),
        f"On the mean over {evaluation.n} held-out prompt pairs the circuit has a faithfulness of "
        f"{evaluation.faithfulness:.2f}, {evaluation.interval(2)}: 1 is the whole model, 0 is every edge "
        "corrupted.",
        f"Mean {circuit.behaviour.metric}: clean {evaluation.metric_clean:.2f}, circuit alone "
        f"{evaluation.metric_circuit:.2f}, all corrupted {evaluation.metric_corrupted:.2f} {unit}.",
        *_optional_sentences(evaluation),
    ]
    if evaluation.faithfulness > 1:
        sentences.append("A faithfulness above 1 means that the circuit overshoots the model; that is not better.")
    if evaluation.overshoot is not None and evaluation.overshoot > 1 + _CLOSE:
        sentences.append(
            f"On its way up the ranking overshoots: at some size its faithfulness is {evaluation.overshoot:.2f}, so "
            "that where it crosses 1 is no agreement with the model."
        )
    return sentences


def verdict(evaluation: Evaluation, target: float | None = None) -> list[str]:
    """Return in plain words what the numbers allow to be claimed; ``target`` is the fidelity looked for (0.9).

    The first words are one of *Sufficient*, *Borderline*, *Mean only* and *Not sufficient*. A circuit reaches its
    target where fidelity is as high and faithfulness is within a tenth of 1.
    """
    alike, wanted = evaluation.likeness, target or _TARGET
    if alike is None:
        return []
    said, claim = _sufficiency(evaluation, alike, wanted)
    found = [said]
    if alike.fidelity.low == alike.fidelity.high == 0:
        found.append("It does exactly what the empty circuit does: nothing in it reaches the output.")
    random = evaluation.random_baseline
    matched = random is not None and random.fidelities is not None and random.fidelities[2] >= alike.fidelity.value
    if matched:
        found.append("Random heads of the same layers do as well: these heads are not what matters.")
    if evaluation.necessity is not None and evaluation.necessity > _LEFT:
        taken = round(1 - evaluation.necessity, 2) + 0.0  # no -0%
        found.append(f"Corrupting all its edges, and only these, takes away {taken:.0%} of the mean effect.")
    found.append(_claims("" if matched else claim))
    if alike.remark:
        found.append(f"The {alike.remark}.")
    return found


def _sufficiency(evaluation: Evaluation, alike: Likeness, wanted: float) -> tuple[str, str]:
    """Return the verdict proper (is the circuit alone enough, by which numbers?) and what may be claimed, if any."""
    fidelity, numbers = alike.fidelity, f"fidelity {alike.fidelity.describe(2)} on {evaluation.n} held-out pairs"
    f, mean = evaluation.faithfulness, f"faithfulness {evaluation.faithfulness:.2f}"
    near, likely = abs(1 - f) <= _CLOSE, (fidelity.high or fidelity.value) >= wanted
    close = f"alone, on prompts like those, its metric is close to the model's on single pairs{_tracked(alike)}"
    if not near and fidelity.value >= wanted:
        said = f"Borderline: {numbers}, but its mean effect is more than a tenth off ({mean})."
        return said, f"{close}; on the mean it is too {'small' if f < 1 else 'large'}"
    if near and fidelity.low is not None and fidelity.low >= wanted:
        return f"Sufficient: {numbers}, the interval above {wanted:g}.", close
    if near and likely:
        said = f"Borderline: {numbers}; {wanted:g} is neither confirmed nor excluded, more pairs would tell."
        return said, f"{close}; whether close enough, these pairs do not tell"
    under = "below" if fidelity.high is None else "the interval below"
    below = f"{under} {wanted:g}" if not likely else f"the mean effect not within a tenth ({mean})"
    if near:
        said = f"Mean only: its mean effect is near the model's ({mean}), but single pairs are off: {numbers}, {below}."
        mean_only = "alone, it has about the model's mean effect, perhaps from errors that cancel"
        return said, f"{mean_only}; not that it is close to the model on single pairs"
    return f"Not sufficient: alone it does not reproduce the behaviour: {numbers}, {below}.", ""


def _tracked(alike: Likeness) -> str:
    """Return whether a circuit follows the differences between pairs, which a constant error in size would not show."""
    if alike.correlation is None:
        return ""
    how = "and it follows how pairs differ"
    if alike.correlation.value < _TRACKED:
        how = "but it follows how pairs differ only in part"
    return f", {how} (correlation {alike.correlation.describe(2)})"


def _claims(claim: str) -> str:
    """Return what may be claimed of a circuit, and what none of this shows."""
    if not claim:
        return "Claim nothing about its heads, MLPs and edges."
    return (
        f"You may claim: {claim}. Not shown by this: that no other circuit does it, that every part is needed, what "
        "the parts compute."
    )


def _likeness_sentences(evaluation: Evaluation) -> list[str]:
    alike = evaluation.likeness
    if alike is None:
        return []
    sentences = [
        f"Fidelity {alike.fidelity.describe(2)}: the share of what the empty circuit gets wrong, pair by pair, that "
        f"this circuit gets right (1 - error squared; error {alike.error.describe(2)})."
    ]
    if alike.correlation is not None:
        sentences.append(f"Correlation with the model's own values over pairs: {alike.correlation.describe(2)}.")
    if alike.agreement is not None:
        sentences.append(f"Circuit and model prefer the same answer on {alike.agreement.value:.0%} of the pairs.")
    if alike.kl is not None:
        sentences.append(f"Divergence of its next-token distribution from the model's: {alike.kl.describe()} nats.")
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
            f"{random.n} random circuits "
            + ("with other heads of the same layers" if random.heads else "of the same size")
            + f": median faithfulness {random.median:.2f}, 5-95 % [{random.q05:.2f}, {random.q95:.2f}]."
        )
    sentences += [_areas_sentence(areas) for areas in evaluation.areas]
    return sentences


def _areas_sentence(areas: Areas) -> str:
    parts = [] if areas.cpr is None else [f"under f of the ranking by score (CPR) {areas.cpr:.3f}, 1 at best"]
    parts += [] if areas.cmd is None else [f"under |1 - f| of the ranking by |score| (CMD) {areas.cmd:.3f}, 0 at best"]
    counted = f"{areas.edges:,} edges ({Universe(areas.universe).words})"
    return f"By the rule of the MIB benchmark, the area over shares of {counted} is {'; '.join(parts)}."


def facts(circuit: Circuit) -> list[tuple[str, str]]:
    """Return what the circuit is of and how it was found, as names and values."""
    model, behaviour, method, origin = circuit.model, circuit.behaviour, circuit.method, circuit.provenance
    known = [
        ("Model", model.id),
        ("Revision", model.revision),
        ("Weights", model.digest),
        ("Leads to", str(model.target or "")),
        ("Tokenizer", model.tokenizer_digest),
        ("Behaviour", f"{behaviour.name}, {behaviour.n_discovery} pairs for discovery, {behaviour.n_heldout} held out"),
        ("Prompts", behaviour.digest),
        ("Metric", f"{behaviour.metric} ({behaviour.unit})"),
        ("Scores", f"{method.scorer}, {'measured' if circuit.measured else 'estimated'}, {method.direction}"),
        ("Ablation", method.ablation),
        ("Pruner", method.pruner + (f", target {method.target:g}" if method.target is not None else "")),
        ("Doubts", " ".join(circuit.search.doubts) if circuit.search else ""),
        ("Seed", str(method.seed)),
        ("Numbers", method.dtype),
        ("Device", origin.device),
        ("Time", f"{origin.wall_seconds:.0f} s" if origin.wall_seconds else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))),
    ]
    return [(name, value) for name, value in known if value]
