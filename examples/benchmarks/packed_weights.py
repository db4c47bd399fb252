"""What it gains and costs to leave a model's weights packed (``--packed``): memory and processor time.

    python examples/benchmarks/packed_weights.py [--kinds Q4_0 Q8_0] [--quick]

A random Llama of 0.32 billion weights is written as a ``.gguf`` file of each type. One process
does everything with the weights expanded when they are loaded, another with them packed, by the same plan; results must
be equal bit for bit. Memory is the most that the process had resident during an operation, with libraries and all.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_operations import circuits_of, random_pairs
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from measuring import Figures, number, peak_megabytes, report, stopwatch, tell
from memory import forget_peak
from transformers import LlamaConfig, LlamaForCausalLM

import circuits
from circuits.models.loading import load_tokenizer

SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}
QUICK = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPS, LENGTH = 4, 16
RESOURCES = circuits.Resources(memory="400MB")
"""The same plan in every process, whatever memory is free: then batches are the same."""


def write(path: Path, kind: str, *, quick: bool) -> None:
    """Write a random Llama whose matrices are of a type of GGUF."""
    torch.manual_seed(0)
    vocabulary = len(load_tokenizer("smollm2-135m"))
    shape = (QUICK if quick else SHAPE) | {"num_key_value_heads": GROUPS, "vocab_size": vocabulary}
    module = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    writer, into = GGUFWriter(path, "llama"), GGMLQuantizationType[kind]
    writer.add_context_length(2048)
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(GROUPS)
    writer.add_vocab_size(vocabulary)
    writer.add_layer_norm_rms_eps(1e-6)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, shape["num_hidden_layers"])
    for name, weight in module.named_parameters():
        values = weight.detach().numpy()
        theirs = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if values.ndim == 2:
            writer.add_tensor(theirs, quantize(values, into), raw_dtype=into)
        else:
            writer.add_tensor(theirs, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(path: Path, *, packed: bool) -> dict[str, dict[str, Any]]:
    """Do all operations in this process; return their peaks, costs and sums of their results."""
    tokenizer, made, recorded = load_tokenizer("smollm2-135m"), list[circuits.Model](), list[Any]()
    generator = np.random.default_rng(0)

    def load() -> None:
        made.append(circuits.load_model(path, tokenizer=tokenizer, packed=packed))

    def record() -> Any:
        recorded.append(made[0].experiment(random_pairs(4, LENGTH, len(tokenizer)), resources=RESOURCES))
        return recorded[0].clean

    found = {"loading": one(load), "recording": one(record)}
    experiment, n_edges = recorded[0], made[0].graph.n_edges
    some = np.linspace(0, n_edges - 1, 32).astype(np.int64)
    masks = circuits_of(generator.random(n_edges), 4, n_edges // 2)
    found["eap"] = one(lambda: experiment.attributions([1.0]))
    found["exact"] = one(lambda: experiment.edge_effects(some))
    found["circuits"] = one(lambda: experiment.circuits(masks))
    found["circuit gradient"] = one(lambda: experiment.circuit_gradient(np.ones(n_edges)))
    return found


def one(run: Callable[[], Any]) -> dict[str, Any]:
    """Do one operation, of which the peak begins anew where the system can (Linux)."""
    forget_peak()
    made = list[Any]()
    cost = stopwatch(lambda: made.append(run()))
    parts = made[0] if isinstance(made[0], tuple) else () if made[0] is None else (made[0],)
    sums = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
    return {"peak": peak_megabytes(), "seconds": cost.processor, "digest": sums}


def in_own_process(path: Path, *, packed: bool, threads: int) -> dict[str, dict[str, Any]]:
    command = [sys.executable, __file__, "--one", str(path), "--threads", str(threads)]
    done = subprocess.run([*command, *(["--packed"] if packed else [])], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(kind: str, forms: dict[str, dict[str, dict[str, Any]]]) -> Figures:
    """Tabulate peaks and processor time of expanded and packed weights."""
    lines: list[tuple[str, ...]] = []
    for operation, whole in forms["expanded"].items():
        packed = forms["packed"][operation]
        equal = "yes" if whole["digest"] == packed["digest"] else "NO"
        peaks = [f"{form['peak']:,.0f}" for form in (whole, packed)]
        lines.append((operation, *peaks, number(packed["seconds"] / whole["seconds"]), equal))
    columns = ("operation", "MB, expanded", "MB, packed", "processor time, times", "equal")
    return Figures(kind, columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["Q4_0", "Q8_0"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packed", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        print(json.dumps(measure(chosen.one, packed=chosen.packed)))
        return
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.kinds[:1] if chosen.quick else chosen.kinds:
            tell(f"writing {kind}")
            path = Path(folder, f"{kind}.gguf")
            write(path, kind, quick=chosen.quick)
            found[kind] = {}
            for form in ("expanded", "packed"):
                tell(f"{kind}, {form}")
                found[kind][form] = in_own_process(path, packed=form == "packed", threads=chosen.threads)
    report("packed_weights", chosen.out, {"found": found}, *(table(*each) for each in found.items()))


if __name__ == "__main__":
    main()
