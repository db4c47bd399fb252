"""Names for what heads do, given only where measured evidence passes stated thresholds."""

from dataclasses import asdict, dataclass

from circuits.behaviours.built_in.ioi import IO, S1, S2
from circuits.heads.evidence import HeadEvidence, Label
from circuits.heads.positions import ANSWER, WRONG
from circuits.settings import settle


@dataclass(frozen=True)
class Thresholds:
    """What evidence must reach: ``attention`` is a share of attention, ``copying`` a share of tokens.

    Random sequences of 25 tokens give a head that attends evenly about 0.03, and chance copies five tokens of the
    vocabulary, so both are far above what a head does by accident.
    """

    attention: float = 0.3
    copying: float = 0.5

    def __post_init__(self) -> None:
        settle(self)

    def as_dict(self) -> dict[str, float]:
        """Return the thresholds by name."""
        return asdict(self)


def labels_of(head: HeadEvidence, thresholds: Thresholds) -> tuple[Label, ...]:
    """Return the names whose evidence passes, each with the numbers that did.

    - previous token, duplicate token, induction: attention on random sequences reaches ``attention``;
    - copying, suppressing: reaches ``copying`` on random tokens;
    - answer mover (name mover of ioi): attention from the last position to the answer reaches ``attention``, copying of
      the answers reaches ``copying``, and the interval of the direct effect is above 0; negative mover: suppressing
      reaches ``copying``, and the interval is below 0 (Wang et al. 2022, arXiv:2211.00593);
    - wrong-answer suppressor: attention to the wrong answer (S1 and S2) reaches ``attention``, suppressing of the
      answers reaches ``copying``, and the interval is above 0;
    - S-inhibition (ioi): attention from the last position to S2 reaches ``attention``, and the circuit has an edge from
      the head into the query of a later one.
    """
    return (*_on_sequences(head, thresholds), *_copying(head, thresholds), *_on_prompts(head, thresholds))


def _on_sequences(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    scores = asdict(head.sequences)
    return [
        Label(name.replace("_", " "), f"{score:.2f} of its attention on random tokens given twice")
        for name, score in scores.items()
        if score >= thresholds.attention
    ]


def _copying(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    copying, found = head.copying, list[Label]()
    if copying.random >= thresholds.copying:
        found.append(Label("copying", f"{copying.random:.0%} of random tokens are among the five it raises most"))
    if copying.suppressing_random >= thresholds.copying:
        text = f"{copying.suppressing_random:.0%} of random tokens are among the five it lowers most"
        found.append(Label("suppressing", text))
    return found


def _on_prompts(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    return [*_mover(head, thresholds), *_suppressor(head, thresholds), *_inhibition(head, thresholds)]


def _mover(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    share = next((share for share in head.from_last if share.role in (IO, ANSWER)), None)
    if share is None or share.clean < thresholds.attention:
        return []
    name = "name mover" if share.role == IO else "answer mover"
    direct, copying = head.direct, head.copying
    effect, seen = _effect(head), f"{share.clean:.0%} of the last position's attention on {share.role}"
    if copying.answers >= thresholds.copying and direct.low > 0:
        return [Label(name, f"{seen}; copies {copying.answers:.0%} of the answers; {effect}")]
    if copying.suppressing_answers >= thresholds.copying and direct.high < 0:
        return [Label(f"negative {name}", f"{seen}; suppresses {copying.suppressing_answers:.0%} of them; {effect}")]
    return []


def _suppressor(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    share, suppressed = head.share(WRONG, S1, S2), head.copying.suppressing_answers
    if not (share >= thresholds.attention and suppressed >= thresholds.copying and head.direct.low > 0):
        return []
    seen = f"{share:.0%} of the last position's attention on the wrong answer"
    return [Label("wrong-answer suppressor", f"{seen}; suppresses {suppressed:.0%} of the answers; {_effect(head)}")]


def _effect(head: HeadEvidence) -> str:
    return f"direct effect {head.direct.mean:+.2g} [{head.direct.low:.2g}, {head.direct.high:.2g}]"


def _inhibition(head: HeadEvidence, thresholds: Thresholds) -> list[Label]:
    share = head.share(S2)
    queries = [edge for edge, _ in head.outgoing if edge.endswith("<q>")]
    if share < thresholds.attention or not queries:
        return []
    return [Label("S-inhibition", f"{share:.0%} of the last position's attention on S2; {queries[0]}")]
