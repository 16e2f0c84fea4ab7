"""Find the channels that only go together; remove those that can go, or give them another order.

Torch-Pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900) says which weights belong to a channel. It assumes
that an operation it does not know leaves channels where they are. So before anything is removed from a network from
elsewhere, removal is tried on a copy in which channels are there twice or more: without the twins, that copy must
answer as before. If it does not, or does not run, the channels stay.
"""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency import graph as dependencies
from torch_pruning.dependency import index_mapping

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.storage.artifact import weights

Layer = nn.modules.conv._ConvNd | nn.Linear
Holder = tuple[str, str]  # a layer's name, and which of its channels: "out" or "in"
Chosen = dict[str, list[int]]  # by root, the indices of a group's sets

THINNEST = 0.9  # no layer loses more than this share of its channels: none may vanish
UNKNOWN = "Torch-Pruning does not know what goes with them"
PLACES = 16  # of channels per operation, on average; a group with more goes round in circles
MAPPINGS: dict[Any, Callable[[Any, Any], None]] = {
    tp.ops.OPTYPE.CONCAT: index_mapping.update_concat_index_mapping,
    tp.ops.OPTYPE.SPLIT: index_mapping.update_split_index_mapping,
    tp.ops.OPTYPE.RESHAPE: index_mapping.update_reshape_index_mapping,
    tp.ops.OPTYPE.UNBIND: index_mapping.update_unbind_index_mapping,
    tp.ops.OPTYPE.EXPAND: index_mapping.update_expand_index_mapping,
    tp.ops.OPTYPE.SLICE: index_mapping.update_slice_index_mapping,
}
SAME = 1e-4  # relative difference of outputs that are summed in another order
IMPORTANCE: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first"),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2, group_reduction="first"),
    "group": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
}


class CannotGoError(UserError):
    """Says why the channels of a group have to stay."""


@dataclass(frozen=True)
class Group:
    """Channels that several layers share: what one of them loses, all lose.

    They go in sets: of one channel each, or of several where a grouped convolution or norm must lose equally many in
    each of its groups.
    """

    root: str  # the first layer that makes them
    makers: tuple[str, ...]  # the layers whose outputs they are
    sets: tuple[tuple[int, ...], ...]  # channels of the root
    held: Mapping[Holder, tuple[int, ...]]  # how many channels of a layer go with each of the sets
    scores: tuple[float, ...]  # importance of each of the sets

    @cached_property
    def costs(self) -> tuple[int, ...]:
        """How many outputs of layers go with each of the sets."""
        return tuple(map(sum, zip(*(self.held[name, "out"] for name in self.makers), strict=True)))

    def can_lose(self, left: Mapping[Holder, int], fewest: Mapping[Holder, int], i: int = 0, sets: int = 1) -> bool:
        """True if `sets` sets like set `i` can go from layers with `left` channels that must keep `fewest`."""
        return all(left[holder] - sets * held[i] >= fewest[holder] for holder, held in self.held.items() if held[i])


