"""Plan where in the arena each buffer lies, and what is computed twice so that everything fits.

Offsets are assigned by lifetime, the largest buffers first. An elementwise operation overwrites an input that nothing
needs any more. Where that is not enough, the planner trades time for memory: it recomputes values of the forward pass
that the backward pass needs instead of keeping them. And a convolution that is the last to read its input works row by
row and writes its output into the memory of its input, shifted by a few rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowenergy.base.errors import UserError
from lowenergy.runtimes.c.operations import IMAGE, Buffer, Conv, Map, Operation, Program, View, strides_of

ALIGNED = 8
NEAR = 4  # a recomputed buffer is kept for this many further operations, in case they need it too


class NoPlanError(UserError):
    """No plan fits into the RAM that was asked for."""

    def __init__(self, limit: int, smallest: int) -> None:
        super().__init__(f"no plan of {limit:,} bytes of RAM: the smallest takes {smallest:,}; give --ram {smallest}")
        self.smallest = smallest


@dataclass(frozen=True)
class Plan:
    """Operations in the order in which they run, and where in the arena each buffer lies."""

    program: Program  # including what is computed again
    offsets: Mapping[Buffer, int]  # bytes from the arena's start
    tiles: Mapping[Operation, int]  # offsets of each convolution's decoded weights
    descending: Collection[Operation]  # convolutions that go row by row, starting with the last row
    bytes: int
    work: int  # multiply-accumulates
    least_work: int  # the same if nothing were computed again


def plan(program: Program, limit: int | None = None) -> Plan:
    """Plan the arena of a program.

    Args:
        limit: bytes that the arena may take; None for the fastest plan.
    Raises:
        NoPlanError: no plan is that small; the error names the smallest one found.
    """
    program = _without_dead(program)
    saved = _saved(program)
    simple = _placed(program, _Choice(frozenset(saved), False))
    if limit is None or simple.bytes <= limit:
        return simple
    best = _squeezed(program, saved, limit)
    if best.bytes > limit:
        raise NoPlanError(limit, best.bytes)
    return best


@dataclass(frozen=True)
class _Choice:
    kept: frozenset[Buffer]  # results of the forward pass that stay in memory for the backward pass
    lines: bool | frozenset[int] = False  # places in the schedule of convolutions that go row by row; True for all


def _without_dead(program: Program) -> Program:
    wanted = {view.of for view in (program.logits, program.energy, program.gradient) if view is not None}
    kept = []
    ahead = program.ahead
    for place in reversed(range(len(program.operations))):
        operation = program.operations[place]
        if operation.writes() in wanted:
            wanted |= set(operation.reads())
            kept.append(operation)
        elif place < program.ahead:
            ahead -= 1
    return replace(program, operations=kept[::-1], ahead=ahead)


def _saved(program: Program) -> set[Buffer]:
    """Buffers that the forward pass writes and the backward pass reads."""
    made = {operation.writes() for operation in program.operations[: program.ahead]}
    needed = {buffer for operation in program.operations[program.ahead :] for buffer in operation.reads()}
    return made & needed


def _scheduled(program: Program, kept: Collection[Buffer]) -> Program:
    """Return the program with operations repeated in the backward pass for every buffer that is not kept."""
    makers: dict[Buffer, list[Operation]] = {}
    for operation in program.operations:
        makers.setdefault(operation.writes(), []).append(operation)
    there = program.operations[: program.ahead]
    dropped = _saved(program) - set(kept)
    made_there = {operation.writes() for operation in there}
    schedule = list(there)
    again: dict[Buffer, tuple[Buffer, int]] = {}  # the copy, and the last place in `back` that may use it

    def remake(buffer: Buffer, local: dict[Buffer, Buffer]) -> Buffer:
        if buffer in local:
            return local[buffer]
        if buffer not in made_there or buffer in kept:
            return buffer
        copy = replace_buffer(buffer)
        for maker in makers[buffer]:
            new = {given: remake(given, local) for given in maker.reads() if given is not buffer}
            schedule.append(maker.renamed({**new, buffer: copy}))
        local[buffer] = copy
        return copy

    back = program.operations[program.ahead :]
    for place, operation in enumerate(back):
        again = {buffer: entry for buffer, entry in again.items() if entry[1] >= place}
        new: dict[Buffer, Buffer] = {}
        for buffer in operation.reads():
            if buffer in dropped:
                if buffer not in again:
                    local = {known: remade for known, (remade, _) in again.items()}
                    again[buffer] = (remake(buffer, local), place + NEAR)
                new[buffer] = again[buffer][0]
        schedule.append(operation.renamed(new))
    return replace(program, operations=schedule)


def replace_buffer(buffer: Buffer) -> Buffer:
    return replace(buffer)


def _lifetimes(program: Program, operations: Sequence[Operation]) -> dict[Buffer, tuple[int, int]]:
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for place, operation in enumerate(operations):
        first.setdefault(operation.writes(), place)
        for buffer in (operation.writes(), *operation.reads()):
            last[buffer] = place
    ends = {view.of: program.ahead for view in (program.logits, program.energy) if view is not None}
    if program.gradient is not None:
        ends[program.gradient.of] = len(operations)
    for held, end in ends.items():
        if isinstance(held, Buffer) and held in last:
            last[held] = max(last[held], end)
    return {buffer: (first[buffer], last[buffer]) for buffer in first}


def _placed(program: Program, choice: _Choice) -> Plan:
    least = sum(operation.work for operation in program.operations)
    program = _scheduled(program, choice.kept)
    operations = list(program.operations)
    if choice.lines:
        lives = _lifetimes(program, operations)
        for place, operation in enumerate(operations):
            wanted = choice.lines is True or place in choice.lines
            if wanted and isinstance(operation, Conv) and operation.can_line and _overtakes(operation, place, lives):
                operations[place] = replace(operation, line=True)
    program = replace(program, operations=operations)
    lives = _lifetimes(program, operations)
    shift: dict[Buffer, tuple[Buffer, int]] = {}  # whose memory it shares, and bytes from its start
    descending = set()

    def base(buffer: Buffer) -> tuple[Buffer, int]:
        if buffer not in shift:
            return buffer, 0
        owner, by = shift[buffer]
        first, more = base(owner)
        return first, by + more

    for place, operation in enumerate(operations):
        out = operation.writes()
        if lives[out][0] != place or out in shift:
            continue
        if isinstance(operation, Map):
            for view in operation.views:
                given = view.of
                if (
                    not isinstance(given, Buffer)
                    or given is IMAGE
                    or lives[given][1] != place
                    or given.kind != out.kind
                ):
                    continue
                same = [v for v in operation.views if v.of is given]
                whole = view.index.numel() == given.size == out.size
                if whole and given is not out and all(_alike(v.index, operation.out.index) for v in same):
                    shift[out] = (given, 0)
                    break
        elif isinstance(operation, Conv) and operation.line:
            given = operation.views[0].of
            assert isinstance(given, Buffer)
            up = base(given)[1] <= 0
            shift[out] = (given, operation.slack if up else -operation.slack)
            if up:
                descending.add(operation)
    pieces: dict[Buffer, list[tuple[int, int, int, int]]] = {}  # start, size, first, last
    for buffer, (first, last) in lives.items():
        owner, by = base(buffer)
        pieces.setdefault(owner, []).append((by, buffer.bytes, first, last))
    tiles: dict[Operation, Buffer] = {}
    for place, operation in enumerate(operations):
        if isinstance(operation, Conv):
            tiles[operation] = Buffer(operation.tile, "uint8_t" if operation.integers else "float")
            pieces[tiles[operation]] = [(0, tiles[operation].bytes, place, place)]
    starts = _fitted(pieces)
    offsets = {buffer: starts[base(buffer)[0]] + base(buffer)[1] for buffer in lives}
    top = max((starts[owner] + by + size for owner, parts in pieces.items() for by, size, *_ in parts), default=0)
    work = sum(operation.work for operation in operations)
    return Plan(
        program, offsets, {operation: starts[tile] for operation, tile in tiles.items()}, descending,
        -(-top // ALIGNED) * ALIGNED, work, least,
    )  # fmt: skip


_ALIKE: dict[tuple[int, int], tuple[Tensor, Tensor, bool]] = {}


def _alike(a: Tensor, b: Tensor) -> bool:
    """Are two indices equal? Answers are cached, since a planner asks about the same two tensors a hundred times."""
    known = _ALIKE.get((id(a), id(b)))
    if known is None or known[0] is not a or known[1] is not b:
        if len(_ALIKE) > 4096:
            _ALIKE.clear()
        known = _ALIKE[id(a), id(b)] = (a, b, torch.equal(a, b))
    return known[2]


def _overtakes(operation: Conv, place: int, lives: Mapping[Buffer, tuple[int, int]]) -> bool:
    given = operation.views[0].of
    if not isinstance(given, Buffer) or given is IMAGE:
        return False
    out = operation.writes()
    return lives[given][1] == place and operation.start_in == 0 and (given.size, given.kind) == (out.size, out.kind)


def _fitted(pieces: Mapping[Buffer, list[tuple[int, int, int, int]]]) -> dict[Buffer, int]:
    """Return where each piece starts: the largest is placed first, each at the lowest place free while it lives."""

    def extent(parts: list[tuple[int, int, int, int]]) -> int:
        return max(by + size for by, size, *_ in parts) - min(by for by, *_ in parts)

    order = sorted(pieces, key=lambda owner: (-extent(pieces[owner]), min(p[2] for p in pieces[owner])))
    taken: list[tuple[int, int, int, int]] = []
    starts = {}
    for owner in order:
        parts = pieces[owner]
        lowest = -min(by for by, *_ in parts)
        candidates = {_up(lowest)}
        for start, size, first, last in taken:
            for by, _, begin, end in parts:
                if first <= end and begin <= last:
                    candidates.add(_up(max(lowest, start + size - by)))
        for start in sorted(candidates):
            if all(
                start + by + size <= other or other + width <= start + by or last < begin or end < first
                for by, size, begin, end in parts
                for other, width, first, last in taken
            ):
                break
        starts[owner] = start
        taken += [(start + by, size, begin, end) for by, size, begin, end in parts]
    return starts


def _up(number: int) -> int:
    return -(-number // ALIGNED) * ALIGNED


def _squeezed(program: Program, saved: Collection[Buffer], limit: int) -> Plan:
    """Drop the buffers that help until the limit is met, then keep again what that did not need."""

    def placed(kept: Collection[Buffer], lines: bool | frozenset[int] = True) -> Plan:
        return _placed(program, _Choice(frozenset(kept), lines))

    def rank(trial: tuple[Plan, set[Buffer]]) -> tuple[int, int, int]:
        return max(trial[0].bytes, limit), _crowding(trial[0], limit), trial[0].work

    sizes = sorted({buffer.bytes for buffer in saved})
    starts = (
        [{buffer for buffer in saved if buffer.bytes < size} for size in (*sizes, sizes[-1] + 1)] if sizes else [set()]
    )
    now, kept = min(((placed(start), start) for start in starts), key=rank)
    while now.bytes > limit and kept:
        trials = [(placed(kept - {buffer}), kept - {buffer}) for buffer in sorted(kept, key=lambda b: -b.size)]
        best = min(trials, key=rank)
        if rank(best) >= rank((now, kept)):
            break
        now, kept = best
    for buffer in sorted(set(saved) - kept, key=lambda b: -b.size):
        trial = placed(kept | {buffer})
        if trial.bytes <= max(limit, now.bytes) and trial.work < now.work:
            now, kept = trial, kept | {buffer}
    lines = {place for place, op in enumerate(now.program.operations) if isinstance(op, Conv) and op.line}
    for place in sorted(lines, key=lambda p: -now.program.operations[p].work):
        trial = placed(kept, frozenset(lines - {place}))
        if trial.bytes <= max(limit, now.bytes):
            lines.discard(place)
            now = trial
    return now


def _crowding(found: Plan, limit: int) -> int:
    """Bytes beyond the limit, summed over time: falls even where dropping one buffer does not lower the peak yet."""
    lives = _lifetimes(found.program, found.program.operations)
    total = 0
    for place in range(len(found.program.operations)):
        top = max(
            (found.offsets[b] + b.bytes for b, (first, last) in lives.items() if first <= place <= last), default=0
        )
        total += max(0, top - limit)
    return total


def view_strides(view: View) -> tuple[int, list[int]]:
    grid = strides_of(view.index)
    assert grid is not None
    return grid
