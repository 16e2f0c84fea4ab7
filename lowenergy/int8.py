"""Static int8 networks as torchao's PT2E flow makes them: export, prepare, (calibrate,) convert.

A *prepared* graph holds a FakeQuantize module wherever the x86 backend quantizes: it rounds like int8 and lets
gradients through (straight-through), which is what calibration, sampling and QAT need. `torchao`'s convert_pt2e turns
the same graph into int8 kernels. A file stores int8 weights, their scales, and (scale, zero point) of each activation;
`restore` puts them back into the graph prepared anew from the network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lowenergy.models import spec_of

SMALLEST_SCALE = 2.0**-24  # torchao's default, 2^-12, is coarser than the weights of a wide layer and an EBM's energies


def _quantizer() -> Any:
    from torchao.quantization.pt2e import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    # The whole range seen, not the histogram's best: a clipped activation passes no gradient, and sampling needs it.
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MinMaxObserver, eps=SMALLEST_SCALE),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=PerChannelMinMaxObserver, eps=SMALLEST_SCALE),
    )
    config = x86.QuantizationConfig(activation, activation, weight, None, False)
    return x86.X86InductorQuantizer().set_global(config)


def prepare(network: nn.Module) -> GraphModule:
    """Export a network without BatchNorm and insert FakeQuantize modules, observing and not yet rounding."""
    from torchao.quantization.pt2e import disable_fake_quant
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    spec = spec_of(network)
    images = torch.zeros(2, *spec.input_shape)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: batch},)).module(check_guards=False)
    prepared = prepare_pt2e(exported, _quantizer())
    prepared.apply(disable_fake_quant)
    prepared.spec = spec
    return prepared


def freeze(prepared: GraphModule) -> None:
    """Stop observing, start rounding."""
    from torchao.quantization.pt2e import disable_observer, enable_fake_quant

    prepared.apply(disable_observer)
    prepared.apply(enable_fake_quant)


def quantizers(prepared: GraphModule) -> tuple[dict[str, Any], dict[str, Any]]:
    """The FakeQuantize modules: of weights, by the weight's name; of activations, by the graph's own name."""
    weights, activations = {}, {}
    modules = dict(prepared.named_modules(remove_duplicate=False))  # two places may share one range
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.target.startswith("activation_post_process"):
            source = node.args[0]
            if source.op == "get_attr":
                weights[source.target] = modules[node.target]
            else:
                activations[node.target] = modules[node.target]
    return weights, activations


def restore(
    network: nn.Module, scales: Mapping[str, Tensor], activations: Mapping[str, tuple[float, int]]
) -> GraphModule:
    """The prepared graph with every range set from a file instead of observed.

    Args:
        scales: by weight name, (out,) float32.
        activations: by the graph's name, scale and zero point.
    Raises:
        ValueError: the graph has other quantizers than the file, as after a change of torchao's.
    """
    prepared = prepare(network)
    of_weights, of_activations = quantizers(prepared)
    if set(of_weights) != set(scales) or set(of_activations) != set(activations):
        raise ValueError("the file's int8 ranges are not those this version of torchao asks for; quantize again")
    for name, module in of_weights.items():
        _set_range(module, scales[name], torch.zeros_like(scales[name], dtype=torch.int))
    for name, module in of_activations.items():
        scale, zero_point = activations[name]
        _set_range(module, torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int))
    freeze(prepared)
    return prepared


def _set_range(module: Any, scale: Tensor, zero_point: Tensor) -> None:
    module.scale, module.zero_point = scale, zero_point
    # convert_pt2e asks the observer, so give it the extremes that lead back to this scale and zero point.
    observer = module.activation_post_process
    if module.is_per_channel:  # symmetric: the larger extreme is half of the 255 steps
        high = (observer.quant_max - observer.quant_min) / 2 * scale
        low = -high
    else:
        low, high = (((q - zero_point) * scale).squeeze() for q in (observer.quant_min, observer.quant_max))
    observer.min_val, observer.max_val = low, high
