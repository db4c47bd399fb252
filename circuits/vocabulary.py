"""The closed sets of names that the command line, the files and the library share."""

from circuits.errors import UsageError
from circuits.settings import Choice


class Metric(Choice):
    """What is measured on the next-token logits: one number per prompt."""

    LOGIT_DIFFERENCE = "logit-difference"
    """Log of the answers' total probability over that of the wrong answers; one token each: the logits' difference."""
    MEAN_LOGIT_DIFFERENCE = "mean-logit-difference"
    """Mean logit of the answers minus mean logit of the wrong answers."""
    LOG_ODDS = "log-odds"
    """log p - log(1 - p) with p the total probability of the answers."""
    PROBABILITY_DIFFERENCE = "probability-difference"
    """Total probability of the answers minus that of the wrong answers."""
    LOG_PROBABILITY = "log-probability"
    """Log of the answers' total probability."""
    SEQUENCE = "sequence"
    """Mean log probability of the answers, each a sequence of tokens, minus that of the wrong answers."""
    PROJECTION = "projection"
    """Length of the final residual stream, after its norm, along the difference of clean and corrupted means."""
    KL = "kl"
    """Kullback-Leibler divergence from the clean run's next-token distribution, in nats; lower is better."""

    @property
    def lower_is_better(self) -> bool:
        """Whether clean behaviour is the small end of the scale."""
        return self is Metric.KL

    @property
    def sign(self) -> int:
        """1, or -1 where lower is better: times a difference, clean minus other, it is what the behaviour loses."""
        return -1 if self.lower_is_better else 1

    @property
    def compares(self) -> bool:
        """Whether answers are compared with wrong answers: above 0 the model prefers the answers."""
        return self in (Metric.LOGIT_DIFFERENCE, Metric.MEAN_LOGIT_DIFFERENCE, Metric.PROBABILITY_DIFFERENCE)

    @property
    def signed(self) -> bool:
        """Whether above 0 the answers are more likely than what they are compared with."""
        return self.compares or self is Metric.LOG_ODDS

    @property
    def needs_answers(self) -> bool:
        """Whether pairs must have answers."""
        return not (self.against_clean or self.along_direction)

    @property
    def against_clean(self) -> bool:
        """Whether a run is compared with the clean one, at which the metric then is 0 and has no slope."""
        return self is Metric.KL

    @property
    def along_direction(self) -> bool:
        """Whether a direction is read, which reference pairs give, in place of logits."""
        return self is Metric.PROJECTION

    @property
    def whole_answers(self) -> bool:
        """Whether answers may be of several tokens."""
        return self is Metric.SEQUENCE

    @property
    def of_answers_only(self) -> bool:
        """Whether no logits are read but those of answers and wrong answers."""
        return self is Metric.LOGIT_DIFFERENCE

    @property
    def unit(self) -> str:
        """The unit of the metric's values."""
        units = {Metric.PROBABILITY_DIFFERENCE: "probability", Metric.PROJECTION: "length"}
        return units.get(self, "nats")


class Ablation(Choice):
    """What replaces the value of a sender on a corrupted edge."""

    CORRUPTED = "corrupted"
    """Its value in the pair's corrupted prompt."""
    RESAMPLE = "resample"
    """Its value in the corrupted prompt of another pair of the same length, drawn once for each pair."""
    MEAN = "mean"
    """Its mean over all tokens of the corrupted prompts of reference pairs."""
    MEAN_BY_POSITION = "mean-by-position"
    """The same for each position, counted from the beginning of the prompt."""
    MEAN_BY_TEMPLATE = "mean-by-template"
    """The same for each position, over reference pairs of the pair's own template."""
    OPTIMAL = "optimal"
    """A constant that is learned on reference pairs: the one that disturbs the model's predictions least."""
    ZERO = "zero"

    @property
    def by_runs(self) -> bool:
        """Whether the values of all senders are from one run of the model."""
        return self in (Ablation.CORRUPTED, Ablation.RESAMPLE)

    @property
    def by_means(self) -> bool:
        """Whether reference pairs are needed."""
        return self in (Ablation.MEAN, Ablation.MEAN_BY_POSITION, Ablation.MEAN_BY_TEMPLATE, Ablation.OPTIMAL)


class Universe(Choice):
    """How the edges into keys and values are counted where a share of all edges is meant."""

    GROUP = "group"
    """One for the keys and one for the values of each key/value group: what the model computes, and this graph has."""
    QUERY_HEAD = "query-head"
    """One of each for every query head that reads the group, as EAP-IG and MIB count."""

    @property
    def words(self) -> str:
        """How it is said with a number of edges."""
        return {"group": "keys and values per group", "query-head": "keys and values per query head"}[self.value]


