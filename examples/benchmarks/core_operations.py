"""Time and memory of the core operations, as multiples of a plain forward pass of the same prompts in the same run.

    python examples/benchmarks/core_operations.py [--model smollm2-135m | gpt2-random] [--edges 500]

``gpt2-random`` is GPT-2 small with random weights and 16 pairs of 16 random tokens; otherwise the pairs are 16 of
``ioi``. A plain forward pass is the model's own, of the 16 clean prompts, logits at all positions (median of 5).
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import circuits
from circuits.behaviours.behaviour import TokenPair
from circuits.builder import build_graph
from circuits.tracing.anatomy import Anatomy
from circuits.tracing.experiment import PatchingExperiment
from circuits.tracing.tracer import Tracer


def random_gpt2() -> tuple[Tracer, list[TokenPair]]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)
    ids = torch.randint(0, 50257, (16, 2, 16)).tolist()
    pairs = [TokenPair(tuple(a), (a[0], *b[1:]), (1,), (2,), "", "") for a, b in ids]
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    return Tracer(Anatomy(model), words), pairs


def built_in(name: str) -> tuple[Tracer, list[TokenPair]]:
    model = circuits.load_model(name)
    return model.tracer, list(circuits.load_behaviour("ioi").prompts(model.tokenizer, discovery=16).discovery)


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edges", type=int, default=500)
    chosen = parser.parse_args()
    tracer, pairs = random_gpt2() if chosen.model == "gpt2-random" else built_in(chosen.model)
    graph = build_graph(tracer.anatomy.shape)
    ids = torch.tensor([pair.clean for pair in pairs], device=tracer.anatomy.device)
    with torch.no_grad():
        forward = seconds(lambda: tracer.anatomy.module(ids, use_cache=False))
    before = peak_mb()
    figures: dict[str, float] = {"forward_seconds": forward, "loaded_mb": before}
    experiment = PatchingExperiment(tracer, graph, pairs, circuits.Options())
    figures["eap"] = seconds(lambda: experiment.attributions([1.0]), 3) / forward
    figures["eap_peak_mb_above_loaded"] = peak_mb() - before
    generator = np.random.default_rng(0)
    edges = np.sort(generator.choice(graph.n_edges, chosen.edges, replace=False))
    begun = time.perf_counter()
    experiment.edge_effects(edges)
    figures["exact_edge"] = (time.perf_counter() - begun) / len(edges) / forward
    mask = np.zeros(graph.n_edges, dtype=np.bool_)
    mask[np.argsort(-experiment.attributions([1.0])[0])[:200]] = True
    figures["circuit_of_200_edges"] = seconds(lambda: experiment.circuits([mask]), 3) / forward
    figures["circuit_of_all_edges"] = seconds(lambda: experiment.circuits([np.ones_like(mask)]), 3) / forward
    figures["peak_mb_above_loaded"] = peak_mb() - before
    print(
        json.dumps(
            {"model": chosen.model, "pairs": len(pairs), "tokens": ids.shape[1], "threads": torch.get_num_threads()}
        )
    )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
