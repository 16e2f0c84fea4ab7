"""Post-training static quantization: int8 weights per output channel, int8 activations with calibrated ranges."""

import torch

from lowenergy import int8, models
from lowenergy.artifact import Model, weights
from lowenergy.encodings import Dense, Encoding, Int8
from lowenergy.params import Quantize
from lowenergy.training import Objective, Run


def compress(network: models.Network, target: str, objective: Objective, p: Quantize, run: Run) -> Model:
    """Fold BatchNorm, watch activations on the objective's inputs, round.

    For energies those inputs include noisy images and chains, where a range seen on clean data alone would clip.
    """
    folded = models.fold_batchnorm(network.cpu().eval())
    prepared = int8.prepare(folded)
    # Every n-th: the inputs of an energy come in groups (real, noisy, chains), and each must be among them.
    images = objective.inputs[:: max(1, len(objective.inputs) // p.calibration_images)].cpu()
    with torch.no_grad():
        for batch in images.split(250):
            prepared(batch)
    int8.freeze(prepared)
    run.fabric.print(f"{run.name}: calibrated on {len(images)} images")
    of_weights, of_activations = int8.quantizers(prepared)
    tensors: dict[str, Encoding] = {}
    for name, value in weights(folded).items():
        if name in of_weights:
            scale = of_weights[name].scale
            rounded = (value / scale.view(-1, *[1] * (value.ndim - 1))).round().clamp(-128, 127)
            tensors[name] = Int8(rounded.to(torch.int8), scale)
        else:
            tensors[name] = Dense(value)
    activations = {name: (m.scale.item(), int(m.zero_point.item())) for name, m in of_activations.items()}
    return Model(target, folded.spec, tensors, activations)
