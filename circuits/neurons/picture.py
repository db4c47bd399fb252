"""The diagram of a circuit with neurons beside their MLPs, as DOT text and as a picture."""

from pathlib import Path

from circuits.circuit import Circuit
from circuits.diagrams.layout import describe, nodes_dot
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import dot_string, number
from circuits.diagrams.palette import BLUE, INK, NODE_BORDERS, NODE_FILLS, VERMILLION
from circuits.drawing.dot import circuit_dot
from circuits.drawing.pictures import write_dot
from circuits.graph import ModelShape, Node, NodeKind
from circuits.neurons.split import FoundNeuron, NeuronSplit, strongest

DRAWN = 60
"""How many neurons are drawn, those of largest exact effect."""


def draw_neurons(split: NeuronSplit, path: str | Path, circuit: Circuit | None, *, title: str | None = None) -> None:
    """Draw what :func:`neurons_dot` returns into a file; the suffix says as what."""
    write_dot(neurons_dot(split, circuit, title=title), path)


def neurons_dot(split: NeuronSplit, circuit: Circuit | None = None, *, title: str | None = None) -> str:
    """Return the DOT text of a circuit's diagram, or of the MLPs alone, with the neurons beside their MLPs.

    Of more than 60 neurons those of largest exact effect are drawn, and the title says so. Blue: the behaviour is hurt
    where the neuron is replaced; vermillion: it is helped. The same neurons give the same bytes.
    """
    shown = strongest(split.neurons, DRAWN)
    omitted = f" (drawn: the {len(shown)} of largest effect)" if len(shown) < len(split) else ""
    heading = title or f"{split.verdict}{omitted}"
    if circuit is None:
        drawn = [Node(NodeKind.MLP, layer) for layer in sorted({each.layer for each in shown})]
        shape = ModelShape(max(split.layers) + 1, 1, 1, 1, 1)
        body = nodes_dot(drawn, shape, [], legend(heading, [], [_keys()], []))
    else:
        body = circuit_dot(circuit, title=heading)
    largest = max((abs(each.effect) for each in shown), default=0.0) or 1.0
    lines = [
        line
        for each in sorted(shown, key=lambda each: (each.layer, each.index))
        for line in _neuron(each, split.unit, largest)
    ]
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
