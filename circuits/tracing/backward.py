"""The rules of a backward pass at work: hooks for the length of one run, which check what each of them changed."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.forms import first_of
from circuits.adapters.mlp_parts import mlp_parts, projects
from circuits.adapters.readings import NeuronReading, Nothing, Reading, norms_of
from circuits.adapters.slopes import by_ratio, passing_on
from circuits.adapters.surrogates import Surrogates, require_replaced
from circuits.errors import UnsupportedModelError

_CLOSE = 1e-2
"""Largest relative difference of a product of two factors that is put down to rounding (bfloat16: 0.004 each)."""


class RulesAtWork:
    """Changes the derivatives of a model as its anatomy's rules say, while the block :meth:`on` runs.

    ``changed`` counts what was changed in the last run: norms, attention, activations, products. Raises
    :class:`UnsupportedModelError` where the rules need to know a module better than can be told.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.changed: Counter[str] = Counter()
        self._rules = anatomy.rules
        names = anatomy.architecture
        self._norms = _norms(anatomy) if self._rules.norms else {}
        layers = cast("nn.ModuleList", anatomy.module.get_submodule(names.layers))
        self._attention: dict[str, nn.Module] = {}
        if self._rules.temperature != 1.0:
            self._attention = {
                f"{names.layers}.{number}.{names.attention}": layer.get_submodule(names.attention)
                for number, layer in enumerate(layers)
            }
        self._mlps: list[_RuledMlp] = []
        if self._rules.within_mlps and isinstance(anatomy.module.get_submodule(anatomy.reader), NeuronReading):
            raise UnsupportedModelError(
                "relp and gim change derivatives within whole MLPs, and the circuit leads to a neuron inside of one. "
                "Use a scorer that takes plain derivatives, such as eap-ig."
            )
        if self._rules.within_mlps and names.mlp is not None:
            self._mlps = [
                _RuledMlp(anatomy, layer, f"{names.layers}.{number}", self.changed)
                for number, layer in enumerate(layers)
                if not isinstance(layer.get_submodule(names.mlp_output or names.mlp), Nothing)
            ]

    @contextmanager
    def on(self) -> Generator[None]:
        """Run a block with the rules; afterwards the model is as it was."""
        self.changed.clear()
        surrogates = Surrogates(self._rules.temperature)
        with ExitStack() as stack:
            stack.enter_context(surrogates)
            for kind, modules in (("norm", self._norms), ("attention", self._attention)):
                for name, module in modules.items():
                    for handle in _bracketed(surrogates, module, kind, name):
                        stack.callback(handle.remove)
            for mlp in self._mlps:
                for handle in mlp.hooks():
                    stack.callback(handle.remove)
            yield
        self.changed.update(surrogates.replaced)


def _norms(anatomy: Anatomy) -> dict[str, nn.Module]:
    """Return every norm: those that the adapter declares, and modules without parts whose class says that they are."""
    declared = [
        norm
        for layer in anatomy.layers
        for norm in (layer.attention_norm, layer.attention_post_norm, layer.mlp_norm, *layer.projection_norms.values())
    ]
    declared += norms_of(anatomy.module)
    found: dict[str, nn.Module] = {}
    for name, module in cast(Any, anatomy.module).named_modules():
        if isinstance(module, Reading | nn.Identity):  # what a circuit that does not lead to the logits ends in
            continue
        known = any(module is norm for norm in declared) or name == anatomy.architecture.final_norm
        if known or ("Norm" in type(module).__name__ and not list(module.children())):
            found[name] = module
    return found


def _bracketed(surrogates: Surrogates, module: nn.Module, kind: str, name: str) -> list[Any]:
    """Tell the surrogates when a module runs, and require that they replaced something in it."""
    before: list[int] = []

    def begin(_: nn.Module, __: object) -> None:
        before.append(surrogates.replaced[kind])
        surrogates.enter(kind)

    def end(_: nn.Module, __: object, ___: object) -> None:
        surrogates.leave()
        require_replaced(surrogates.replaced[kind] - before.pop(), module, kind, name)

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]


