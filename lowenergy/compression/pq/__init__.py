"""Method `pq`: product quantization, which puts codewords in the place of blocks of weights."""

from typing import Annotated, Any, Literal

from pydantic import Field

from lowenergy.base.later import later
from lowenergy.params import Count, Finetune, Method, Positive, Retrain, Section, Times


class LayerFinetune(Section):
    """Training of a layer's codewords right after coding (SGD, momentum 0.9, mean gradient of a codeword's blocks)."""

    steps: Times
    """steps per layer, of finetune.batch_size images; 0 for none"""
    lr: Positive
    """learning rate"""


class Params(Method):
    coded = True

    codewords: Annotated[int, Field(ge=2, le=65536)] = 64
    """codewords per convolution"""
    codewords_fc: Annotated[int, Field(ge=2, le=65536)] = 256
    """codewords of the last layer"""
    block_conv: Count = 3
    """block length of k x k convolutions: 9 is a 3x3 kernel, 18 two, 3 a row"""
    block_small: Count = 3
    """the same, of convolutions with at most small_weights weights"""
    small_weights: Times = 0
    """size up to which a k x k convolution counts as small"""
    block_1x1: Count = 4
    """block length of 1x1 convolutions, along the input channels"""
    block_fc: Count = 4
    """block length of the last layer, along the inputs"""
    vectors_per_codeword: Count = 8
    """codewords are clamped to a power of two <= blocks / this"""
    allocation: Literal["uniform", "sensitivity"] = "sensitivity"
    """uniform: blocks and codewords of every layer as above; sensitivity: blocks up to twice as long or short, and four
    times as many or few codewords, where they lower the matching loss most in as many bits"""
    keep_first: bool = True
    """leave the first convolution uncoded"""
    permute: bool = False
    """order channels so that weights that are alike share a block, where blocks are longer than a kernel"""
    gram: Literal["covariance", "position", "layer", "none"] = "covariance"
    """what weighs a block's error: covariance or second moment of the inputs it meets, the second moment of all inputs
    of its layer (as published), or nothing"""
    output_weights: bool = True
    """weigh errors also by what the output channel does to the logits"""
    budget_bytes: Annotated[int, Field(ge=1)] | None = None
    """the file's largest size: bits get a price, so that all layers' codes fit; null for no price"""
    kmeans_steps: Count = 30
    """iterations of k-means"""
    calibration_images: Count = 500
    """images whose activations weigh the error of each layer"""
    layer_finetune: LayerFinetune = LayerFinetune(steps=0, lr=0.01)
    """training of a layer's codewords after coding it"""
    finetune: Finetune = Finetune(epochs=10, batch_size=64, lr=0.005)
    """training of all codewords after coding all layers"""
    reassign_every: Times = 0
    """steps of this training after which codes are chosen anew; 0 to leave them as they are"""
    retrain: Retrain = Retrain(epochs=0, lr=0.3)
    """then training of all codewords by the target's own loss"""

    def stored(self) -> dict[str, Any]:
        return {"codewords": self.codewords, "length": self.block_conv}


compress = later("lowenergy.compression.pq.network:compress")
