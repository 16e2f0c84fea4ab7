"""Codes chosen anew while the network is finetuned, by where training would have each weight.

Finetuning moves codewords, and with each of them all of its blocks. What a block by itself would gain is lost. Here its
gradient goes straight through to the block as well (Bengio et al. 2013, arXiv 1308.3432): each weight has, beside its
codeword, what it misses there,

    w = c + s · m

of which the network computes with c alone, and training moves both. Every few steps each block takes the codeword that
is best for w now, by the same errors and the same price of each codeword as when codes were last chosen: by its bits
now, what is rare would become rarer from choice to choice. The last choice is made at the price that fits the budget.
The unit s is in proportion to the layer's error of coding, so that one learning rate fits all layers. At first w is the
weight before coding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.compression.pq import Params
from lowenergy.compression.pq.codebooks import assign, blocks_of, row_major
from lowenergy.compression.pq.layers import PricedCode, priced_codes
from lowenergy.storage.coded import CodedWeight
from lowenergy.training import Run

SPEED = 10.0  # s, in errors of coding: of 10 and 30, what left the lower loss on images of the first epoch
HOLD = 0.8  # of the training: codewords and norms settle on the last codes in what is left


@contextmanager
def codes(
    network: networks.Network, p: Params, run: Run, fit: Callable[[], None]
) -> Iterator[Callable[[int, int], None]]:
    """Within the `with`, training moves codes too.

    Yields:
        what must be called before each step, with its number and how many there are.
    Args:
        fit: chooses all codes at the price that fits the budget.
    """
    if not p.reassign_every or not p.finetune.epochs:
        if p.reassign_every:
            run.say("pq.finetune.epochs = 0, so no code is chosen anew")
        yield lambda step, steps: None
        return
    free = [(codebook, code) for codebook, code in priced_codes(network) if codebook.requires_grad]
    factors: dict[PricedCode, Tensor] = {}
    penalties = {code: code.penalty for _, code in free}  # `fit` changes them, which a step that is taken back must not
    for codebook, code in free:
        missed = code.weight - code(codebook).detach()
        code.scale = SPEED * float(missed.square().mean().sqrt()) or float(code.weight.square().mean().sqrt()) or 1.0
        code.missed = nn.Parameter(missed / code.scale)
        factors[code] = code.metric.factors()

    def move(step: int, steps: int) -> None:
        last = int(HOLD * steps)
        if not step and p.reassign_every > last:
            run.say(
                f"pq.reassign_every = {p.reassign_every}: more than {last} of {steps} steps, so no code is chosen anew"
            )
        if not step or step % p.reassign_every or step > last:
            return
        for codebook, code in free:
            wanted = choose(code, codebook, factors[code], penalties[code])
            if step + p.reassign_every > last:
                code.weight, code.first = wanted.cpu(), code.codes.cpu().clone()
        if step + p.reassign_every > last:
            fit()
        run.team.agree([code.codes for _, code in free])

    yield move
    for _, code in free:
        code.missed = None


@torch.no_grad()
def choose(code: PricedCode, codebook: Tensor, factors: Tensor, penalty: Tensor) -> Tensor:
    """Give each block the codeword of least error and penalty, (k,), for its weight now; return this weight."""
    assert code.missed is not None
    wanted = CodedWeight.forward(code, codebook) + code.scale * code.missed
    factors, weights, penalty = (x.to(wanted.device) for x in (factors, code.metric.weights, penalty))
    white = blocks_of(wanted, codebook.shape[1], code.groups) @ factors
    chosen, _ = assign(white, factors, weights, codebook, penalty)
    code.codes.copy_(row_major(chosen, code.groups))
    code.missed.copy_((wanted - CodedWeight.forward(code, codebook)) / code.scale)
    return wanted