class _RuledMlp:
    """One MLP made of projections and one activation; the last projection reads the activation, or its product."""

    def __init__(self, anatomy: Anatomy, layer: nn.Module, name: str, changed: Counter[str]) -> None:
        self._rules, self._changed = anatomy.rules, changed
        names = anatomy.architecture
        path, parts = mlp_parts(names, layer)
        self.name, whole = f"{name}.{path}".rstrip("."), layer.get_submodule(path)
        self._projections = {key: part for key, part in parts.items() if projects(part)}
        activations = [part for key, part in parts.items() if key not in self._projections]
        if len(activations) != 1 or len(self._projections) < 2:
            raise UnsupportedModelError(
                f"'{self.name}' ({type(whole).__name__}) has the parts {', '.join(parts) or 'none'}; relp and gim need "
                "to tell an MLP's one activation from its projections, as modules of their own. MLPs of several "
                "experts cannot be told apart so. Use a scorer that takes plain derivatives, such as eap-ig."
            )
        self._activation = activations[0]
        self._end = layer.get_submodule(names.mlp_output or path)
        self._forget()

    def _forget(self) -> None:
        self._read: list[Tensor] = []
        self._made: list[Tensor] = []
        self._active: Tensor | None = None
        self._found = False

    def hooks(self) -> list[Any]:
        """Hang the rules on the MLP; returns the handles."""
        self._forget()
        handles: list[Any] = [self._activation.register_forward_hook(self._on_activation)]
        for projection in self._projections.values():
            handles.append(projection.register_forward_pre_hook(self._before_projection, with_kwargs=True))
            handles.append(projection.register_forward_hook(self._after_projection))
        return [*handles, self._end.register_forward_hook(self._on_end)]

    def _on_activation(self, _: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor | None:
        self._active = made.detach()
        if not self._rules.activations:
            return None
        if made.shape != given[0].shape:
            raise UnsupportedModelError(
                f"the activation of '{self.name}' turns the shape {tuple(given[0].shape)} into {tuple(made.shape)}; "
                "relp takes activations of single numbers. Use a scorer that takes plain derivatives, such as eap-ig."
            )
        self._changed["activation"] += 1
        return by_ratio(made, given[0])

    def _before_projection(self, _: nn.Module, given: tuple[Tensor, ...], named: Mapping[str, Any]) -> Any:
        read = given[0]
        if self._active is None or any(read is other for other in self._read):
            self._read.append(read)
            return None
        self._found = True
        active, held = self._active, read.detach()
        if active.shape == held.shape and torch.equal(active, held):
            return None
        factors = [factor for made in self._made for factor in (made, *made.chunk(2, dim=-1))]
        if not any(_is_product(held, active, factor) for factor in factors):
            raise UnsupportedModelError(
                f"what the last projection of '{self.name}' reads is neither its activation nor that times another "
                "projection, so relp and gim do not know how to share its gradient. Use a scorer that takes plain "
                "derivatives, such as eap-ig."
            )
        if not self._rules.products:
            return None
        self._changed["product"] += 1
        return (passing_on(read.view_as(read), 0.5), *given[1:]), named

    def _after_projection(self, _: nn.Module, __: object, made: object) -> None:
        self._made.append(first_of(made).detach())

    def _on_end(self, _: nn.Module, __: object, ___: object) -> None:
        found = self._found
        self._forget()
        if not found:
            raise UnsupportedModelError(
                f"'{self.name}' ran without its activation and a projection after it, so relp and gim changed nothing "
                "in it. Use a scorer that takes plain derivatives, such as eap-ig."
            )


def _is_product(held: Tensor, active: Tensor, factor: Tensor) -> bool:
    if not held.shape == active.shape == factor.shape:
        return False
    scale = held.abs().max()
    return bool((active * factor - held).abs().max() <= _CLOSE * scale)
