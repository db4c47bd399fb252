"""What the MLP of a layer is made of: its projections, and the last of them, which reads the MLP's neurons.

A neuron is a hidden unit just before the down projection: of a plain MLP what its activation puts out, of a gated one
that times the other projection. Which projection is the last is not declared but seen, in one pass of one token.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture
from circuits.adapters.forms import first_of, keywords_of
from circuits.adapters.linear import linear_map
from circuits.errors import UnsupportedModelError


def mlp_parts(names: Architecture, layer: nn.Module) -> tuple[str, dict[str, nn.Module]]:
    """Return the path, within a layer, of the module that holds its MLP, and the parts that compute something.

    The path is empty where the layer itself holds them.
    """
    path = str(names.mlp) if names.mlp_output is None else str(names.mlp).rpartition(".")[0]
    others = (names.attention.split(".")[0], *((names.mlp_norm,) if names.mlp_norm else ()))
    parts = {
        name: part
        for name, part in layer.get_submodule(path).named_children()
        if not isinstance(part, nn.Dropout | nn.Identity)
        and (path or name not in others)
        and "Norm" not in type(part).__name__
    }
    return path, parts


def projects(part: nn.Module) -> bool:
    """Return whether a part of an MLP has a matrix of weights."""
    return any(weight.ndim > 1 for weight in part.parameters())


def down_projections(anatomy: Anatomy) -> tuple[str, ...]:
    """Return the path, within each layer, of the projection that reads the layer's neurons.

    Raises :class:`UnsupportedModelError` for a model without MLPs, and for MLPs that are not a few projections around
    one activation, the last of which makes what the MLP puts out: mixtures of experts. Cost: one pass of one token.
    """
    names, module = anatomy.architecture, anatomy.module
    if names.mlp is None:
        raise UnsupportedModelError("this model has no MLPs, so it has no neurons. Attention heads are its nodes.")
    layers = [layer for _, layer in module.get_submodule(names.layers).named_children()]
    called, outputs = [list[str]() for _ in layers], [dict[str, Tensor]() for _ in layers]
    hooks = list[Any]()
    try:
        for number, layer in enumerate(layers):
            path, parts = mlp_parts(names, layer)
            found = [f"{path}.{name}".lstrip(".") for name, part in parts.items() if projects(part)]
            for each in dict.fromkeys([*found, path or names.mlp]):
                note = partial(_note, called[number] if each in found else [], outputs[number], each)
                hooks.append(layer.get_submodule(each).register_forward_hook(note))
        with torch.no_grad():
            module(torch.zeros(1, 1, dtype=torch.long, device=anatomy.device), **keywords_of(module))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        _last(names, layer, f"{names.layers}.{number}", called[number], outputs[number])
        for number, layer in enumerate(layers)
    )


def _note(called: list[str], outputs: dict[str, Tensor], path: str, *given: Any) -> None:
    called.append(path)
    outputs[path] = first_of(given[-1]).detach().clone()


def _last(names: Architecture, layer: nn.Module, name: str, called: list[str], outputs: dict[str, Tensor]) -> str:
    """Return the projection that was called last, where it makes what the MLP puts out."""
    path, parts = mlp_parts(names, layer)
    activations = [part for part in parts.values() if not projects(part)]
    last = names.mlp_output or (called[-1] if called else "")
    whole = outputs.get(names.mlp_output or path)
    if len(activations) != 1 or len(called) < 2 or whole is None or not _equal(outputs[last], whole):
        raise UnsupportedModelError(
            f"'{f'{name}.{path}'.rstrip('.')}' ({type(layer.get_submodule(path)).__name__}) has the parts "
            f"{', '.join(parts) or 'none'}, so its neurons cannot be told: they are the numbers between one activation "
            "and one last projection, which a mixture of experts does not have. Take its MLPs as whole nodes "
            "(circuits discover)."
        )
    linear_map(layer.get_submodule(last), last)
    return last


def _equal(made: Tensor, whole: Tensor) -> bool:
    return made.numel() == whole.numel() and torch.equal(made.flatten(), whole.flatten())
