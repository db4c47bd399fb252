"""Do intervals of 95 % hold the truth in 95 % of cases? Simulated from the values of many real pairs.

    python examples/benchmarks/coverage.py CIRCUIT.json [--pairs 500] [--simulations 1000] [--sizes 16 32 64]

Measures the circuit on ``--pairs`` held-out pairs of its behaviour, which are then the whole population: its fidelity,
error, faithfulness and correlation are the truth. So many times, ``n`` of them are drawn (with replacement), each
number's interval is made as ``circuits evaluate`` makes it, and how often it holds the truth is printed, with the
interval of that share, beside how often the truth is below and above.
"""

import argparse

import numpy as np

import circuits
from circuits.statistics import faithfulness, faithfulness_interval, likeness, wilson


class Drawn:
    """The two ends of some of the pairs."""

    def __init__(self, clean: np.ndarray, corrupted: np.ndarray) -> None:
        self.clean, self.corrupted = clean, corrupted


def numbers(ends: Drawn, values: np.ndarray, seed: int) -> dict[str, tuple[float, float, float]]:
    """Return each number with the ends of its interval."""
    alike = likeness(ends, values, seed=seed)
    found = {"fidelity": alike.fidelity, "error": alike.error}
    if alike.correlation is not None:
        found["correlation"] = alike.correlation
    told = {name: (each.value, each.low or 0.0, each.high or 0.0) for name, each in found.items()}
    return told | {"faithfulness": (float(faithfulness(ends, values)), *faithfulness_interval(ends, values, seed=seed))}


def main() -> None:
    """Measure, simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("circuit")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    options = parser.parse_args()
    circuit = circuits.Circuit.load(options.circuit)
    model = circuits.load_model(circuit.model.id)
    behaviour = circuits.load_behaviour(circuit.behaviour.name)
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=options.pairs, seed=1)
    experiment = model.experiment(prompts.heldout)
    values = experiment.circuits([circuit.mask()])[0]
    everything = Drawn(experiment.clean, experiment.corrupted)
    truth = {name: value for name, (value, *_) in numbers(everything, values, 0).items()}
    print(
        f"{behaviour.name}: {len(circuit)} edges on {len(values)} pairs: "
        + ", ".join(f"{k} {v:.3f}" for k, v in truth.items())
    )
    generator = np.random.default_rng(0)
    for size in options.sizes:
        below, above = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
        for simulation in range(options.simulations):
            chosen = generator.integers(len(values), size=size)
            drawn = Drawn(everything.clean[chosen], everything.corrupted[chosen])
            for name, (_, low, high) in numbers(drawn, values[chosen], simulation).items():
                below[name] += truth[name] < low
                above[name] += truth[name] > high
        for name in truth:
            held = options.simulations - below[name] - above[name]
            low, high = wilson(held, options.simulations)
            share = f"{held / options.simulations:.3f} [{low:.3f}, {high:.3f}]"
            print(f"n = {size:3} {name:12} held {share}, truth below {below[name]}, above {above[name]}", flush=True)


if __name__ == "__main__":
    main()
