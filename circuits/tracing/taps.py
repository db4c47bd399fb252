"""What one run keeps for its backward pass, and the gradients that this gives."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.slopes import passing_on
from circuits.tracing.plan import LayerSite, Plan, Visit

Key = TypeVar("Key")
Loss = Callable[[Float[Tensor, "pair d_vocab"]], Float[Tensor, " pair"]]
Stream = Float[Tensor, "pair pos d_model"]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a metric at one run, and the values of that run at which they are pulled back further.

    ``projections`` are those at the outputs of the modules that make queries, keys and values, by layer and path;
    ``mlp`` those at what each MLP reads; ``final`` that at what the logits read (empty where the run ends before);
    ``z`` those at the concatenated head outputs, where they were asked for.
    ``stream`` (what each layer reads) and ``attention`` (where a norm follows the heads' sum) are values.
    """

    stream: dict[int, Stream]
    attention: dict[int, Tensor]
    projections: dict[tuple[int, str], Tensor]
    mlp: dict[int, Tensor]
    final: Tensor
    z: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def at(self, chosen: slice) -> "Gradients":
        """Return what is here at some positions."""
        return Gradients(
            stream={layer: value[:, chosen] for layer, value in self.stream.items()},
            attention={layer: value[:, chosen] for layer, value in self.attention.items()},
            projections={key: value[:, chosen] for key, value in self.projections.items()},
            mlp={layer: value[:, chosen] for layer, value in self.mlp.items()},
            final=self.final[:, chosen] if self.final.numel() else self.final,
            z={layer: value[:, chosen] for layer, value in self.z.items()},
        )


@dataclass(frozen=True)
class Taps:
    """Tensors of one run with gradients, filled while it runs; with ``heads`` what heads put out too.

    The backward pass uses them up.
    """

    stream: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    attention: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    projections: dict[tuple[int, str], Tensor] = field(default_factory=dict[tuple[int, str], Tensor])
    mlp: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    final: list[Tensor] = field(default_factory=list[Tensor])
    logits: list[Tensor] = field(default_factory=list[Tensor])
    z: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    heads: bool = False

    def visits(self, anatomy: Anatomy, layers: Iterable[int]) -> dict[tuple[int, LayerSite], Visit]:
        """Return the visits that keep what these layers read."""
        visits = dict[tuple[int, LayerSite], Visit]()
        for layer in layers:
            visits[layer, LayerSite.STREAM] = partial(_keep, self.stream, layer)
            if anatomy.shape.mlps:
                visits[layer, LayerSite.MLP_IN] = partial(_tap, self.mlp, layer)
            if self.heads:
                visits[layer, LayerSite.Z] = partial(_keep, self.z, layer)
            if not anatomy.additive:
                visits[layer, LayerSite.ATTENTION] = partial(_keep, self.attention, layer)
            for path, site in anatomy.architecture.slot_sites.items():
                keep = partial(_keep_before_changes, self.projections, (layer, path))
                shares = None if anatomy.rules.plain else partial(_shares, anatomy, path)
                visits[layer, site] = keep if shares is None else partial(_sharing, keep, shares)
        return visits

    def added_to(self, plan: Plan, anatomy: Anatomy) -> Plan:
        """Return a plan of a whole run with these taps after its own visits, and gradients from the first stream on."""
        visits = dict(plan.visits)
        for place, tap in self.visits(anatomy, range(anatomy.shape.n_layers)).items():
            visits[place] = partial(_both, visits.get(place, _ignore), tap)
        visits[0, LayerSite.STREAM] = partial(_from_here, visits[0, LayerSite.STREAM])
        final = partial(_both, plan.final or _ignore, self.keep_final)
        logits = partial(_both, plan.logits or _ignore, self.logits.append)
        return replace(plan, visits=visits, final=final, logits=logits)

    def keep_final(self, value: Tensor) -> Tensor:
        """Keep what the final norm reads."""
        self.final.append(value.view_as(value))
        return self.final[0]

    def of_loss(self, loss: Loss) -> Gradients:
        """Take the gradients of the loss at the logits of this run."""
        total = loss(self.logits[0]).sum()
        return self._gradients(iter(torch.autograd.grad(total, self._places, materialize_grads=True)))

    def through(
        self,
        output: Tensor,
        cotangent: Tensor | None = None,
        *,
        begin: Tensor | None = None,
        again: bool = False,
    ) -> tuple[Gradients, Stream]:
        """Take the gradients of an output, weighted where it is no number; and that at ``begin``.

        Where that is None, it is the first layer's stream. With ``again`` the run's values are kept for another
        backward pass.
        """
        first = next(iter(self.stream.values())) if begin is None else begin
        kept = {"materialize_grads": True, "retain_graph": again}
        at_first, *found = torch.autograd.grad(output, [first, *self._places], cotangent, **kept)
        return self._gradients(iter(found)), at_first

    @property
    def _places(self) -> list[Tensor]:
        return [*self.projections.values(), *self.mlp.values(), *self.final, *self.z.values()]

    def _gradients(self, found: Iterator[Tensor]) -> Gradients:
        return Gradients(
            stream={layer: value.detach() for layer, value in self.stream.items()},
            attention={layer: value.detach() for layer, value in self.attention.items()},
            projections={key: next(found) for key in self.projections},
            mlp={layer: next(found) for layer in self.mlp},
            final=next(found) if self.final else torch.empty(0),
            z={layer: next(found) for layer in self.z},
        )


def _both(first: Visit, second: Visit, value: Tensor) -> Tensor | None:
    """Visit twice; the first does not replace the value."""
    first(value)
    return second(value)


def _from_here(visit: Visit, value: Tensor) -> Tensor:
    """Let the gradients of a run begin at a value."""
    leaf = value.detach().requires_grad_(True)
    visit(leaf)
    return leaf


def _ignore(value: Tensor) -> None:
    del value


def _keep(kept: dict[Key, Tensor], key: Key, value: Tensor) -> None:
    kept[key] = value


def _keep_before_changes(kept: dict[Key, Tensor], key: Key, value: Tensor) -> Tensor:
    """Hand on a copy, because some models clip queries, keys and values in place."""
    kept[key] = value
    return value.clone()


def _sharing(keep: Callable[[Tensor], Tensor], shares: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Keep a value, to which what follows passes shares of its gradient."""
    return passing_on(keep(value), shares(value))


def _shares(anatomy: Anatomy, path: str, like: Tensor) -> Float[Tensor, " width"]:
    """Return the share of the gradient that each output of a projection gets."""
    shares = torch.ones(like.shape[-1], dtype=like.dtype, device=like.device)
    for slot, module in anatomy.architecture.slot_modules.items():
        if module == path:
            shares[anatomy.columns[slot].flatten()] = anatomy.rules.share(slot)
    return shares


def _tap(kept: dict[int, Tensor], key: int, value: Tensor) -> Tensor:
    """Let the reader see a view of its own, so that the gradient there is that of this one reader."""
    kept[key] = value.view_as(value)
    return kept[key]
