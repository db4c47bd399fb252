"""First-order edge scores the slow way: autograd, with a copy of x_v of its own for every receiver. Also float64."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuits.graph import Receiver
from tests.reference.anatomy import INPUT, Anatomy, anatomy_of
from tests.reference.hooks import Ablation, MetricFn, hooked, last_logits, sender_values, start_from, zeros


def _read_from_copies(
    anatomy: Anatomy, receivers: Sequence[Receiver], copies: dict[Receiver, Tensor]
) -> list[RemovableHandle]:
    """Let every receiver read a copy of the stream of its own, and put the copies where gradients can be asked for."""
    by_module: dict[nn.Module, list[Receiver]] = {}
    handles: list[RemovableHandle] = []
    streams: dict[nn.Module, Tensor] = {}

    def take_copy(receiver: Receiver, x: Tensor) -> Tensor:
        copies[receiver] = x.clone()
        return copies[receiver]

    def remember(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        streams[norm] = args[0]

    def project_copies(module: nn.Module, _: object, output: Tensor) -> Tensor:
        output = output.clone()
        for receiver in by_module[module]:
            norm, columns = anatomy.norm(receiver), anatomy.projection(receiver)[1]
            output[..., columns] = module.forward(norm.forward(take_copy(receiver, streams[norm])))[..., columns]
        return output

    def copy_for_norm(receiver: Receiver) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _, args: (take_copy(receiver, args[0]),)

    for receiver in receivers:
        if receiver.slot is None:
            handles.append(anatomy.norm(receiver).register_forward_pre_hook(copy_for_norm(receiver)))
        else:
            by_module.setdefault(anatomy.projection(receiver)[0], []).append(receiver)
    handles.extend([norm.register_forward_pre_hook(remember) for norm in anatomy.attention_norms])
    handles.extend([module.register_forward_hook(project_copies) for module in by_module])
    return handles


def gradient_edge_scores(
    model: nn.Module,
    clean_ids: Tensor,
    corrupted_ids: Tensor,
    metric_fn: MetricFn,
    *,
    points: Sequence[float] = (1.0,),
    ablation: Ablation = "corrupted",
) -> Tensor:
    """Estimate every edge to first order, (pair, edge) in graph order: sum over positions of <a_u - a_u*, dm/dx_v>.

    The gradient is averaged over runs whose block-0 input is a* + point (a - a*); ``(1.0,)`` is plain EAP.
    """
    anatomy = anatomy_of(model)
    graph = anatomy.graph
    clean, replaced = sender_values(model, clean_ids), sender_values(model, corrupted_ids)
    if ablation == "zero":
        replaced = zeros(replaced)
    gradients = [torch.zeros_like(clean[INPUT]) for _ in graph.receivers]
    for point in points:
        start = torch.lerp(replaced[INPUT], clean[INPUT], point).requires_grad_()
        copies: dict[Receiver, Tensor] = {}
        with torch.enable_grad(), hooked() as handles:
            handles.extend(start_from(anatomy, start))
            handles.extend(_read_from_copies(anatomy, graph.receivers, copies))
            total = metric_fn(last_logits(model, clean_ids)).sum()
        ordered = [copies[receiver] for receiver in graph.receivers]
        for i, gradient in enumerate(torch.autograd.grad(total, ordered)):
            gradients[i] = gradients[i] + gradient / len(points)
    columns = [
        ((clean[edge.sender] - replaced[edge.sender]) * gradients[graph.receiver_index[edge.receiver]]).sum(dim=(1, 2))
        for edge in graph.edges()
    ]
    return torch.stack(columns, dim=1)


def in_float64(model: nn.Module) -> nn.Module:
    """Give a float64 copy of a model, with norms that compute in float64 too.

    Hugging Face's RMSNorm computes in float32 whatever the model's dtype; torch's does not. Load the model with
    ``attn_implementation="sdpa"``: the eager attention of the Llama family also has a float32 softmax.
    """
    double = copy.deepcopy(model).double()
    for name, module in list(double.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon).to(module.weight)
            norm.weight = module.weight
            parent, _, child = name.rpartition(".")
            setattr(double.get_submodule(parent), child, norm)
    return double.eval()
