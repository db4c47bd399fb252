"""How a metric is pulled back through a model where its plain derivatives mislead; values stay what they are.

Two sets of rules are published. *relp* (Rezaei Jafari et al. 2025, arXiv:2508.21258) takes from layer-wise relevance
propagation that the scale of a norm and the attention pattern are constants, that an activation ``y = f(x)`` has the
coefficient ``y / x``, and that each factor of a product gets half. *gim* (Edin et al. 2025, arXiv:2505.17630) takes
norms' scales as constants too, the derivative of the softmax at temperature 2, and half for each factor of every
product: of queries and keys, of pattern and values, of an MLP's gate and what it gates.
"""

from dataclasses import dataclass, replace

from circuits.graph import Slot


@dataclass(frozen=True)
class BackwardRules:
    """What is different from plain derivatives.

    Attributes:
        norms: Whether the scale by which a norm divides is a constant. A mean that it subtracts is not.
        activations: Whether an MLP's activation has the slope ``output / input``.
        products: Whether each factor of a gated MLP's product gets half of the gradient.
        temperature: At which temperature the softmax of the attention is differentiated.
        queries_and_keys: The share of the gradient that queries and keys get; 0 takes the pattern as a constant.
        values: The share of the gradient that values get.
    """

    norms: bool = False
    activations: bool = False
    products: bool = False
    temperature: float = 1.0
    queries_and_keys: float = 1.0
    values: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether nothing is different."""
        return self == PLAIN

    @property
    def within_mlps(self) -> bool:
        """Whether something is different inside MLPs."""
        return self.activations or self.products

    def freezing(self, *, norms: bool, patterns: bool) -> "BackwardRules":
        """Return these rules with scales of norms, or attention patterns, as constants too."""
        return replace(self, norms=self.norms or norms, queries_and_keys=0.0 if patterns else self.queries_and_keys)

    def share(self, slot: Slot) -> float:
        """Return the share of the gradient that a slot gets."""
        return self.values if slot is Slot.V else self.queries_and_keys


PLAIN = BackwardRules()
RELP = BackwardRules(norms=True, activations=True, products=True, queries_and_keys=0.0)
GIM = BackwardRules(norms=True, products=True, temperature=2.0, queries_and_keys=0.25, values=0.5)
