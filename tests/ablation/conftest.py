"""A tiny model with a planted head, and circuits of given nodes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from transformers import PreTrainedModel

from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.graph import Node, NodeKind
from circuits.model import Model, load_model
from circuits.records import BehaviourInfo, Method
from tests.subjects import random_pairs
from tests.tiny import FAMILIES, tiny_qwen2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ANSWER, WRONG = 7, 8
PLANTED = Node(NodeKind.HEAD, 1, 2)


@cache
def tiny_model(family: str = "llama") -> Model:
    return load_model(FAMILIES[family](), tokenizer=TOKENIZER, name=family)


@cache
def planted_model() -> Model:
    """Head a1.h2 writes the answer token's unembedding, whatever it reads: a bias on its values, which h3 shares.

    Nothing else in the model writes along it, so without the head the answer is as likely as any other token.
    """
    return load_model(plant(tiny_qwen2(tied=False)), tokenizer=TOKENIZER, name="planted")


def plant(module: PreTrainedModel) -> PreTrainedModel:
    attention = module.model.layers[1].self_attn
    d_head, head, group = attention.head_dim, PLANTED.index, PLANTED.index // 2
    with torch.no_grad():
        module.model.norm.weight.fill_(1.0)
        direction = torch.nn.functional.normalize(module.lm_head.weight[ANSWER], dim=0)
        module.lm_head.weight[WRONG] = -module.lm_head.weight[ANSWER]
        attention.v_proj.bias[group * d_head] = 100.0
        columns = attention.o_proj.weight[:, head * d_head : (head + 1) * d_head]
        columns[:] = 0.0
        columns[:, 0] = direction
        other = attention.o_proj.weight[:, (head + 1) * d_head : (head + 2) * d_head]
        other[:, 0] = 0.0
    return module


def pairs_of(n: int = 12, *, answers: Sequence[int] = (ANSWER,), wrong: Sequence[int] = (WRONG,)) -> list[TokenPair]:
    return [
        TokenPair(pair.clean, pair.corrupted, tuple(answers), tuple(wrong), pair.clean_text, pair.corrupted_text)
        for pair in random_pairs(n)
    ]


def circuit_of(model: Model, edges: Sequence[str], behaviour: str = "mine") -> Circuit:
    from circuits.graph import Edge

    indices = np.sort([model.graph.index(Edge.parse(edge)) for edge in edges])
    return Circuit(
        model=model.info,
        behaviour=BehaviourInfo(behaviour, "logit-difference", "nats"),
        method=Method("exact", "top"),
        edges=indices,
        scores=np.arange(1.0, len(indices) + 1),
    )