class ChannelGraph:
    """A network, and which of its channels go together. It stays valid while `remove` takes channels away.

    Raises:
        UserError: the network cannot be traced.
    """

    def __init__(self, network: networks.Network) -> None:
        self.network = network.eval()
        self.modules = dict(network.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.graph = tp.DependencyGraph()
        images = torch.zeros(1, *network.spec.input_shape, device=next(network.parameters()).device)
        with all_learning(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.graph.build_dependency(network, example_inputs=(images,))
            except Exception as error:  # in the network's own code; or in a mapping, which comes last, see _together
                if not hasattr(self.graph, "module2node"):
                    raise UserError(
                        f"the channels of {network.spec.name} cannot be traced: {_first_line(error)}"
                    ) from None
        for node in self.graph.module2node.values():
            if node.type == tp.ops.OPTYPE.RESHAPE and not _flattens(node):
                node.type = tp.ops.OPTYPE.ELEMENTWISE
                for dependency in [d for n in (node, *node.inputs, *node.outputs) for d in n.dependencies]:
                    if node in (dependency.source, dependency.target):
                        dependency.index_mapping[0] = None
        self.up_to_date = False

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The convolutions and fully connected layers that the network calls."""
        return {self.names[m]: m for m in self.graph.module2node if isinstance(m, Layer) and m in self.names}

    @cached_property
    def sized(self) -> dict[str, Layer]:
        """These layers, and the coded ones that are called without gradients."""
        return {**networks.coded_layers(self.network), **self.layers}

    def groups(self, importance: str = "group", stay: Collection[str] = ()) -> tuple[list[Group], dict[str, str]]:
        """The groups that can go, as far as can be seen, and by layer, why others cannot.

        Args:
            stay: layers that keep their outputs.
        """
        groups: list[Group] = []
        stuck: dict[str, str] = {}
        seen: set[str] = set()
        tied, sizes, fewest = _tied(self.network), self.sizes(), self.fewest()
        for root in self.layers:
            if root in seen:
                continue
            try:
                group = self.group(root, importance)
            except CannotGoError as error:
                stuck[root] = str(error)
                continue
            except Exception:  # whatever Torch-Pruning raises where it loses its way
                stuck[root] = UNKNOWN
                continue
            seen |= set(group.makers)
            if with_tied := sorted({name for name, _ in group.held} & tied):
                stuck |= dict.fromkeys(group.makers, f"{with_tied[0]} shares its weight")
            elif with_staying := sorted(set(stay) & set(group.makers)):
                stuck |= dict.fromkeys(
                    set(group.makers) - set(stay), f"they go together with those of {with_staying[0]}"
                )
            elif group.can_lose(sizes, fewest):
                groups.append(group)
        unseen = networks.coded_layers(self.network).keys() - self.layers.keys()
        return groups, stuck | dict.fromkeys(unseen, "it is called without gradients")

    def _together(self, root: str, channels: Sequence[int]) -> Any:
        """Torch-Pruning's group of these channels."""
        if not self.up_to_date:
            for node in self.graph.module2node.values():
                if update := MAPPINGS.get(node.type):
                    with suppress(Exception):  # sums of parts it cannot size; the trial copy shows if that does harm
                        update(self.graph, node)
            self.up_to_date = True
        layer = self.modules[root]
        remove = self.graph.get_pruner_of_module(layer).prune_out_channels
        with _as_it_is(len(self.graph.module2node)):
            return self.graph.get_pruning_group(layer, remove, channels)

    def _held(self, together: Any) -> Iterator[tuple[Any, str, list[int], list[int]]]:
        """Yield each module, "out" or "in", its channels, and the root's channel that each of them belongs to."""
        for item in together:
            side = "out" if self.graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            yield item.dep.target.module, side, item.idxs, item.root_idxs

    def group(self, root: str, importance: str = "group") -> Group:
        """The channels that this layer makes, and what goes with them.

        Raises:
            CannotGoError: that is not known, or does not come in equal sets.
        """
        count = self.graph.get_out_channels(self.modules[root])
        together = self._together(root, range(count))
        steps = [self._step(module, side) for module, side, _, _ in self._held(together)]
        parts = math.lcm(*(max(1, count // step) for step in steps if step))
        sets = _in_step(count, parts)
        # Channels of the root may need each other, as where a layer's halves are multiplied with each other.
        also = [
            c
            for m, side, c, _ in self._held(self._together(root, sets[-1]))
            if (m, side) == (self.modules[root], "out")
        ]
        if len(also[0]) > parts:
            sets = _in_step(count, len(also[0]))
            if set(also[0]) != set(sets[also[0][0] % len(sets)]):
                raise CannotGoError("some need others in no regular way")
        set_of = {channel: i for i, channels in enumerate(sets) for channel in channels}
        held: dict[Holder, tuple[int, ...]] = {}
        makers = []
        for module, side, channels, roots in self._held(together):
            if None in roots:
                raise CannotGoError("it is not known where they go")
            self._check_groups(module, side, channels, [set_of[r] for r in roots])
            if isinstance(module, Layer):
                counts = Counter(set_of[r] for r in roots)
                held[self.names[module], side] = tuple(counts[i] for i in range(len(sets)))
                if side == "out":
                    makers.append(self.names[module])
        scores = IMPORTANCE[importance]()(together).nan_to_num()
        means = [float(scores[list(channels)].mean()) for channels in sets]
        return Group(root, tuple(makers), sets, held, tuple(means))

    def _step(self, module: Any, side: str) -> int:
        """How many channels each group has in a layer that keeps groups of channels apart; 0 for other layers.

        All groups must lose equally many. A depthwise convolution loses whole groups instead, so it gives 0.
        """
        groups = getattr(module, "num_groups", 1)
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups != module.out_channels:
            groups = module.groups
        return _size(self.graph, module, side) // groups if groups > 1 else 0

    def _check_groups(self, module: Any, side: str, channels: list[int], sets: list[int]) -> None:
        if not (step := self._step(module, side)):
            return
        groups = _size(self.graph, module, side) // step
        places: dict[int, list[set[int]]] = defaultdict(lambda: [set() for _ in range(groups)])
        for channel, i in zip(channels, sets, strict=True):
            places[i][channel // step].add(channel % step)
        if any(in_group != of_set[0] for of_set in places.values() for in_group in of_set):
            raise CannotGoError(f"{self.names[module]} has other groups")

    def sizes(self) -> dict[Holder, int]:
        """How many channels each layer makes and reads."""
        return {
            (name, side): _size(self.graph, layer, side) for name, layer in self.sized.items() for side in ("out", "in")
        }

    def fewest(self, whole: Mapping[Holder, int] | None = None) -> dict[Holder, int]:
        """How many channels each layer keeps in any case.

        Args:
            whole: each layer's channels before any were removed; a tenth of its outputs is kept.
        """
        least = {}
        for (name, side), count in (whole or self.sizes()).items():
            layer, tenth = self.modules[name], math.floor((1 - THINNEST) * count + 1e-9)
            # Torch-Pruning takes a grouped convolution with one output per group for a depthwise one.
            floor = 2 * layer.groups if side == "out" and self._step(layer, side) else 1
            least[name, side] = max(floor, tenth) if side == "out" and whole else floor
        return least

    def remove(self, group: Group, chosen: Collection[int]) -> None:
        """Remove the chosen ones of the group's sets.

        Raises:
            CannotGoError: another number of channels than expected would go with them.
        """
        together = self._together(group.root, sorted(c for i in chosen for c in group.sets[i]))
        for module, side, channels, _ in self._held(together):
            if isinstance(module, Layer):
                wanted = sum(group.held[self.names[module], side][i] for i in chosen)
                if len(channels) != wanted:
                    raise CannotGoError(f"{self.names[module]} loses {len(channels)} channels where {wanted} should go")
        with all_learning(self.network):
            together.prune(record_history=False)
        for node in self.graph.module2node.values():
            sizes = (
                node.module.split_sizes if node.type == tp.ops.OPTYPE.SPLIT else None
            )  # the only thing it keeps up to date
            if sizes and None not in sizes:  # None where it has not found out how they split
                node.module.offsets = [0, *accumulate(sizes)]
        self.up_to_date = False

    def twin(self, group: Group, generator: torch.Generator) -> list[int]:
        """Make all channels of the group copies of a few, which alone are read from now on; return the copies' sets."""
        count, sizes, fewest = len(group.sets), self.sizes(), self.fewest()
        # Each equally often, so that what is normalised over all channels stays the same.
        evenly = (count // d for d in range(2, count + 1) if count % d == 0)
        few = next((few for few in evenly if group.can_lose(sizes, fewest, sets=count - few)), count - 1)
        order = torch.randperm(count, generator=generator).tolist()
        copy_of = {order[i]: order[i % few] for i in range(few, count)}
        channels = {
            old: new
            for i, j in copy_of.items()
            for old, new in zip(group.sets[i], group.sets[j], strict=True)
        }  # fmt: skip
        for (module, side), by_root in self._places(group).items():
            pairs = [pair for old, new in channels.items() for pair in zip(by_root[old], by_root[new], strict=True)]
            if pairs and isinstance(module, Layer) and side == "in":
                place = torch.tensor([old for old, _ in pairs]) % module.weight.shape[_read_along(module)]
                with torch.no_grad():
                    module.weight.index_fill_(_read_along(module), place, 0)
            elif pairs:
                _copy_channels(self.graph, module, side, *map(list, zip(*pairs, strict=True)))
        return list(copy_of)

    def _places(self, group: Group) -> dict[tuple[Any, str], dict[int, list[int]]]:
        """Where the group's channels are: by module and "out" or "in", and by the root's channel."""
        places: dict[tuple[Any, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for module, side, channels, roots in self._held(self._together(group.root, sum(group.sets, ()))):
            for channel, root in zip(channels, roots, strict=True):
                places[module, side][root].add(channel)
        every = [channel for channels in group.sets for channel in channels]
        return {at: {root: sorted(by_root[root]) for root in every} for at, by_root in places.items()}

    def readers(self, group: Group) -> dict[str, list[int]]:
        """The layers that read one channel from each of the group's sets, undivided, and which, by set."""
        return {
            self.names[module]: [by_root[root][0] for (root,) in group.sets]
            for (module, side), by_root in self._places(group).items()
            if isinstance(module, Layer) and side == "in" and module in self.names
            if getattr(module, "groups", 1) == 1 and all(len(channels) == 1 for channels in group.sets)
            if all(len(found) == 1 for found in by_root.values())
        }

    def arrange(self, group: Group, order: Sequence[int]) -> None:
        """Put set order[i] of the group in the place of set i. What the network computes stays the same."""
        channels = [
            (old, new)
            for i, j in enumerate(order)
            for old, new in zip(group.sets[i], group.sets[j], strict=True)
        ]  # fmt: skip
        for (module, side), by_root in self._places(group).items():
            pairs = [pair for old, new in channels for pair in zip(by_root[old], by_root[new], strict=True)]
            _copy_channels(self.graph, module, side, *map(list, zip(*pairs, strict=True)))


@contextmanager
def _as_it_is(operations: int) -> Iterator[None]:
    """Within this context, Torch-Pruning does not look at all operations, hundreds in a DenseNet, again for each group.
    Nor does it compare each operation that it meets with all that the group holds: cascaded attention took hours so.

    It also gives up on a group whose channels come back to the same operations in ever new places, as where a network
    adds one part of its channels to another in place: that would go on for ever.
    """

    class Bounded(tp.dependency.Group):
        def __init__(self) -> None:
            super().__init__()
            self.there: set[tuple[Any, ...]] = set()

        def add_dep(self, dep: Any, idxs: Any) -> None:
            super().add_dep(dep, idxs)
            self.there.add((dep.target, dep.handler, *idxs))
            if len(self) > PLACES * operations:
                raise CannotGoError(UNKNOWN)

        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return (dep.target, dep.handler, *idxs) in self.there

    update, group = index_mapping.update_index_mapping, dependencies.Group
    index_mapping.update_index_mapping, dependencies.Group = lambda graph: None, Bounded
    try:
        yield
    finally:
        index_mapping.update_index_mapping, dependencies.Group = update, group


def _flattens(node: Any) -> bool:
    """True if a reshape is the one between convolutions and fully connected layers. Torch-Pruning mistakes others for
    it, such as those of channel shuffles."""

    def nearest(node: Any, side: str) -> set[Any]:
        kinds, seen, todo = set(), set(), list(getattr(node, side))
        while todo:
            other = todo.pop()
            if other in seen:
                continue
            seen.add(other)
            if other.type == tp.ops.OPTYPE.ELEMENTWISE:
                todo += getattr(other, side)
            else:
                kinds.add(other.type)
        return kinds

    return tp.ops.OPTYPE.LINEAR in nearest(node, "outputs") | nearest(node, "inputs")


def _in_step(count: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Split the channels into sets, each with one channel from each of `parts` equal parts."""
    if count % parts:
        raise CannotGoError(f"{count} channels are not {parts} equal parts")
    return tuple(tuple(range(i, count, count // parts)) for i in range(count // parts))


def _size(graph: Any, module: Any, side: str) -> int:
    pruner = graph.get_pruner_of_module(module)
    size: int = pruner.get_out_channels(module) if side == "out" else pruner.get_in_channels(module)
    return size


@torch.no_grad()
def _copy_channels(graph: Any, module: Any, side: str, old: list[int], new: list[int]) -> None:
    """Copy the values of channels `new` into `old`, or where a layer reads them, what it reads `new` with."""
    if isinstance(module, nn.Parameter):
        dim = graph.module2node[module].pruning_dim
        module.index_copy_(
            dim % module.ndim, torch.tensor(old), module.index_select(dim % module.ndim, torch.tensor(new))
        )
        return
    if isinstance(module, Layer) and side == "in":
        dim = _read_along(module)
        to, of = (torch.tensor(channels) % module.weight.shape[dim] for channels in (old, new))
        module.weight.index_copy_(dim, to, module.weight.index_select(dim, of))
        return
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels
    dim = 1 if isinstance(module, nn.Embedding) or (getattr(module, "transposed", False) and not depthwise) else 0
    weight: Any = getattr(module, "weight", None)
    for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        at = dim if value is weight and value.ndim > 1 else 0
        if value.ndim and value.shape[at] > max(old + new):
            value.index_copy_(at, torch.tensor(old), value.index_select(at, torch.tensor(new)))


def _read_along(layer: Layer) -> int:
    """The dimension of the weight that goes along what the layer reads."""
    return 0 if getattr(layer, "transposed", False) else 1


@contextmanager
def all_learning(network: nn.Module) -> Iterator[None]:
    """Within this context, every weight requires a gradient, by which Torch-Pruning finds its way. Afterwards, weights
    that did not require one before do not again, even where pruning has put new ones in their place."""
    frozen = {name for name, w in network.named_parameters() if not w.requires_grad}
    for _, w in network.named_parameters():
        w.requires_grad_(w.is_floating_point())
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, w in network.named_parameters():
            w.requires_grad_(name not in frozen)


def _tied(network: nn.Module) -> set[str]:
    """Names of the modules that share a parameter with another one."""
    owners: dict[int, set[str]] = defaultdict(set)
    for name, module in network.named_modules():
        for w in module.parameters(recurse=False):
            owners[id(w)].add(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- which can go -----------------------------------------------------------------------------------------------------


def stuck(network: networks.Network) -> dict[str, str]:
    """Find the layers of a network from elsewhere whose channels all have to stay: by layer, why."""
    original = networks.duplicate(network).cpu().eval()
    groups, reasons = ChannelGraph(networks.duplicate(original)).groups(stay={networks.output_layer(network)})
    makers = {group.root: group.makers for group in groups}

    def settle(roots: list[str], good: list[str], why: str | None = None) -> list[str]:
        """Those of `roots` whose groups can go together with those of `good`, which are known to.

        Args:
            why: the reason why not all of them can, where it is known.
        """
        why = why or _wrong_without(original, good + roots)
        if why is None:
            return roots
        if len(roots) == 1:
            reasons.update(dict.fromkeys(makers[roots[0]], why))
            return []
        half = len(roots) // 2
        first = settle(roots[:half], good)
        return first + settle(roots[half:], good + first, why if len(first) == half else None)

    if makers:
        settle(list(makers), [])
    return {name: reasons[name] for name, _ in network.named_modules() if name in reasons}


def _wrong_without(original: networks.Network, roots: Sequence[str]) -> str | None:
    """What goes wrong if channels of these groups that nothing needs are removed; None if nothing does."""
    generator = torch.Generator().manual_seed(0)
    network = networks.duplicate(original)
    images = torch.rand(2, *network.spec.input_shape, generator=generator) * 2 - 1
    with torch.no_grad():
        for w in network.parameters():
            if (
                w.is_floating_point() and w.numel() and (w == w.flatten()[0]).all()
            ):  # fresh scales are all alike and show nothing, at 0 even hide all
                w.copy_(0.5 + torch.rand(w.shape, generator=generator))
    try:
        graph = ChannelGraph(network)
        groups = [graph.group(root) for root in roots]
        twins = [graph.twin(group, generator) for group in groups]
        with torch.no_grad():
            wanted = network(images)
        for group, chosen in zip(groups, twins, strict=True):
            graph.remove(group, chosen)
    except CannotGoError as error:
        return str(error)
    except Exception:
        return UNKNOWN
    try:
        with torch.no_grad():
            if not same(network(images), wanted):
                return "it would answer differently"
            for group in map(graph.group, roots):  # and with a number of channels that does not divide the old one
                if group.can_lose(graph.sizes(), graph.fewest()):
                    graph.remove(group, [0])
            wanted = network(images)
            with torch.random.fork_rng(devices=[]):
                networks.duplicate(network).train().outputs(images)  # which may take another path
            again = networks.build_with(replace(network.spec, given=networks.Given(original)), weights(network))
            return None if same(again(images), wanted) else "it cannot be made again with fewer"
    except CannotGoError as error:
        return str(error)
    except Exception as error:  # whatever the network's own code does with fewer channels
        return f"it does not run with fewer ({_first_line(error)})"


def same(found: Tensor, wanted: Tensor) -> bool:
    return networks.distance(found, wanted, offset=0.1) <= SAME


# -- which of them go -------------------------------------------------------------------------------------------------


def lowest(groups: Sequence[Group], left: Mapping[Holder, int], fewest: Mapping[Holder, int], outputs: float) -> Chosen:
    """Choose the least important sets that together make up about so many outputs of layers. Where a layer would be
    left with too few, others lose more instead.

    Args:
        left: how many channels each layer has.
        fewest: how many it keeps in any case.
    """
    order = sorted((score, i, j) for i, group in enumerate(groups) for j, score in enumerate(group.scores))
    chosen: Chosen = {group.root: [] for group in groups}
    counts, gone = Counter(left), 0
    for _, i, j in order:
        group = groups[i]
        if gone + group.costs[j] / 2 > outputs:
            break
        if group.can_lose(counts, fewest, j):
            counts.subtract({holder: held[j] for holder, held in group.held.items()})
            chosen[group.root].append(j)
            gone += group.costs[j]
    return chosen
