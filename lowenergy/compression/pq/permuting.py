"""An order of channels in which weights that are alike share a block (Martinez et al. 2021, arXiv 2010.15703).

A block that is longer than a kernel holds what an output reads from channels that stand next to each other. Which ones
do is free: the channels that a layer makes can stand in any order, if all that reads them follows. The more alike the
parts of a block are, the smaller the space that the blocks fill, and the less a codeword is off. Here the channels that
are read with the most similar weights come next to each other; the paper swaps channels at random where that makes the
determinant of the blocks' covariance smaller.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.compression.channels import ChannelGraph, Group, same
from lowenergy.compression.pq import Params
from lowenergy.compression.pq.allocation import SCALES, with_blocks
from lowenergy.compression.pq.layers import block_length, layers_to_code
from lowenergy.training import Run

CHECKED = 8  # images whose answers must stay the same


@torch.no_grad()
def permute(network: networks.Network, images: Tensor, p: Params, run: Run) -> None:
    """Put the channels of `network` into another order, in place; it computes the same.

    Args:
        images: (n, c, h, w), on which that is checked. Channels of which it is not true stay where they are.
    Raises:
        UserError: the network cannot be traced.
    """
    spans = channels_per_block(network, p)
    if not spans:
        run.say("pq.permute: no block is longer than a kernel, so no order of channels is better")
        return
    try:
        graph = ChannelGraph(network)
    except UserError as error:
        raise UserError(f"params.yaml: pq.permute: {error}; give false") from None
    wanted = network(images[:CHECKED])
    groups, _ = graph.groups(stay={networks.output_layer(network)})
    saved, moved, before, after = network.state_dict().keys(), 0, 0.0, 0.0
    made_by_code = {name: value.clone() for name, value in network.named_buffers() if name not in saved}  # in its order
    for group in groups:
        found = similarity(graph, group, spans)
        if found is None:
            continue
        similar, span = found
        order = neighbours(similar, span)
        if order == [*range(len(order))]:
            continue
        state = {name: value.clone() for name, value in network.state_dict().items()}
        try:
            graph.arrange(group, order)
            arranged = True
        except Exception:  # whatever is raised where Torch-Pruning lost its way
            arranged = False
        for name, value in made_by_code.items():
            network.get_buffer(name).copy_(value)
        if arranged and same(network(images[:CHECKED]), wanted):
            moved += len(order)
            before += len(order) * likeness(similar, range(len(order)), span)
            after += len(order) * likeness(similar, order, span)
        else:
            network.load_state_dict(state)
    if moved:
        cosines = f"{before / moved:.2f} -> {after / moved:.2f}"
        run.say(f"{moved} channels in another order: cosine of the weights that share a block {cosines}")
    else:
        run.say("pq.permute: no channels can be put in another order")


def channels_per_block(network: networks.Network, p: Params) -> dict[str, int]:
    """By layer, how many channels the longest block that may be tried reads from, where they are several whole ones."""
    longest = with_blocks(p, max(SCALES)) if p.allocation == "sensitivity" else p
    spans = {}
    for name, layer in layers_to_code(network, p).items():
        length, kernel = block_length(layer, longest), layer.weight[0, 0].numel()
        if length % kernel == 0 and length > kernel:
            spans[name] = length // kernel
    return spans


def similarity(graph: ChannelGraph, group: Group, spans: dict[str, int]) -> tuple[Tensor, int] | None:
    """Cosines (n, n) of the weights with which the group's n channels are read, over all layers in which blocks read
    several of them, and how many come together in the one with the most weights; None if there is no such layer, or
    there are fewer channels."""
    readers = {name: channels for name, channels in graph.readers(group).items() if name in spans}
    if not readers:
        return None
    weights = {name: graph.modules[name].weight for name in readers}
    parts = [
        (weight[:, readers[name]] / weight.square().mean().sqrt().clamp_min(1e-30)).transpose(0, 1).flatten(1)
        for name, weight in weights.items()
    ]
    read = torch.nn.functional.normalize(torch.cat(parts, 1), dim=1)
    span = spans[max(weights, key=lambda name: weights[name].numel())]
    return (read @ read.t(), span) if span <= len(read) else None


def neighbours(similar: Tensor, span: int) -> list[int]:
    """An order in which each `span` channels are alike: the most similar two, what is most similar to both, and so on;
    then the most similar two of those that are left.

    >>> neighbours(torch.tensor([[1.0, 0.1, 0.9, 0.2], [0.1, 1, 0.3, 0.4], [0.9, 0.3, 1, 0], [0.2, 0.4, 0, 1]]), 2)
    [0, 2, 1, 3]
    """
    count, order = len(similar), list[int]()
    pairs = similar.clone().fill_diagonal_(-torch.inf)  # of channels that are not yet in the order
    while count - len(order) >= span:
        block = list(divmod(int(pairs.argmax()), count))
        while len(block) < span:
            block.append(int(similar[block].sum(0).index_fill(0, torch.tensor(order + block), -torch.inf).argmax()))
        pairs[block], pairs[:, block] = -torch.inf, -torch.inf
        order += block
    return order + sorted({*range(count)} - {*order})


def likeness(similar: Tensor, order: Sequence[int], span: int) -> float:
    """The mean cosine of two channels that share a block."""
    blocks = torch.tensor(order)[: len(order) // span * span].view(-1, span)
    of_two = similar[blocks[:, :, None], blocks[:, None]]
    return float((of_two.sum((1, 2)) - of_two.diagonal(dim1=1, dim2=2).sum(1)).mean()) / (span * (span - 1))
