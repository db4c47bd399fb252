"""Memory: the formula against measured peaks, the plan for a large model, and whether anything leaks.

    python examples/benchmarks/memory.py [--shapes 30M 135M 360M] [--traces 2000] [--device auto] [--out memory.json]

Every operation runs in a process of its own. On the CPU its peak is how far the resident memory rose above that
of the loaded model; on an accelerator it is torch's own count. A ratio above 1 says that the formula asks for more than
is needed.
"""

import argparse
import contextlib
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from circuits import Options, Resources
from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.behaviour import TokenPair
from circuits.builder import build_graph
from circuits.graph import ModelShape
from circuits.memory.memory_plan import MemoryBudget, human, plan_memory
from circuits.memory.needs import ModelSizes, Needs, PromptSize
from circuits.models.devices import resolve_device
from circuits.patching.experiment import PatchingExperiment
from circuits.tracing.plan import Plan
from circuits.tracing.runs import Recorder
from circuits.tracing.tracer import Tracer

SHAPES = {
    "30M": (8, 6, 3, 384, 1024, 32000),
    "135M": (30, 9, 3, 576, 1536, 49152),
    "360M": (32, 15, 5, 960, 2560, 49152),
}
"""Llama shapes: layers, heads, key/value heads, d_model, width of the MLPs, vocabulary."""
BY_LAYER = "attribution, layer by layer"
OPERATIONS = ("forward", "record", "attribution", BY_LAYER, "exact", "circuits")
BASELINES = ("eap", "forward+backward to the embeddings", "forward+backward to the parameters")
LARGE = ModelSizes(ModelShape(32, 32, 8, 4096, 128), 14336, 128256, 2)
PAIRS, TOKENS, ROWS = 16, 16, 64


class Peak:
    """How far memory rises above what it is now; where the system cannot forget an earlier peak, above that."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        if self._module is None:
            forget_peak()
            self._before = resident_peak()
        else:
            self._module.reset_peak_memory_stats()
            self._before = self._module.memory_allocated()

    def above(self) -> int:
        """Return the bytes."""
        now = resident_peak() if self._module is None else self._module.max_memory_allocated()
        return now - self._before


def resident_peak() -> int:
    """The most that was ever resident; on Linux in kB, on macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Begin the peak of resident memory anew, which Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def model(name: str, device: torch.device) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        made: Any = GPT2LMHeadModel(GPT2Config())
    else:
        layers, heads, groups, width, mlp, vocabulary = SHAPES[name]
        made = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=groups,
                hidden_size=width,
                intermediate_size=mlp,
                vocab_size=vocabulary,
                tie_word_embeddings=True,
            )
        )
    return made.eval().requires_grad_(False).to(device)


def prompt_pairs(vocabulary: int, n: int = PAIRS, length: int = TOKENS) -> list[TokenPair]:
    """Random prompts that differ from the second token on."""
    ids = torch.randint(vocabulary, (n, 2, length)).tolist()
    return [TokenPair(tuple(a), (a[0], *b[1:]), (1,), (2,), "", "") for a, b in ids]


def tracer_of(module: Any) -> Tracer:
    return Tracer(Anatomy(module))


