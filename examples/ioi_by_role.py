"""Find the circuit of ioi with edges by token role, and hold it against the one with whole edges.

python examples/ioi_by_role.py [--quick] [--search]

An edge by role (``a9.h3->a12.h1<q>@end``) is kept at the tokens of one role and corrupted at all others. Prints the
fidelity of the best edges of both rankings on held-out pairs; with ``--search`` also the smallest circuits that reach a
fidelity of 0.9 on pairs of their own, and draws the one by role. A whole edge counts as one edge, and as one place for
each role at which it carries anything: what comes before the token that differs is the same in both prompts.
"""

import sys
import time
from pathlib import Path

import numpy as np

import circuits

QUICK, SEARCH = "--quick" in sys.argv, "--search" in sys.argv
PAIRS, HELDOUT = (4, 4) if QUICK else (64, 64)
SIZES = (50, 200) if QUICK else (50, 100, 200, 400, 800, 1600, 3200)
FOLDER = Path("outputs/examples")


def ranking(model: circuits.Model, prompts: circuits.PromptSet) -> tuple[circuits.EdgeScores, list[float]]:
    """Return scores on the discovery pairs, and the fidelity of the best edges by size on the held-out pairs."""
    scores = circuits.score(model.experiment(prompts.discovery), "eap-ig")
    heldout, ranked = model.experiment(prompts.heldout), scores.ranked(by_magnitude=True)
    values = heldout.circuits([model.graph.mask(np.sort(ranked[:size])) for size in SIZES])
    wrong = np.square(values - heldout.clean).mean(axis=1) / np.square(heldout.corrupted - heldout.clean).mean()
    return scores, (1 - wrong).tolist()


def main() -> None:
    """Print the table of the rankings, and search if that is wanted."""
    model, behaviour = circuits.load_model("smollm2-135m"), circuits.load_behaviour("ioi")
    prompts = behaviour.prompts(model.tokenizer, discovery=PAIRS, heldout=HELDOUT)
    by_role = model.by_role(circuits.role_names(prompts.discovery))
    plain_scores, plain = ranking(model, prompts)
    scores, found = ranking(by_role, prompts)
    worst = np.abs(scores.by_role.sum(axis=0) - plain_scores.values).max() / np.abs(plain_scores.values).max()
    print(f"roles: {', '.join(by_role.info.roles)}; {scores.cancelling:.0%} of |score| cancels over roles")
    print(f"the scores of the roles sum to those of whole edges to {worst:.1e} of the largest")
    carried, ranked = np.count_nonzero(scores.by_role, axis=0), plain_scores.ranked(by_magnitude=True)
    print("\nbest by |eap-ig|   whole edges: fidelity   (places)   edges by role: fidelity")
    for size, whole, role in zip(SIZES, plain, found, strict=True):
        print(f"{size:>17,}   {whole:>21.3f}   {carried[ranked[:size]].sum():>8,}   {role:>23.3f}")
    if SEARCH:
        for wanted in (False, True):
            search(model, behaviour, carried, by_role=wanted)


def search(model: circuits.Model, behaviour: circuits.Behaviour, carried: np.ndarray, *, by_role: bool) -> None:
    """Search the smallest circuit with a fidelity of 0.9, with whole edges or by role; print, save and draw it."""
    begun, name = time.monotonic(), f"ioi{'_by_role' if by_role else ''}"
    settings = circuits.DiscoverySettings(by_role=by_role, pairs=PAIRS, heldout=HELDOUT, sample=0)
    circuit = circuits.discover(model, behaviour, settings).circuit
    evaluation, edges = circuit.evaluation, {str(edge).partition("@")[0] for edge in circuit}
    assert evaluation is not None
    assert evaluation.likeness is not None
    places = len(circuit) if by_role else int(carried[circuit.edges].sum())
    print(f"\n{name}: {places:,} places of {len(edges):,} edges among {len(circuit.nodes)} nodes")
    print(f"  fidelity {evaluation.likeness.fidelity.describe(3)}, faithfulness {evaluation.faithfulness:.3f}")
    print(f"  on {evaluation.n} held-out pairs; {time.monotonic() - begun:.0f} s")
    FOLDER.mkdir(parents=True, exist_ok=True)
    circuit.save(FOLDER / f"{name}.json")
    circuit.draw(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
