"""Colours and shapes of every figure, safe for the common kinds of colour blindness.

The hues are those of Okabe and Ito (2008), with a darker purple.
"""

from circuits.comparison import Membership
from circuits.graph import NodeKind, Slot

BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#B5488E"
GREY = "#555555"
LIGHT_GREY = "#9A9A9A"
INK = "#222222"

_NAMES = {
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "grey",
    LIGHT_GREY: "light-grey",
    INK: "ink",
}


def colour_name(colour: str) -> str:
    """Return the name of a line's colour, by which a page can give it another one on a dark background."""
    return _NAMES.get(colour, "other")


SLOT_COLOURS: dict[Slot | None, str] = {Slot.Q: BLUE, Slot.K: VERMILLION, Slot.V: GREEN, None: GREY}
SLOT_ARROWS: dict[Slot | None, str] = {Slot.Q: "normal", Slot.K: "diamond", Slot.V: "dot", None: "normal"}
"""The shape of the arrow says the slot once more, for prints without colour and for difference diagrams."""

NODE_FILLS = {
    NodeKind.INPUT: "#E4E4E4",
    NodeKind.HEAD: "#FCE9B8",
    NodeKind.KV: "#F2F2F2",
    NodeKind.MLP: "#EBDDF0",
    NodeKind.LOGITS: "#E4E4E4",
    NodeKind.RESID: "#E4E4E4",
    NodeKind.MIDDLE: "#E4E4E4",
}
NODE_BORDERS = {
    NodeKind.INPUT: GREY,
    NodeKind.HEAD: "#A87400",
    NodeKind.KV: LIGHT_GREY,
    NodeKind.MLP: "#7D4B93",
    NodeKind.LOGITS: GREY,
    NodeKind.RESID: GREY,
    NodeKind.MIDDLE: GREY,
}

MEMBER_COLOURS = {
    Membership.ONLY_A: BLUE,
    Membership.ONLY_B: VERMILLION,
    Membership.SHARED: GREY,
    Membership.SIGN_FLIP: PURPLE,
}