def measured(shape: str, operation: str, device: torch.device) -> dict[str, Any]:
    """Run one operation in this process; give its peak and what the formula says."""
    module = model(shape, device)
    vocabulary = module.config.vocab_size
    pairs = prompt_pairs(vocabulary)
    ids = torch.tensor([pair.clean for pair in pairs], device=device)
    with torch.no_grad():
        module(ids[:1, :2], use_cache=False)
    if operation == "forward":
        peak = Peak(device)
        with torch.no_grad():
            module(ids, use_cache=False)
        return {"peak": peak.above()}
    if operation in BASELINES:
        return {"peak": baseline(operation, module, ids, pairs, device)}
    tracer = tracer_of(module)
    graph, sizes = build_graph(tracer.anatomy.shape), ModelSizes.of(tracer.anatomy)
    needs = Needs(sizes, PromptSize(TOKENS - 1, 1))
    rows, by_layer = ROWS if operation in ("exact", "circuits") else None, operation == BY_LAYER
    resources = Resources(batch_size=rows, checkpointing=by_layer)
    peak = Peak(device)
    experiment = PatchingExperiment(tracer, graph, pairs, Options(), resources=resources)
    kept = PAIRS * sum(needs.recorded().values())
    generator = np.random.default_rng(0)
    if operation in ("attribution", BY_LAYER):
        experiment.attributions([1.0])
        need = PAIRS * sum(needs.attribution(experiment.plan.attribution_tile, by_layer).values())
    elif operation == "exact":
        into = len(graph.receivers) // 2
        experiment.edge_effects(np.arange(graph.offsets[into], graph.offsets[into] + 2 * ROWS // PAIRS))
        need = PAIRS * sum(needs.differences().values()) + ROWS * sum(needs.exact().values())
    elif operation == "circuits":
        experiment.circuits(generator.random((2 * ROWS // PAIRS, graph.n_edges)) < 0.5)
        need = ROWS * sum(needs.circuits(sizes.n_senders).values())
    else:
        need = PAIRS * sum(needs.recording().values())
    return {"peak": peak.above(), "formula": kept + need}


def baseline(operation: str, module: Any, ids: torch.Tensor, pairs: list[TokenPair], device: torch.device) -> int:
    """Peak of EAP (recording included), or of a plain forward and backward pass of the same prompts."""
    if operation == "eap":
        tracer = tracer_of(module)
        graph = build_graph(tracer.anatomy.shape)
        peak = Peak(device)
        resources = Resources(keep_gradients=True)
        PatchingExperiment(tracer, graph, pairs, Options(), resources=resources).attributions([1.0])
        return peak.above()
    to_parameters = operation.endswith("parameters")
    module.requires_grad_(to_parameters)
    peak = Peak(device)
    embedded = module.get_input_embeddings()(ids)
    if not to_parameters:
        embedded.requires_grad_(True)
    logits = module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
    (logits[:, 1] - logits[:, 2]).sum().backward()
    return peak.above()


def in_own_process(shape: str, operation: str, device: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", shape, operation, "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def large_plans() -> list[dict[str, Any]]:
    """Plans for an 8B Llama in bfloat16, on devices whose free memory beside the weights (16 GB) is given."""
    rows = []
    for pairs, tokens in ((16, 16), (64, 64)):
        prompts = [PromptSize(tokens)] * pairs
        for limit in (6, 20, 51):
            budget = MemoryBudget(limit * 10**9, 64 * 10**9, pair_tokens=8192, pass_tokens=65536)
            plan, needs = plan_memory(LARGE, prompts, budget), Needs(LARGE, prompts[0])
            together = min(pairs, plan.pairs(tokens))
            exact = plan.rows(needs.exact(), tokens, beside=together * sum(needs.differences().values()))
            circuits = plan.rows(needs.circuits(LARGE.n_senders), tokens)
            rows.append({"pairs": pairs, "tokens": tokens, "plan": str(plan), "exact rows": exact})
            rows[-1] |= {"circuit rows": circuits, "terms": dict(needs.attribution(plan.attribution_tile))}
            print(
                f"8B, {pairs} x {tokens}: {plan}; {exact} rows of single edges or {circuits} of whole circuits a pass"
            )
    return rows


def resident_after(traces: int) -> dict[str, float]:
    """Resident memory over many traces, a tenth of which raise."""
    module = model("30M", torch.device("cpu"))
    tracer, ids = tracer_of(module), torch.randint(1000, (4, 8))

    def refuse(_: torch.Tensor) -> None:
        raise ValueError

    def once(number: int) -> None:
        recorder = Recorder()
        if number % 10:
            tracer.run(ids, Plan(logits=recorder.keep_logits))
            return
        try:
            tracer.run(ids, Plan(final=refuse))
        except ValueError:
            return

    found = {}
    for number in range(traces + 1):
        once(number)
        if number in (traces // 10, traces // 2, traces):
            gc.collect()
            found[f"after {number} traces"] = psutil.Process().memory_info().rss / 1e6
    return found


def table(shapes: list[str], device: str, run: Callable[[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    print(f"\n{PAIRS} pairs x {TOKENS} tokens, {ROWS} rows a pass, {device}; beyond the loaded model")
    for shape in shapes:
        for operation in OPERATIONS:
            found = rows.setdefault(shape, {})[operation] = run(shape, operation, device)
            said = f"{shape:5} {operation:27} measured {human(found['peak']):>8}"
            if "formula" in found:
                found["ratio"] = round(found["formula"] / max(1, found["peak"]), 2)
                said += f"   formula {human(found['formula']):>8}   ratio {found['ratio']}"
            print(said, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    device = resolve_device(chosen.device)
    if chosen.one:
        print(json.dumps(measured(*chosen.one, device)))
        return
    results: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads(), "large": large_plans()}
    results["shapes"] = table(chosen.shapes, str(device), in_own_process)
    against = {name: in_own_process("gpt2", name, str(device))["peak"] for name in BASELINES}
    print(f"\nGPT-2 small, {PAIRS} x {TOKENS}: eap {human(against['eap'])}, recording included")
    for name in BASELINES[1:]:
        print(f"  {against['eap'] / against[name]:.2f} times a {name} ({human(against[name])})")
    results["gpt2"] = against
    results["resident_mb"] = resident_after(chosen.traces)
    print("\nresident memory, every tenth trace raising:", results["resident_mb"])
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
