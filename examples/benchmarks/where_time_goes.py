"""Where the time of attribution, exact edges and circuits goes, beside that of a plain forward pass.

    python examples/benchmarks/where_time_goes.py [--models gpt2-random smollm2-135m] [--quick]

torch.profiler gives the time that each of torch's operators takes itself. They are grouped by what they are: products
with weights (the model's, and the same projections of patched streams), batched products (what readers read, head
outputs, contractions: the assembly), attention, element-wise functions and norms, and copies and joins of tensors,
which are mostly the price of fresh memory. What no operator accounts for is Python: nnsight, transformers, this
package, and the profiler itself. Use an idle machine: the profiler goes by the clock.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_operations import RANDOM, Subject, circuits_of, load, sweep_order
from measuring import Figures, Meter, number, report, stopwatch, tell
from torch.profiler import ProfilerActivity, profile

from circuits import Resources

PYTHON = "Python: nnsight, transformers, this package"
OTHER = "norms and element-wise"
GROUPS = {
    "products with weights": {"mm", "addmm", "mv", "addmv"},
    "assembly: batched products": {"bmm", "baddbmm", "dot"},
    "attention": {"_softmax", "_softmax_backward_data", "softmax"},
    OTHER: set[str](),
    "copies, joins, fresh memory": {
        *(
            "copy_",
            "cat",
            "stack",
            "clone",
            "empty",
            "empty_strided",
            "empty_like",
            "resize_",
            "fill_",
            "zero_",
            "zeros",
        ),
        *("index", "index_select", "_index_put_impl_", "index_put_", "repeat", "masked_fill_"),
    },
    PYTHON: set[str](),
}


def group_of(operator: str) -> str:
    """Return the group of an operator such as ``aten::addmm``."""
    name = operator.removeprefix("aten::")
    if "scaled_dot_product" in name or "flash" in name:
        return "attention"
    return next((group for group, names in GROUPS.items() if name in names), OTHER)


def profiled(run: Callable[[], object]) -> dict[str, Any]:
    """Return the share of each group in the time of one run, and the operators that take most."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        whole = stopwatch(run).wall
    operators = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    shares = Counter(dict.fromkeys(GROUPS, 0.0))
    for operator, seconds in operators.items():
        shares[group_of(operator)] += seconds / whole
    shares[PYTHON] = max(0.0, 1 - sum(shares.values()))
    most = sorted(operators, key=lambda operator: -operators[operator])[:8]
    return {"shares": dict(shares), "operators": {operator: operators[operator] / whole for operator in most}}


def operations(subject: Subject, block: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is profiled, and over how many items it is."""
    experiment = subject.model.experiment(subject.pairs)
    scores = experiment.attributions([1.0])[0]
    order = sweep_order(experiment.graph)
    middles = [part[len(part) // 2 :][:block] for part in np.array_split(order, 4)]
    many = circuits_of(scores, 10, 200)
    keeping = Resources(keep_gradients=True)
    return {
        "plain forward": (subject.forward(), 1),
        "EAP": (lambda: subject.model.experiment(subject.pairs, resources=keeping).attributions([1.0]), 1),
        "exact edges": (lambda: [experiment.edge_effects(part) for part in middles], sum(map(len, middles))),
        "one circuit": (lambda: experiment.circuits(many[:1]), 1),
        "10 circuits": (lambda: experiment.circuits(many), 10),
    }


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    tell(name)
    subject = load(name, quick=quick)
    meter = Meter(subject.forward(), 1 if quick else 3)
    return {
        operation: {"multiple": meter.multiple(run, items).processor} | profiled(run)
        for operation, (run, items) in operations(subject, 8 if quick else 48).items()
    }


def table_of(name: str, found: dict[str, Any]) -> Figures:
    rows = [("× plain forward, each", *(number(each["multiple"]) for each in found.values()))]
    rows += [(group, *(f"{each['shares'][group]:.0%}" for each in found.values())) for group in GROUPS]
    return Figures(f"{name}: shares of the time", ("", *found), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="gpt2-random, or models that circuits loads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = chosen.models or ([RANDOM] if chosen.quick else [RANDOM, "smollm2-135m"])
    results = {name: measure(name, quick=chosen.quick) for name in models}
    tables = [table_of(name, found) for name, found in results.items()]
    report("where_time_goes", chosen.out, {"quick": chosen.quick, "models": results}, *tables)


if __name__ == "__main__":
    main()
