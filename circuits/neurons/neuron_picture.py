"""The diagram of a circuit with neurons beside their MLPs, as DOT text."""

from collections.abc import Sequence

from circuits.circuit import Circuit
from circuits.diagrams.layout import describe, nodes_dot
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import dot_string, number
from circuits.diagrams.palette import BLUE, INK, NODE_BORDERS, NODE_FILLS, VERMILLION
from circuits.drawing.dot import circuit_dot
from circuits.graph import ModelShape, Node, NodeKind
from circuits.neurons.neuron_names import FoundNeuron, strongest

DRAWN = 60
"""How many neurons are drawn, those of largest exact effect."""


def neurons_dot(neurons: Sequence[FoundNeuron], unit: str, heading: str, circuit: Circuit | None = None) -> str:
    """Return the DOT text of a circuit's diagram, or of the MLPs alone, with the neurons beside their MLPs.

    Of more than 60 neurons those of largest exact effect (in ``unit``) are drawn, and the heading says so. Blue: the
    behaviour is hurt where the neuron is replaced; vermillion: it is helped. The same neurons give the same bytes.
    """
    shown = strongest(neurons, DRAWN)
    heading += f" (drawn: the {len(shown)} of largest effect)" if len(shown) < len(neurons) else ""
    if circuit is None:
        layers = sorted({each.layer for each in shown})
        shape = ModelShape(max(layers) + 1, 1, 1, 1, 1)
        body = nodes_dot([Node(NodeKind.MLP, layer) for layer in layers], shape, [], legend(heading, [], [_keys()], []))
    else:
        body = circuit_dot(circuit, title=heading)
    largest = max(abs(each.effect) for each in shown) or 1.0
    ordered = sorted(shown, key=lambda each: (each.layer, each.index))
    lines = [line for each in ordered for line in _neuron(each, unit, largest)]
    return body.removesuffix("}\n") + "".join(f"  {line}\n" for line in lines) + "}\n"


def _keys() -> list[Key]:
    return [
        Key("box", NODE_FILLS[NodeKind.MLP], "MLP", NODE_BORDERS[NodeKind.MLP]),
        Key("round", "#FFFFFF", "neuron: replacing it hurts", BLUE),
        Key("round", "#FFFFFF", "neuron: replacing it helps", VERMILLION),
    ]


def _neuron(each: FoundNeuron, unit: str, largest: float) -> list[str]:
    """Return a neuron's node, beside its MLP, and the line that joins them."""
    name, mlp = dot_string(each.neuron), Node(NodeKind.MLP, each.layer)
    colour, width = VERMILLION if each.effect < 0 else BLUE, 0.6 + 2.4 * (abs(each.effect) / largest) ** 0.5
    tooltip = (
        f"{each.neuron}, neuron {each.index} of the {describe(mlp)}: exact effect {number(each.effect)} {unit}, "
        f"score {number(each.score)}"
    )
    node = (
        f'{name} [shape=box, style="filled,rounded", fillcolor="#FFFFFF", color="{colour}", penwidth={width:.2f}, '
        f'fontsize=7, fontcolor="{INK}", height=0.16, width=0.3, margin="0.03,0.01", '
        f"label={dot_string(f'n{each.index}')}, "
        f'tooltip={dot_string(tooltip)}, id={dot_string(f"neuron:{each.neuron}")}, class="neuron"];'
    )
    line = (
        f'{dot_string(str(mlp))} -> {name} [color="{colour}", penwidth=0.5, arrowhead=none, constraint=false, '
        f'tooltip={dot_string(tooltip)}, class="neuron"];'
    )
    return [node, line, f"{{rank=same; {dot_string(str(mlp))} {name}}}"]
