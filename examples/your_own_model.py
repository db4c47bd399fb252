"""A decoder of your own, which transformers does not have: describe it, have it checked, find a circuit in it.

python examples/your_own_model.py [--quick]
"""
# ruff: noqa: D101, D102

import sys
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

import circuits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 64), nn.Linear(32, 32)  # 2 groups of 2 queries, a key and a value, 8 wide

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (2, 4, 8)).permute(0, 2, 3, 1, 4).split([2, 1, 1], dim=2)
        mixed = nn.functional.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        return self.out(mixed.permute(0, 3, 1, 2, 4).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(32), Attention(), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GLU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


torch.manual_seed(0)
embed, blocks = nn.Embedding(80, 32), nn.Sequential(*(Block() for _ in range(3)))
decoder = nn.Sequential(OrderedDict(embed=embed, blocks=blocks, norm=nn.LayerNorm(32), unembed=nn.Linear(32, 80)))
architecture = circuits.Architecture(name="mine", layers="blocks", final_norm="norm",
    attention_norm="norm1", attention="attention", output="attention.out", mlp_norm="norm2", mlp="mlp", heads=4,
    projections=circuits.each_slot("attention.qkv"), layout=circuits.by_group)  # fmt: skip
model = circuits.load_model(decoder.eval(), architecture=architecture)
print(*(f"{guard.name}: {guard.error:.1e}, at most {guard.tolerance:.0e}" for guard in model.guards), sep="\n")

clean = torch.randint(80, (4 if "--quick" in sys.argv else 16, 8))  # token ids: no tokenizer is needed
corrupted = torch.cat([clean.roll(1, 0)[:, :-1], clean[:, -1:]], dim=1)
answers, others = (decoder(ids)[:, -1:].argmax(-1).tolist() for ids in (clean, corrupted))
sides = zip(clean.tolist(), corrupted.tolist(), answers, others, strict=True)
experiment = model.experiment([circuits.TokenPair(*map(tuple, pair), "", "") for pair in sides if pair[2] != pair[3]])
exact, estimated = (
    circuits.score(experiment, scorer) for scorer in (circuits.ScorerName.EXACT, circuits.ScorerName.EAP)
)
print(f"eap correlates with exact by {np.corrcoef(exact.values, estimated.values)[0, 1]:.2f}")
circuit = circuits.minimal(experiment, exact, target=0.8)
print(f"{len(circuit.edges)} edges keep {circuit.faithfulness:.0%}:", *model.graph.edges(circuit.edges))
