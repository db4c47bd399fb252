"""Recorded runs: what every sender wrote and every receiver read, kept at the smallest size that says it all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.numbering import blocks_of_senders
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.prefix import Prefix
from circuits.tracing.taps import Taps
from circuits.tracing.tracer import Tracer

_SITES_OF_RECORD = (LayerSite.STREAM, LayerSite.Z, LayerSite.ATTENTION)
_SITES_OF_MLP = (LayerSite.MLP_IN, LayerSite.MLP_OUT)


@dataclass(frozen=True)
class Run:
    """One recorded run of ``pair`` prompts of equal length, or replacement values in the form of one.

    With a ``prefix`` only the positions after it are here, ``ids`` included.

    ``stream[l]`` is the residual stream that the attention of layer ``l`` reads, ``stream[n_layers]`` the one the
    final norm reads; ``middle[l]`` is what the MLP of layer ``l`` reads. ``z[l]`` is the concatenation of head outputs
    before the output projection, ``attention[l]`` what that projection makes of them (with its bias, before a norm or
    factor), ``mlp[l]`` what the MLP adds to the stream (zero in blocks without one; then there is no
    ``middle``). ``projections[l][path]`` are the outputs of the modules that make queries, keys and values.
    ``recorded`` is false for replacement values that no run ever had: there a sender whose inputs all have their base
    values need not have its own.
    """

    ids: Int[Tensor, "pair pos"]
    stream: tuple[Float[Tensor, "pair pos d_model"], ...]
    middle: tuple[Float[Tensor, "pair pos d_model"], ...]
    z: tuple[Float[Tensor, "pair pos heads_times_d_head"], ...]
    attention: tuple[Float[Tensor, "pair pos d_model"], ...]
    mlp: tuple[Float[Tensor, "pair pos d_model"], ...]
    projections: tuple[dict[str, Float[Tensor, "pair pos _"]], ...]
    logits: Float[Tensor, "pair d_vocab"]
    prefix: Prefix | None = None
    recorded: bool = True

    @property
    def length(self) -> int:
        """How many tokens a prompt has, the prefix included."""
        return self.ids.shape[1] + (0 if self.prefix is None else self.prefix.length)

    def rows(self, chosen: slice) -> "Run":
        """Return the run of some of its prompts."""
        prefix = None if self.prefix is None else self.prefix.rows(chosen)
        return self._cut(lambda value: value[chosen], logits=self.logits[chosen], prefix=prefix)

    def at(self, chosen: slice) -> "Run":
        """Return what is here at some positions, without those before them."""
        return self._cut(lambda value: value[:, chosen], logits=self.logits, prefix=None)

    def as_of(self, like: "Run", moved: Callable[[Tensor], Tensor]) -> "Run":
        """Return values of this run that were ``moved`` to the positions of another one: what no run ever had."""
        there = self._cut(moved, logits=self.logits, prefix=like.prefix)
        return replace(there, ids=like.ids, recorded=False)

    def _cut(self, cut: Callable[[Tensor], Tensor], *, logits: Tensor, prefix: Prefix | None) -> "Run":
        return Run(
            ids=cut(self.ids),
            stream=tuple(map(cut, self.stream)),
            middle=tuple(map(cut, self.middle)),
            z=tuple(map(cut, self.z)),
            attention=tuple(map(cut, self.attention)),
            mlp=tuple(map(cut, self.mlp)),
            projections=tuple({path: cut(value) for path, value in paths.items()} for paths in self.projections),
            logits=logits,
            prefix=prefix,
            recorded=self.recorded,
        )


class Recorder:
    """Collects values at sites of a run."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, LayerSite], Tensor] = {}
        self.final = torch.empty(0)
        self.logits = torch.empty(0)

    def at(self, layer: int, site: LayerSite) -> "Keep":
        """Return the visit that keeps the value of one site."""
        return Keep(self, layer, site)

    def keep_final(self, value: Tensor) -> None:
        """Keep the stream that the final norm reads."""
        self.final = value.detach()

    def keep_logits(self, value: Tensor) -> None:
        """Keep the logits."""
        self.logits = value.detach()


@dataclass(frozen=True)
class Keep:
    """A visit that keeps what it sees."""

    recorder: Recorder
    layer: int
    site: LayerSite

    def __call__(self, value: Tensor) -> None:
        """Keep the value, or a copy where a model may go on to change it in place (clipped queries, Falcon's MLP)."""
        changing = self.site in (LayerSite.Q, LayerSite.K, LayerSite.V, LayerSite.MLP_OUT)
        self.recorder.values[self.layer, self.site] = value.detach().clone() if changing else value.detach()


