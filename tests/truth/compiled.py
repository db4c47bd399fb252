"""Transformers whose circuits are known: programs compiled with tracr, and induction by hand.

``tests/truth/compile_programs.py`` made the file of the former. Every direction of their streams has one meaning, so
which node reads what which node writes stands in the weights: :func:`true_edges` reads it from there, without this
package's tracer.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from circuits import Architecture, TokenPair, each_slot

HERE = Path(__file__).parent
PROGRAMS = (*json.loads((HERE / "programs.json").read_text()), "induction")


class Attention(nn.Module):
    """Attends to this and earlier positions."""

    def __init__(self, heads: int, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.heads = heads
        for name in ("q", "k", "v", "out"):
            setattr(self, name, _linear(weights[name]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """One hidden layer of rectified neurons."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.read, self.write = (_linear(weights[name], weights[f"{name}.bias"]) for name in ("read", "write"))

    def forward(self, x: Tensor) -> Tensor:
        return self.write(relu(self.read(x)))


class Block(nn.Module):
    """Attention, then an MLP where there are weights for one; no norms."""

    def __init__(self, heads: int, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.attention = Attention(heads, weights)
        self.mlp = Mlp(weights) if "read" in weights else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x if self.mlp is None else x + self.mlp(x)


class Compiled(nn.Module):
    """A program's transformer, in float64."""

    def __init__(self, layers: int, heads: int, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.tokens, self.positions = (nn.Embedding.from_pretrained(weights[name]) for name in ("tokens", "positions"))
        self.blocks = nn.ModuleList(Block(heads, _under(f"{layer}.", weights)) for layer in range(layers))
        self.unembed = _linear(weights["unembed"])

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@dataclass(frozen=True)
class Program:
    """A compiled program; ``begin`` is the token every prompt begins with, ``words`` are the others."""

    name: str
    module: Compiled
    words: tuple[int, ...]
    begin: int
    prompts: Tensor
    outputs: Tensor
    """What tracr's own forward pass leaves in the stream for ``prompts``."""

    @property
    def architecture(self) -> Architecture:
        """What tells the package where things are."""
        return Architecture(
            name="compiled",
            layers="blocks",
            final_norm=None,
            unembedding="unembed",
            attention="attention",
            projections=each_slot("attention.q", "attention.k", "attention.v"),
            output="attention.out",
            attention_norm=None,
            mlp=None if self.module.blocks[0].mlp is None else "mlp",
            mlp_norm=None,
            heads=self.module.blocks[0].attention.heads,
        )

    def pairs(self, count: int, seed: int = 0) -> list[TokenPair]:
        """Return prompts of random words beside others; the answers are what the program prefers for each side."""
        drawn, length = np.random.default_rng(seed), self.prompts.shape[1] - 1
        found = list[TokenPair]()
        while len(found) < count:
            clean, corrupted = (
                torch.tensor([[self.begin, *drawn.choice(self.words, length)]], dtype=torch.long) for _ in range(2)
            )
            ours, theirs = (self.module(ids)[0, -1] for ids in (clean, corrupted))
            answer, wrong = int(ours.argmax()), int(theirs.argmax())
            if len(ours) == 2:  # a number beside a column of zeros
                answer, wrong = 0, int(ours[0] > theirs[0] + 1e-3)
            if (ours - theirs)[answer] - (ours - theirs)[wrong] > 1e-3:
                found.append(TokenPair(clean[0], corrupted[0], (answer,), (wrong,), f"{clean}", f"{corrupted}"))
        return found


@cache
def program(name: str) -> Program:
    """Return one of :data:`PROGRAMS`."""
    if name == "induction":
        return _induction()
    about = json.loads((HERE / "programs.json").read_text())[name]
    weights = _under(f"{name}/", load_file(HERE / "programs.safetensors"))
    module = Compiled(about["layers"], about["heads"], weights).eval().requires_grad_(False)
    ids = torch.tensor(about["prompts"])
    return Program(name, module, tuple(about["words"]), about["begin"], ids, weights["outputs"])


def _induction() -> Program:
    """Return a model of two layers of two heads and no MLPs that repeats what followed its last token before.

    The stream holds one-hot rows: the token, its position, the token before (written by a0.h0), the prediction (written
    by a1.h0). The other two heads copy tokens to directions that nothing reads.
    """
    words, length = 6, 6
    width, place, before, told, idle = (
        4 * words + length + words,
        words,
        words + length,
        2 * words + length,
        3 * words + length,
    )
    sharp = 40.0
    token, own = torch.eye(words), torch.eye(length)

    def part(rows: int, columns: slice, values: Tensor) -> Tensor:
        made = torch.zeros(rows, width)
        made[: len(values), columns] = values
        return made

    size = max(words, length)
    at = {"token": slice(0, words), "place": slice(place, place + length), "before": slice(before, before + words)}
    copying = part(size, at["token"], token)
    previous = part(size, at["place"], sharp * torch.roll(own, 1, 0))
    first = {"q": previous, "k": part(size, at["place"], own), "v": copying}
    second = {"q": sharp * copying, "k": part(size, at["before"], token), "v": copying}
    weights: dict[str, Tensor] = {}
    for layer, (made, to) in enumerate(((first, before), (second, told))):
        for slot in ("q", "k", "v"):
            weights[f"{layer}.{slot}"] = torch.cat([made[slot], copying])
        ends = (slice(to, to + words), slice(idle, idle + words))
        weights[f"{layer}.out"] = torch.cat([part(size, end, token).T for end in ends], dim=1)
    weights["tokens"] = torch.cat([token, torch.zeros(words, width - words)], dim=1)
    weights["positions"] = part(length, at["place"], own)
    weights["unembed"] = part(words, slice(told, told + words), token)
    module = Compiled(2, 2, {name: value.double() for name, value in weights.items()}).eval().requires_grad_(False)
    return Program("induction", module, tuple(range(words)), 0, torch.zeros(0, length), torch.zeros(0))


def true_edges(made: Program, pairs: list[TokenPair]) -> set[str]:
    """Return the edges through which the difference of clean and corrupted prompts reaches the last position's logits.

    An edge is there where what the receiver's weights read off the sender's output differs between the two sides, at a
    position where the receiver reads it, and where that receiver leads to the logits of the last position in turn. A
    head's queries and an MLP read where their output is needed; keys and values are read anywhere.
    """
    clean, corrupted = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    ours, theirs = _written(made.module, clean), _written(made.module, corrupted)
    everywhere, needed = set(range(clean.shape[1])), {"logits": {clean.shape[1] - 1}}
    found = set[str]()
    for receiver, weights in reversed(_reads(made.module).items()):
        node = receiver.split("<")[0]
        places = everywhere if receiver.endswith(("<k>", "<v>")) else needed.get(node, set[int]())
        for sender in _before(node, ours) if node in needed else ():
            moved = ((ours[sender] - theirs[sender]) @ weights.T).abs().amax(dim=(0, 2))
            where = {place for place in places if moved[place] > 1e-6}
            if where:
                found.add(f"{sender}->{receiver}")
                needed.setdefault(sender, set()).update(where)
    return found


def _written(module: Compiled, ids: Tensor) -> dict[str, Tensor]:
    """Return what every sender adds to the stream, in forward order."""
    x = module.embed(ids)
    found = {"input": x}
    for layer, block in enumerate(module.blocks):
        attention: Any = block.attention
        parts = (part(x).unflatten(-1, (attention.heads, -1)) for part in (attention.q, attention.k, attention.v))
        q, k, v = (part.transpose(1, 2) for part in parts)
        z = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        out = attention.out.weight.unflatten(1, (attention.heads, -1))
        for head in range(attention.heads):
            found[f"a{layer}.h{head}"] = z[:, :, head] @ out[:, head].T
        x = x + attention(x)
        if block.mlp is not None:
            found[f"m{layer}"] = block.mlp(x)
            x = x + found[f"m{layer}"]
    return found


def _reads(module: Compiled) -> dict[str, Tensor]:
    """Return the weights by which every receiver reads the stream, in forward order."""
    found = dict[str, Tensor]()
    for layer, block in enumerate(module.blocks):
        attention: Any = block.attention
        for head in range(attention.heads):
            for slot in ("q", "k", "v"):
                weight = getattr(attention, slot).weight.unflatten(0, (attention.heads, -1))
                found[f"a{layer}.h{head}<{slot}>"] = weight[head]
        if block.mlp is not None:
            found[f"m{layer}"] = block.mlp.read.weight
    return found | {"logits": module.unembed.weight}


def _before(node: str, senders: dict[str, Tensor]) -> list[str]:
    """Return the senders whose output a node can read."""
    if node == "logits":
        return list(senders)
    layer = int(node.split(".", maxsplit=1)[0][1:])
    own = [] if node[0] == "a" else [name for name in senders if name.startswith(f"a{layer}.")]
    return ["input", *(name for name in senders if name != "input" and int(name.split(".")[0][1:]) < layer), *own]


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None and made.bias is not None:
            made.bias.copy_(bias)
    return made


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.double() for name, value in weights.items() if name.startswith(prefix)}
