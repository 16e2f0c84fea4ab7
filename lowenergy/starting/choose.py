"""Choose values for params.yaml that suit the images and the machine, and predict how long each stage will take.

Every training gets a number of updates between the least that is worth it and the most that still helps. The plan takes
the largest images with which the pipeline fits into the budget at the least number of updates, if need be fewer images
than there are, and then as many updates as fill the budget. What does not fit at all is left out: first the JEM, then
the EBM.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lowenergy.base.errors import UserError
from lowenergy.networks import Spec
from lowenergy.starting.look import Images, Machine
from lowenergy.starting.measure import BATCH, Cost, precision

SIZES = (224, 128, 96, 64, 48, 32, 28, 16, 8)
# Side that is chosen unless the user asks for more: classes of photographs seldom need it, and energies take four times
# as long at each doubling.
LARGEST = 64
MARGIN = 1.15  # how much slower machines are than while a few steps were measured
STAGE = 10.0  # seconds that a stage takes besides its work: Python, torch, the files
# Factor for what comes on top of the steps: moving images, averaging weights, validation, checkpoints, other stages.
STEPS = 1.2
# Seconds that a method takes besides its steps, on two cores without AVX-512, to trace and compare graphs, scan layers.
METHOD = {"distill": 0.0, "prune": 60.0, "quantize": 50.0, "pq": 110.0}
STUDENT_WIDTH = 8  # of energies' students
SMALLEST = 16  # pixels, for photographs: in smaller ones nothing can be seen, so teachers are dropped first
LIMIT = 48_000  # images: one pass over them is about the least number of updates of an energy
SAMPLES = 500  # drawn for the test figures, and as many again for those of validation
PROBES, CHAINS = 1400, 300  # real images, and chains, on which energies are matched
STATES = 5  # taken from each chain, see probe_images

Overlay = dict[str, Any]


@dataclass(frozen=True)
class Updates:
    """How often weights are updated: the least that is worth it, and the most that still helps."""

    least: int
    most: int

    def at(self, effort: float) -> int:
        return round(self.least * (self.most / self.least) ** effort)


TEACHER = {"classifier": Updates(800, 12_000), "ebm": Updates(1_500, 14_000), "jem": Updates(1_500, 14_000)}
STUDENT, STUDENT_RETRAIN = Updates(600, 4_000), Updates(600, 8_000)
FINETUNE, RETRAIN = Updates(200, 2_500), Updates(200, 3_000)
LATE = 0.667  # fraction of an energy's training before chains join in
CHAIN_STEPS = 5  # of each chain between two updates
LIFE = 50  # steps of a chain from noise, each twice as long as usual, which is as good (docs/energies.md)


@dataclass
class Stage:
    name: str
    seconds: float
    memory: int
    needs: list[str] = field(default_factory=list)


@dataclass
class Plan:
    size: int
    teachers: list[str]
    effort: float  # 0: the least number of updates, 1: the most
    values: Overlay
    stages: list[Stage]
    seconds: float  # from beginning to end, with as many stages at a time as the machine runs

    def memory(self, jobs: int) -> int:
        """Bytes that the largest stages take, `jobs` of them at a time."""
        return sum(heapq.nlargest(jobs, (stage.memory for stage in self.stages)))

    def lines(self, images: Images) -> list[str]:
        """Say what was chosen and why, and what each stage will take."""
        left = [kind for kind in TEACHER if kind not in self.teachers]
        smaller = self.size < sizes(images, None)[0]
        limit = self.values["data"].get("limit")
        lines = [
            f"params.yaml: images of {self.size} pixels" + (", as many as the budget allows" if smaller else ""),
            *([f"{limit:,} images to train on: one pass over all of them takes too long"] if limit else []),
            f"teachers {', '.join(self.teachers)}"
            + (f"; for want of time or memory not {', '.join(left)}" if left else ""),
            *(
                f"{kind}: {a['name']} of width {a['width']}, {self.values[kind]['train']['epochs']} epochs"
                for kind in self.teachers
                for a in [self.values[kind]["architecture"]]
            ),
            f"{'stage':36}{'minutes':>8}{'MiB':>8}",
        ]
        lines += [f"{s.name:36}{s.seconds / 60:8.1f}{s.memory / 2**20:8.0f}" for s in self.stages]
        return [*lines, f"in all, {self.seconds / 60:.0f} minutes by `lowenergy run`"]


def sizes(images: Images, wanted: int | None) -> list[int]:
    """Sides to try, the largest first."""
    if wanted is not None:
        return [wanted]
    most = min(images.side, LARGEST)
    return [size for size in SIZES if SMALLEST <= size <= most] or [8]


def specs(images: Images, size: int) -> dict[str, Spec]:
    """The networks: scorer, teachers and students."""

    def of(name: str, width: int, act: str, norm: str, head: str | None, outputs: int, stem: str = "3x3") -> Spec:
        return Spec(name, width, stem, act, norm, images.channels, size, outputs, head)

    classes = len(images.classes)
    stem = "3x3" if size <= 32 else "3x3-pool" if size <= 64 else "7x7"
    # Through the plain layers of a cnn, a fresh energy of images above 16 pixels has no slope to begin with. Half the
    # resolution at twice the width takes as long; for images of 32 pixels it draws no better. Students stay at the
    # whole resolution: a slope of 2x2 pixels in colour has twelve parts, for which so few channels leave no room.
    name, width, first = "residual", 24, "5x5"
    if size <= 32:
        name, width, first = "cnn" if size <= 16 else "residual", 16, "3x3"
    networks = {
        "scorer": of("resnet8", 16, "relu", "batch", None, classes, stem),
        "classifier": of("resnet8", 32, "relu", "batch", None, classes, stem),
        "classifier-distill": of("resnet8", 12, "relu", "batch", None, classes, stem),
    }
    for kind, head, outputs in (("ebm", "mean", 10), ("jem", "logsumexp", classes)):
        networks[kind] = of(name, width, "swish", "none", head, outputs, first)
        networks[f"{kind}-distill"] = of(name, STUDENT_WIDTH, "swish", "none", head, outputs)
    return networks


def plan(
    images: Images,
    machine: Machine,
    budget: float,
    measured: Callable[[Sequence[Spec]], Mapping[Spec, Cost]],
    size: int | None = None,
) -> Plan:
    """Choose the best plan that fits the time and the memory.

    Args:
        budget: seconds, for `lowenergy run` on this machine.
        measured: the costs of networks, see measure.measure.
        size: side of the images; None to choose one.
    Raises:
        UserError: not even a classifier of the smallest images fits into the time or the memory.
    """
    within = budget / MARGIN
    tried: list[float] = []
    needed: dict[int, int] = {}  # bytes, by side, if fewer are free
    for teachers in (["classifier", "ebm", "jem"], ["classifier", "ebm"], ["classifier"]):
        before: tuple[int, float] | None = None  # the last side tried, and the least seconds that it takes
        for side in sizes(images, size):
            if before is not None and before[1] * (side / before[0]) ** 2 > HOPELESS * within:
                continue  # time grows with the pixels, and the larger size tells it well enough to save measuring
            networks = specs(images, side)
            networks = {name: spec for name, spec in networks.items() if name.split("-")[0] in ("scorer", *teachers)}
            costs = measured(list(networks.values()))
            for some in _fewer(images):
                fits = _Fit(some, machine, side, teachers, networks, {n: costs[spec] for n, spec in networks.items()})
                least = fits.at(0.0)
                if least.memory(machine.jobs) > machine.memory:
                    needed[side] = least.memory(machine.jobs)
                elif least.seconds <= within:
                    return fits.fullest(within)
                else:
                    tried.append(least.seconds)
            before = side, least.seconds
    if not tried:
        side = min(needed)
        raise UserError(
            f"images of {side} pixels take {needed[side] / 2**30:.1f} GiB of memory, {machine.jobs} stages at a time, "
            f"and {machine.memory / 2**30:.1f} are free; " + ("give a smaller --size" if size else "free some")
        )
    fewest = math.ceil(min(tried) * MARGIN / 60)
    raise UserError(
        f"--budget: {budget / 60:.0f} minutes are too few here: the least that is worth it takes {fewest}; give "
        "more, or fewer images"
    )


HOPELESS = 1.5  # times the budget


def _fewer(images: Images) -> list[Images]:
    """All images; then, if there are more than LIMIT to train on, only so many."""
    if images.train * (1.0 if images.test is not None else 1 - TEST) <= LIMIT:
        return [images]
    test = round(TEST * images.train) if images.test is None else images.test
    share = LIMIT / images.train
    return [
        images,
        replace(
            images,
            section={**images.section, "limit": LIMIT},
            train=LIMIT,
            test=min(test, LIMIT),  # split off before the limit counts
            validation=images.validation and min(images.validation, LIMIT),
            classes={name: max(1, round(share * count)) for name, count in images.classes.items()},
        ),
    ]


@dataclass(frozen=True)
class _Fit:
    """Plans for one size of images and one choice of teachers, by how much is trained."""

    images: Images
    machine: Machine
    size: int
    teachers: list[str]
    networks: Mapping[str, Spec]
    cost: Mapping[str, Cost]

    def at(self, effort: float) -> Plan:
        return _planned(self.images, self.machine, self.size, self.teachers, self.cost, self.networks, effort)

    def fullest(self, within: float) -> Plan:
        """The plan with the most training that takes no more than `within` seconds; the least training must fit."""
        if self.at(1.0).seconds <= within:
            return self.at(1.0)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle).seconds <= within else (low, middle)
        return self.at(low)


def _planned(
    images: Images,
    machine: Machine,
    size: int,
    teachers: list[str],
    cost: Mapping[str, Cost],
    networks: Mapping[str, Spec],
    effort: float,
) -> Plan:
    n, evaluated = _counts(images)
    probes = 2 * min(PROBES, n) + STATES * CHAINS
    stages = [Stage("prepare", STAGE + (n + sum(evaluated)) * images.reading, 2**29)]
    values: Overlay = {"data": {**images.section, "image_size": size, "channels": images.channels}}
    values |= {"teachers": {kind: {"kind": kind} for kind in teachers}, "branches": {}}

    def epochs(updates: int, count: int) -> int:
        return max(1, round(updates / max(1, count // BATCH)))

    def add(name: str, seconds: float, memory: int, *needs: str, beside: float = 0.0) -> None:
        stages.append(Stage(name, STAGE + beside + STEPS * seconds, memory, list(needs)))

    def trained(name: str, updates: Updates) -> tuple[int, float]:
        """Epochs over the training images for that many updates, and the seconds that they take with the own loss."""
        count = epochs(updates.at(effort), n)
        return count, count * n / BATCH * cost[name].own

    def with_chains(name: str, count: int, late: float) -> float:
        # An update with chains: the flow, energies of images and chains, and the chains' own steps.
        return count * n / BATCH * (cost[name].own + (1 - late) * (CHAIN_STEPS + 2) * cost[name].asked)

    count, seconds = trained("scorer", TEACHER["classifier"])
    values["scorer"] = _classifier(networks["scorer"], count)
    add("scorer", seconds, cost["scorer"].memory, "prepare")
    for kind in teachers:
        energy = kind != "classifier"
        count, seconds = trained(kind, TEACHER[kind])
        if energy:
            seconds = with_chains(kind, count, LATE)
        values[kind] = _energy(networks[kind], count, kind, n) if energy else _classifier(networks[kind], count)
        add(f"teacher@{kind}", seconds, cost[kind].memory, "prepare")
        add(
            f"evaluate-teacher@{kind}",
            _evaluated(cost[kind], energy, evaluated),
            cost[kind].memory,
            f"teacher@{kind}",
            "scorer",
        )
        matched = probes if energy else n
        # Each stage that matches draws the teacher's chains anew.
        drawn = CHAINS * LIFE / BATCH * cost[kind].asked if energy else 0.0
        for branch, (start, by) in BRANCHES[kind].items():
            of = cost[f"{kind}-distill"] if "distill" in branch else cost[kind]
            entry: Overlay = {"target": kind, "start": start, "by": by, "accept_chance": True}
            memory = of.memory + (4 * matched * math.prod(networks[kind].input_shape) if energy else 0)
            seconds = drawn
            if by == "distill":
                entry["student"] = _architecture(networks[branch])
                first, again = (
                    epochs(STUDENT.at(effort), matched),
                    epochs(STUDENT_RETRAIN.at(effort), n) if energy else 0,
                )
                entry |= {
                    "train": {"epochs": first, "batch_size": BATCH, "lr": 0.003},
                    "retrain": {"epochs": again, "lr": 1.0},
                }
                if energy:
                    entry["retrain"] |= {"contrastive_from": LATE, "precision": precision()}
                seconds += first * matched / BATCH * of.matching + (with_chains(branch, again, LATE) if energy else 0.0)
            elif by in ("prune", "pq"):
                first, again = epochs(FINETUNE.at(effort), matched), epochs(RETRAIN.at(effort), n) if energy else 0
                entry |= {"finetune": {"epochs": first, "batch_size": BATCH, "lr": 0.001 if by == "prune" else 0.003}}
                entry |= {"retrain": {"epochs": again, "lr": 0.3}}
                seconds += first * matched / BATCH * of.matching
                seconds += again * n / BATCH * (of.own + (CHAIN_STEPS + 2) * of.asked) if energy else 0.0
                seconds += SCANNED * of.asked  # of layers, on a few hundred images
            else:
                seconds += CALIBRATED * of.asked
            values["branches"][branch] = entry
            needed = f"compress@{start}" if start != kind else f"teacher@{kind}"
            add(f"compress@{branch}", seconds, memory, needed, beside=METHOD[by])
            add(f"evaluate@{branch}", _evaluated(of, energy, evaluated), of.memory, f"compress@{branch}", "scorer")
    add("report", 0.0, 2**28, *[stage.name for stage in stages])
    return Plan(size, teachers, effort, values, stages, _makespan(stages, machine.jobs))


TEST, VALIDATION = 0.2, 0.1  # fractions split off if the source has none, the defaults of params.yaml
SCANNED, CALIBRATED = 400, 60  # batches that pruning and pq look at, layer by layer; and quantizing
BRANCHES: dict[str, dict[str, tuple[str, str]]] = {  # name: what it starts from, and the method
    kind: {
        f"{kind}-prune": (kind, "prune"),
        f"{kind}-quantize": (kind, "quantize"),
        f"{kind}-distill": (kind, "distill"),
        f"{kind}-pq": (kind, "pq"),
        f"{kind}-distill-{last}": (f"{kind}-distill", last),
    }
    for kind, last in (("classifier", "pq"), ("ebm", "quantize"), ("jem", "quantize"))
}


def _counts(images: Images) -> tuple[int, list[int]]:
    """Count images to train on, and to test and validate on, as `prepare` splits them: every class in proportion."""
    left, evaluated = [*images.classes.values()], []
    for own, share in ((images.test, TEST), (images.validation, VALIDATION)):
        taken = [0 if own is not None else max(1, round(share * count)) for count in left]
        left = [count - part for count, part in zip(left, taken, strict=True)]
        evaluated.append(sum(taken) if own is None else own)
    return max(1, sum(left)), evaluated


def _evaluated(cost: Cost, energy: bool, images: Sequence[int]) -> float:
    answered = sum(images) / BATCH * cost.asked
    return answered + (2 * SAMPLES * LIFE / BATCH * cost.asked if energy else 0.0)


def _architecture(spec: Spec) -> Overlay:
    return {key: getattr(spec, key) for key in ("name", "width", "stem", "activation", "norm")}


def _classifier(spec: Spec, count: int) -> Overlay:
    padding = max(1, spec.image_size // 8)
    train = {"epochs": count, "batch_size": BATCH, "lr": 0.05, "crop_padding": padding, "precision": precision()}
    return {"architecture": _architecture(spec), "train": train}


def _energy(spec: Spec, count: int, kind: str, n: int) -> Overlay:
    train: Overlay = {
        "epochs": count,
        "batch_size": BATCH,
        "lr": 0.003,
        "lr_decay": round(0.1 ** (1 / count), 4),
        "flow_rest": 0.2,
        "contrastive_weight": 0.0003,
        "contrastive_from": LATE,
        "precision": precision(),
        "buffer_size": 1024,
        "chain_steps": CHAIN_STEPS,
        "fresh_fraction": CHAIN_STEPS / LIFE,
        "burn_in": LIFE // 3,
        "sampler": {"step_size": 0.1, "noise": 0.02, "gradient_clamp": 5.0},
    }
    architecture = _architecture(spec)
    matching: Overlay = {"images": min(PROBES, n), "chains": CHAINS, "chain_steps": LIFE}
    evaluate = {"samples": SAMPLES, "chain_steps": LIFE, "step_factor": 1.0}
    if kind == "jem":  # labels that weigh more leave the flow, and a student's score, nothing to learn
        train["classification_weight"] = matching["divergence_weight"] = 0.03
    else:
        architecture |= {"head": spec.head, "logits": spec.outputs}
    return {"architecture": architecture, "train": train, "matching": matching, "evaluate": evaluate}


def _makespan(stages: Sequence[Stage], jobs: int) -> float:
    """When the last stage ends, if each starts as soon as its needs are met and a place is free, in this order."""
    ended: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    waiting, now = list(stages), 0.0
    while waiting or running:
        ready = [stage for stage in waiting if all(need in ended for need in stage.needs)]
        while ready and len(running) < jobs:
            stage = ready.pop(0)
            waiting.remove(stage)
            heapq.heappush(running, (now + stage.seconds, stage.name))
        now, name = heapq.heappop(running)
        ended[name] = now
    return now