class Align(Choice):
    """By what the sides of a pair are aligned where they differ in length; see :mod:`circuits.behaviours.alignment`."""

    SUFFIX = "suffix"
    """What both sides end with, and what both begin with."""
    ROLES = "roles"
    """The roles of token positions that the pair names on both sides."""


class Direction(Choice):
    """Noising corrupts one edge of the clean run; denoising restores one edge of the corrupted run."""

    NOISING = "noising"
    DENOISING = "denoising"


class ScorerName(Choice):
    """The ways to score every edge."""

    EXACT = "exact"
    VERIFIED = "verified"
    EAP = "eap"
    EAP_IG = "eap-ig"
    CONDUCTANCE = "conductance"
    RELP = "relp"
    GIM = "gim"
    CLEAN_CORRUPTED = "clean-corrupted"
    ATP_STAR = "atp-star"
    EAP_IG_ACTIVATIONS = "eap-ig-activations"
    EAP_IG_ACTIVATIONS_PUBLISHED = "eap-ig-activations-published"
    LEARNED_MASKS = "learned-masks"
    RECURSIVE_ELIMINATION = "recursive-elimination"
    IFR = "ifr"
    RANDOM = "random"

    @property
    def by_gradients(self) -> bool:
        """Whether gradients of the whole model are taken, which can be pulled back by other rules."""
        return self not in (ScorerName.EXACT, *BY_CIRCUITS, ScorerName.IFR, ScorerName.RANDOM)

    @property
    def costly(self) -> bool:
        """Whether it takes hundreds of passes of the pairs, or more."""
        return self in (
            ScorerName.EXACT,
            ScorerName.VERIFIED,
            ScorerName.EAP_IG_ACTIVATIONS,
            ScorerName.EAP_IG_ACTIVATIONS_PUBLISHED,
            *BY_CIRCUITS,
        )


ELIMINATION_IN_BRIEF = (
    "recursive-elimination drops edges in rounds, by slopes inside what is left; what goes last is best"
)
"""What the scorer does, for help texts."""
BY_CIRCUITS = (ScorerName.LEARNED_MASKS, ScorerName.RECURSIVE_ELIMINATION)
"""Scorers that go by whole circuits of all pairs: a score is no sum over copies of an edge, nor a mean over pairs."""


class PrunerName(Choice):
    """The ways to choose edges from scores."""

    CLOSEST = "closest"
    """As few edges as follow the model pair by pair."""
    NODES = "nodes"
    """As few heads and MLPs as follow the model pair by pair, with all edges among them."""
    MINIMAL = "minimal"
    """As few edges as have the model's mean effect."""
    TOP = "top"
    """The best edges of the ranking."""
    GREEDY = "greedy"
    """The best edges, each into what is there already, from the end of the graph back."""
    ILP = "ilp"
    """The connected circuit of a size with the largest total score."""
    THRESHOLD = "threshold"
    """The edges of at least a score."""
    ACDC = "acdc"
    """What is left when every edge that costs less than a threshold is removed, one after the other."""

    @property
    def sized(self) -> bool:
        """Whether it takes a number of edges."""
        return self in (PrunerName.TOP, PrunerName.GREEDY, PrunerName.ILP)

    @property
    def by_threshold(self) -> bool:
        """Whether it takes a threshold."""
        return self in (PrunerName.THRESHOLD, PrunerName.ACDC)

    def check_rivals(self) -> None:
        """Raise :class:`UsageError` where rivals cannot be searched, for which edges must be weighed by prices."""
        if self is not PrunerName.CLOSEST:
            raise UsageError(
                f"rivals are searched by the pruner closest, which can weigh what edges cost; got {self}. Leave out "
                "--rivals, or what makes it another pruner (--pruner, --quick)."
            )


class Site(Choice):
    """Where activation patching replaces an activation."""

    RESID = "resid"
    ATTN = "attn"
    MLP = "mlp"
    HEAD = "head"


class OpeningsOf(Choice):
    """Where the first tokens that count as answers and wrong answers are from."""

    OWN = "own"
    """They are the behaviour's own."""
    AUTO = "auto"
    """They are found in what the model does."""

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "value of --openings"


class NodeAblation(Choice):
    """What the output of an ablated node is replaced by, or scaled towards."""

    MEAN = "mean"
    """Its mean over the tokens of reference prompts."""
    LAST_MEAN = "last-mean"
    """Its mean over the last tokens of reference prompts, where the answer is decided."""
    ZERO = "zero"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "ablation of nodes"


class ActedOn(Choice):
    """Which parts of a circuit are ablated."""

    NODES = "nodes"
    EDGES = "edges"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "value of --what"


class NodeChoice(Choice):
    """Which nodes of a circuit are acted on."""

    ALL = "all"
    HEADS = "heads"
    MLPS = "mlps"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "value of --nodes"