def record(
    tracer: Tracer,
    ids: Int[Tensor, "pair pos"],
    prefix: Prefix | None = None,
    *,
    taps: Taps | None = None,
    embedding: Float[Tensor, "pair pos d_model"] | None = None,
) -> Run:
    """Run prompts, or what comes after a prefix, and keep what every sender wrote and every receiver read.

    With ``taps`` the same run also serves for gradients: they take what its backward pass needs. ``embedding`` takes
    the place of what the first layer reads. Cost: one forward pass.
    """
    shape = tracer.anatomy.shape
    sites = tracer.anatomy.architecture.slot_sites
    recorder = Recorder()
    kept_sites = (*_SITES_OF_RECORD, *(_SITES_OF_MLP if shape.mlps else ()))
    wanted = [(layer, site) for layer in range(shape.n_layers) for site in (*kept_sites, *sites.values())]
    visits: dict[tuple[int, LayerSite], Visit] = {(layer, site): recorder.at(layer, site) for layer, site in wanted}
    stream = None if embedding is None else embedding.detach().clone()
    plan = Plan(stream=stream, visits=visits, final=recorder.keep_final, logits=recorder.keep_logits)
    if taps is not None:
        plan = taps.added_to(plan, tracer.anatomy)
    tracer.run(ids, plan, prefix=prefix, gradients=taps is not None)
    kept = recorder.values

    def column(site: LayerSite) -> tuple[Tensor, ...]:
        return tuple(kept[layer, site] for layer in range(shape.n_layers))

    def nothing(layer: int) -> Tensor:
        stream = kept[layer, LayerSite.STREAM]
        return torch.zeros_like(stream[:, :1]).expand_as(stream)

    return Run(
        ids=ids,
        stream=(*column(LayerSite.STREAM), recorder.final),
        middle=column(LayerSite.MLP_IN) if shape.mlps else (),
        z=column(LayerSite.Z),
        attention=column(LayerSite.ATTENTION),
        mlp=column(LayerSite.MLP_OUT) if shape.mlps else tuple(map(nothing, range(shape.n_layers))),
        projections=tuple({path: kept[layer, sites[path]] for path in sites} for layer in range(shape.n_layers)),
        logits=recorder.logits,
        prefix=prefix,
    )


Columns = Int[Tensor, " token"]
"""The tokens whose logits are wanted; None where all are."""


def unembed(
    tracer: Tracer,
    ids: Int[Tensor, "row pos"],
    stream: Float[Tensor, "row 1 d_model"],
    columns: Columns | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Apply the model's own final norm and unembedding to final residual streams of one position each."""
    recorder = Recorder()
    plan = Plan(start=tracer.anatomy.shape.n_layers, stream=stream, logits=recorder.keep_logits, columns=columns)
    tracer.run(ids[:, -1:], plan)
    return recorder.logits


def sender_values(anatomy: Anatomy, run: Run, senders: Sequence[int]) -> Float[Tensor, "pair sender pos d_model"]:
    """Return what some senders (positions in the graph's order) wrote to the residual stream.

    Of heads with a norm between their sum and the stream, this is their share of that sum. On the first layer's device.
    """
    values = torch.empty(
        run.ids.shape[0], len(senders), *run.stream[0].shape[1:], dtype=run.z[0].dtype, device=run.stream[0].device
    )
    scale = anatomy.residual_scale if anatomy.additive else 1.0
    for layer, places, units in _by_block(anatomy, senders):
        if layer < 0:
            values[:, places] = run.stream[0].unsqueeze(1)
        elif units is None:
            values[:, places] = run.mlp[layer].unsqueeze(1).to(values.device)
        else:
            made = scale * anatomy.head_outputs(layer, run.z[layer], units)
            values[:, places] = made.movedim(-2, 1).to(values.device)
    return values


def sender_changes(
    anatomy: Anatomy, run: Run, change: Run, senders: Sequence[int]
) -> Float[Tensor, "pair sender pos d_model"]:
    """Return how the stream of a run would change if some senders, each alone, took the values of another run.

    ``change`` is the :func:`difference` of that run from this one. Exact, also through a norm after the attention.
    """
    values = sender_values(anatomy, change, senders)
    if anatomy.additive:
        return values
    for layer, places, units in _by_block(anatomy, senders):
        if units is not None:
            before = run.attention[layer].unsqueeze(1)
            after = before + anatomy.at(layer, values[:, places])
            values[:, places] = (anatomy.written(layer, after) - anatomy.written(layer, before)).to(values.device)
    return values


def _by_block(anatomy: Anatomy, senders: Sequence[int]) -> list[tuple[int, list[int], list[int] | None]]:
    """Sort senders by the block they are in: its layer (-1: the input), their places, their heads (None: an MLP)."""
    heads, blocks = dict[int, tuple[list[int], list[int]]](), list[tuple[int, list[int], list[int] | None]]()
    layers, units_of = (found.tolist() for found in blocks_of_senders(anatomy.shape, senders))
    for place, (layer, unit) in enumerate(zip(layers, units_of, strict=True)):
        if unit < 0:
            blocks.append((layer, [place], None))
        else:
            places, units = heads.setdefault(layer, ([], []))
            places.append(place)
            units.append(unit)
    return blocks + [(layer, places, units) for layer, (places, units) in heads.items()]


def difference(run: Run, other: Run) -> Run:
    """Return the difference of two runs' sender values, in the form of a run (only sender values are meaningful)."""
    return replace(
        run,
        stream=(run.stream[0] - other.stream[0], *run.stream[1:]),
        z=tuple(a - b for a, b in zip(run.z, other.z, strict=True)),
        mlp=tuple(a - b for a, b in zip(run.mlp, other.mlp, strict=True)),
    )


def halfway(run: Run, other: Run) -> Run:
    """Return the mean of two runs' sender values, in the form of a run (only sender values are meaningful)."""
    return replace(
        run,
        stream=((run.stream[0] + other.stream[0]) / 2, *run.stream[1:]),
        z=tuple((a + b) / 2 for a, b in zip(run.z, other.z, strict=True)),
        mlp=tuple((a + b) / 2 for a, b in zip(run.mlp, other.mlp, strict=True)),
    )
