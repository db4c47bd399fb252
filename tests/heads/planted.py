"""A GPT-2 whose heads were written by hand: what each of them does is known.

The residual stream has a part for the token, one for its position, one for the token before, and one from which the
unembedding reads; all are one-hot. MLPs are silent. Layer 0: h0 attends to the token before, h1 to the same token
earlier, h2 is random, h3 attends evenly and copies. Layer 1: h0 attends to the token after an earlier copy and copies
it, h1 attends from every position to names (the last ``NAMES`` tokens) and copies them, h2 attends to names and
suppresses them, h3 is random.
"""

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY, POSITIONS, NAMES = 48, 60, 12
D_HEAD, HEADS, LAYERS = 64, 4, 2
D_MODEL = D_HEAD * HEADS
TOKEN, BEFORE, OUT = slice(0, 48), slice(108, 156), slice(160, 208)
POSITION = slice(48, 48 + POSITIONS)
SHARP, SOFT = 2.0, 0.1
NAME = torch.arange(VOCABULARY) >= VOCABULARY - NAMES

EYE = torch.eye(VOCABULARY)


def planted_gpt2() -> GPT2LMHeadModel:
    """Write the model."""
    size = {"n_embd": D_MODEL, "n_head": HEADS, "n_layer": LAYERS, "n_positions": POSITIONS}
    config = GPT2Config(vocab_size=VOCABULARY, **size, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for name, module in model.named_modules():
        if "ln_" in name:
            module.weight.fill_(1.0)
    body = model.transformer
    body.wte.weight[:, TOKEN] = EYE
    body.wpe.weight[:, POSITION] = torch.eye(POSITIONS)
    model.lm_head.weight[:, OUT] = EYE
    generator = torch.Generator().manual_seed(0)
    _first_layer(body.h[0].attn, generator)
    _second_layer(body.h[1].attn, generator)
    return model


def _first_layer(attention: torch.nn.Module, generator: torch.Generator) -> None:
    shifted = torch.zeros(POSITIONS, D_HEAD)
    shifted[torch.arange(POSITIONS - 1), torch.arange(1, POSITIONS)] = SHARP
    _queries(attention, 0)[POSITION, :POSITIONS] = SHARP * torch.eye(POSITIONS)
    _keys(attention, 0)[POSITION] = shifted
    _values(attention, 0)[TOKEN, :VOCABULARY] = EYE
    _outputs(attention, 0)[:VOCABULARY, BEFORE] = SOFT * EYE

    # The same token, and of the same tokens the earlier one: the last key falls with the position.
    _queries(attention, 1)[TOKEN, :VOCABULARY] = SHARP * EYE
    _keys(attention, 1)[TOKEN, :VOCABULARY] = SHARP * EYE
    attention.c_attn.bias[D_HEAD + VOCABULARY] = 40.0
    _keys(attention, 1)[POSITION, VOCABULARY] = -torch.arange(POSITIONS) / POSITIONS
    _random(attention, 2, generator)
    _copies(attention, 3, SOFT)


def _second_layer(attention: torch.nn.Module, generator: torch.Generator) -> None:
    _queries(attention, 0)[TOKEN, :VOCABULARY] = SHARP * EYE
    _keys(attention, 0)[BEFORE, :VOCABULARY] = 10 * SHARP * EYE
    _copies(attention, 0, SOFT)
    for head, sign in ((1, 1.0), (2, -1.0)):
        attention.c_attn.bias[head * D_HEAD] = 60.0
        _keys(attention, head)[TOKEN, 0] = SHARP * NAME.float()
        _copies(attention, head, sign * SOFT)
    _random(attention, 3, generator)


def _copies(attention: torch.nn.Module, head: int, strength: float) -> None:
    _values(attention, head)[TOKEN, :VOCABULARY] = EYE
    _outputs(attention, head)[:VOCABULARY, OUT] = strength * EYE


def _random(attention: torch.nn.Module, head: int, generator: torch.Generator) -> None:
    for part in (_queries, _keys, _values):
        part(attention, head).copy_(0.3 * torch.randn(D_MODEL, D_HEAD, generator=generator))
    _outputs(attention, head).copy_(0.002 * torch.randn(D_HEAD, D_MODEL, generator=generator))


def _queries(attention: torch.nn.Module, head: int) -> Tensor:
    return attention.c_attn.weight[:, head * D_HEAD : (head + 1) * D_HEAD]


def _keys(attention: torch.nn.Module, head: int) -> Tensor:
    return attention.c_attn.weight[:, D_MODEL + head * D_HEAD : D_MODEL + (head + 1) * D_HEAD]


def _values(attention: torch.nn.Module, head: int) -> Tensor:
    return attention.c_attn.weight[:, 2 * D_MODEL + head * D_HEAD : 2 * D_MODEL + (head + 1) * D_HEAD]


def _outputs(attention: torch.nn.Module, head: int) -> Tensor:
    return attention.c_proj.weight[head * D_HEAD : (head + 1) * D_HEAD]
