"""The same operations in this package and in its peers, on the same random GPT-2 and prompts, side by side.

    python examples/benchmarks/peers.py [--pythons auto-circuit-env/bin/python ...] [--threads 2] [--quick]

Peers need each other's wrong versions, so each may live in an environment of its own: ``--pythons`` names their
interpreters, beside this one. Every peer is measured in a process of its own, as multiples of the processor time of a
plain forward pass: transformers' own, of the same 16 prompts of 16 tokens, in the same process. Peers that no
interpreter has are listed with what installs them. A peer's model must give the logits of ours, or is not measured.

EAP and circuits include recording the corrupted run, as each tool does it; of single edges, what is paid once for all
of them is taken off. Peers that measure one edge after another do so for a random sample, this package for blocks of
its sweep. Peers that take one pair at a time are measured on one pair, and multiplied. The smaller of two runs counts.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import Figures, Meter, median, number, plain_forward, report, tell
from peer_adapters import CIRCUIT, EAP, EDGE, PEERS, Peer, task


def installed(peer: Peer) -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in peer.needs)
    except ModuleNotFoundError:  # of a parent package
        return False


def measure(peer: Peer, *, quick: bool) -> dict[str, Any]:
    """Measure a peer that is installed here, in this process."""
    of = task(quick=quick)
    meter = Meter(plain_forward(of.model, of.clean))
    found: dict[str, float] = {}
    for operation in peer.operations(of):
        before = len(meter.forwards)
        times = [meter.once(operation.run).processor for _ in range(2)]
        once = min(meter.once(operation.once).processor for _ in range(2)) if operation.once else 0.0
        found[operation.name] = (min(times) - once) / operation.items / median(meter.forwards[before:]).processor
    packages = (*peer.packages, "transformers", "torch")
    return {"multiples": found, "versions": {name: version(name) for name in packages}}


def run(peer: Peer, pythons: list[str], chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure a peer with the first interpreter that has it, in a process of its own."""
    arguments = [__file__, "--measure", peer.name, "--threads", str(chosen.threads), *["--quick"] * chosen.quick]
    tell(peer.name)
    for python in pythons:
        if python == sys.executable and not installed(peer):
            continue
        done = subprocess.run([python, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        found = json.loads(done.stdout.splitlines()[-1])
        if found is not None:
            return found
    return {"not_installed": peer.install}


def row_of(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    if "multiples" not in found:
        reason = (
            f"not installed: {found['not_installed']}" if "not_installed" in found else f"failed: {found['failed']}"
        )
        return (name, "", "", "", reason)
    multiples = [number(found["multiples"][key]) if key in found["multiples"] else "-" for key in (EAP, EDGE, CIRCUIT)]
    return (name, *multiples, ", ".join(f"{package} {text}" for package, text in found["versions"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pythons", nargs="+", default=[], help="interpreters in whose environments peers are installed"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--measure", choices=list(PEERS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.measure:
        peer = PEERS[chosen.measure]
        print(json.dumps(measure(peer, quick=chosen.quick) if installed(peer) else None))
        return
    results = {name: run(peer, [sys.executable, *chosen.pythons], chosen) for name, peer in PEERS.items()}
    columns = ("tool", EAP, EDGE, CIRCUIT, "versions")
    rows = [row_of(name, found) for name, found in results.items()]
    title = "Processor time as a multiple of a plain forward pass"
    report("peers", chosen.out, {"quick": chosen.quick, "peers": results}, Figures(title, columns, rows))


if __name__ == "__main__":
    main()
