"""Peak memory against the length of prompts: what measuring takes beside the loaded model, by torch's own count.

    python examples/benchmarks/long_prompts.py [--lengths 256 1024 4096] [--shared 0 1 3000] [--quick]

A small random Llama; one prompt pair whose first tokens are shared (0: all differ, so nothing is read from the prefix
cache; 1: as with a token that begins every text). Peaks are sums of what torch allocated and freed, so they do not
depend on what else the machine does. A plain forward pass, and one with its backward pass, stand beside them. The
exponent ``b`` of ``bytes = a · length^b`` between the two longest prompts says what grows faster than the length.
"""

import argparse
import gc
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from core_operations import circuits_of
from measuring import Figures, report, tell
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

import circuits
from circuits.behaviours.pairs import TokenPair

LAYERS, HEADS, GROUPS, WIDTH, VOCABULARY = 4, 4, 2, 128, 1000
EDGES = 8
"""Single edges measured: early and late ones, of every kind of receiver."""


def peak(run: Callable[[], object]) -> int:
    """Return the bytes that torch had allocated at most, beyond those before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def module_for(length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=length,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def pair_of(length: int, shared: int) -> TokenPair:
    clean, corrupted = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0)).tolist()
    corrupted[shared] = (clean[shared] + 1) % VOCABULARY
    return TokenPair(tuple(clean), (*clean[:shared], *corrupted[shared:]), (1,), (2,), "", "")


def peaks(length: int, shared: int) -> dict[str, int]:
    """Return the peak of every operation on one pair."""
    tell(f"{length} tokens, {shared} of them shared")
    module, pair = module_for(length), pair_of(length, shared)
    model, ids = circuits.load_model(module), torch.tensor([pair.clean])
    experiment = model.experiment([pair])
    n_edges = model.graph.n_edges
    some = np.linspace(0, n_edges - 1, EDGES).astype(np.int64)
    circuit = circuits_of(np.random.default_rng(0).random(n_edges), 1, n_edges // 2)

    @torch.no_grad()
    def forward() -> None:
        module(ids, use_cache=False, logits_to_keep=1)

    def both_ways() -> None:
        embedded = module.get_input_embeddings()(ids).requires_grad_(True)
        module(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits.sum().backward()

    return {
        "plain forward": peak(forward),
        "plain forward and backward": peak(both_ways),
        "recording": peak(lambda: model.experiment([pair])),
        "eap": peak(lambda: experiment.attributions([1.0])),
        "eap-ig, 5 steps": peak(lambda: experiment.attributions([0.1, 0.3, 0.5, 0.7, 0.9])),
        "exact": peak(lambda: experiment.edge_effects(some)),
        "circuits": peak(lambda: experiment.circuits(circuit)),
        "circuit gradient": peak(lambda: experiment.circuit_gradient(np.ones(n_edges))),
    }


def table(shared: int, found: dict[int, dict[str, int]]) -> Figures:
    """Tabulate megabytes by length, and how they grow between the two longest."""
    *_, before, last = (0, *found)
    rows: list[tuple[str, ...]] = []
    for name, most in found[last].items():
        grown = f"{math.log(most / found[before][name]) / math.log(last / before):.2f}" if before else ""
        rows.append((name, *(f"{sizes[name] / 1e6:.1f}" for sizes in found.values()), grown))
    title = f"Peak memory in MB, {shared} tokens shared"
    return Figures(title, ("operation", *(f"{length} tokens" for length in found), "exponent"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--shared", type=int, nargs="*", default=[0, 1, 3000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    lengths, sharings = ([64, 128], [1]) if chosen.quick else (chosen.lengths, chosen.shared)
    found = {
        shared: {length: peaks(length, shared) for length in sorted(lengths) if length > shared} for shared in sharings
    }
    shape = {"layers": LAYERS, "heads": HEADS, "groups": GROUPS, "d_model": WIDTH, "vocabulary": VOCABULARY}
    report("long_prompts", chosen.out, {"shape": shape, "peaks": found}, *(table(*each) for each in found.items()))


if __name__ == "__main__":
    main()
