"""Strangers' networks through every step: all classifiers of torchvision, the smallest of each family of timm.

    python benchmarks/conformance.py --work FOLDER                    # goes on where it was ended
    python benchmarks/conformance.py --work FOLDER --only coat_tiny squeezenet1_0
    python benchmarks/conformance.py --choose                         # the networks anew, from what is installed

Weights are random; norms and all constant parameters get values of their own, so that nothing cancels out. Each
network is taken in as a classifier and as an energy (head logsumexp), trained for a step, folded, pruned, quantized
and coded by the functions that the stages call, on a few images and without finetuning; what was made is written,
read back, and exported to ONNX. A cell is

    right           with the largest relative difference from what it should be, which is within the cell's bound, and
                    with how much was done: norms folded, channels gone, layers rounded or coded
    refused         by one line that says why
    traceback       with the exception and where it was raised
    wrong           it differs by more, and nobody said so
    out of time     or out of memory

Each network has a process and a limit of its own. Rows go to FOLDER/COMMIT.jsonl as they end, smallest network first;
what the record has as right is not run again, unless it is named.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from record import commit, rows, write
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
CHOSEN = Path(__file__).with_name("conformance_networks.json")
CELLS = ("taken in", "folded", "weights pruned", "channels pruned", "int8", "pq", "file", "onnx")
TARGETS = ("classifier", "ebm")
CLASSES, IMAGES = 10, 8
PIXELS = (64, 32, 56, 96, 112, 128, 160, 192, 224, 256)  # what is tried, in this order
LARGE = 30e6  # parameters; with more, 32 pixels come first
SMALL = 4e6  # with fewer, the int8 model becomes ONNX as well
SHALLOW = ({"depth": 2}, {"depths": [1, 1, 1, 1]}, {"layers": [1, 1, 1, 1]})  # what constructors of timm call it
CHANGES = {
    "classifier.train.crop_padding": 0,
    "classifier.train.batch_size": IMAGES,
    "energies.train.batch_size": IMAGES,
    "energies.train.chain_steps": 1,
    "energies.train.burn_in": 1,
    "energies.train.buffer_size": IMAGES,
    "energies.train.fresh_fraction": 0.5,
    "energies.train.weight_average": 0.0,
    "energies.matching.images": 2,
    "energies.matching.chains": 1,
    "energies.matching.chain_steps": 1,
    "ebm.architecture.head": "logsumexp",
    "prune.amount": 0.9,
    "prune.scan_images": 0,
    "prune.finetune.epochs": 0,
    "prune.retrain.epochs": 0,
    "quantize.calibration_images": 4,
    "pq.allocation": "uniform",
    "pq.codewords": 16,
    "pq.codewords_fc": 16,
    "pq.block_conv": 9,
    "pq.calibration_images": 4,
    "pq.kmeans_steps": 2,
    "pq.finetune.epochs": 0,
}
CHANNELS = 0.3  # of the channels are removed
SAME, CLOSE, EXPORTED = 0.0, 1e-4, 1e-3  # bounds of the differences
HALVED = 1e-3  # of codebooks, which are stored in half precision
NEARLY = 0.05  # of the logits: what comes of that
ROUNDED = 0.3, 0.9  # of logits, and of gradients, in which some of the maxima change places
AS_NOISE = 3  # or so much more than noise of the size of the rounding: some networks amplify whatever is done to them
MISSED, STEP = 0.1, 0.1  # of the channels asked for; and of all, which go by the dozen

VERDICTS = ("right", "refused", "traceback", "wrong", "out of time")
NOT_REACHED = "-"  # the network was not taken in
PRELOADED = [
    *("timm", "torchvision.models", "onnxruntime", "onnxscript.optimizer", "onnx_ir.passes.common", "torch_pruning"),
    *("torch.export", "torch.onnx", "torch._dynamo", "torchao.quantization.pt2e.quantize_pt2e", "dvclive"),
    *(f"lowenergy.compression.{name}" for name in ("prune.pruning", "quantize.quantizing", "pq.network")),
    *(f"lowenergy.targets.{kind}.training" for kind in ("classifier", "ebm")),
    *("lowenergy.runtimes.to_onnx", "lowenergy.runtimes.loading"),
]  # once, for all processes: to import them takes longer than many cells

Checks = Iterator[tuple[str, float, float]]  # what, by how much it differs, by how much it may


# -- which networks ---------------------------------------------------------------------------------------------------


def choose() -> list[dict[str, Any]]:
    """Name, arguments, pixels and parameters of each network, smallest first.

    A family of timm is what one module of it names alike but for numbers that are not a version: resnetv2 and resnet
    are two, resnet18 and resnet50 one.
    """
    import timm
    from torchvision import models

    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                size = sum(w.numel() for w in timm.create_model(name, num_classes=CLASSES).parameters())
            family = (module, re.sub(r"(?<!v)\d+", "", name.split("_")[0]))
            smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    wanted: list[tuple[str, dict[str, Any]]] = [
        (f"torchvision.models.{name}", {"num_classes": CLASSES}) for name in models.list_models(module=models)
    ]
    wanted += [("timm.create_model", {"model_name": name, "num_classes": CLASSES}) for _, name in smallest.values()]
    return sorted(map(_fitted, wanted), key=lambda entry: (entry["parameters"], name_of(entry)))


def _fitted(wanted: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """With the first of PIXELS that it takes, by an argument if need be; of timm's large ones, with fewer blocks."""
    from lowenergy.networks.foreign import imported

    name, arguments = wanted
    if name.startswith("timm.") and _size(name, arguments) > LARGE:
        fewer = [arguments | shallow for shallow in SHALLOW]
        arguments = min([arguments, *fewer], key=lambda given: _size(name, given))
    size = _size(name, arguments)
    of_argument = "image_size" if ".vit_" in name else "img_size"
    for pixels in sorted(PIXELS, key=lambda pixels: pixels != 32) if size > LARGE else PIXELS:
        for given in ({of_argument: pixels}, {}):
            with contextlib.suppress(Exception), torch.no_grad():
                network = imported(name)(**arguments, **given).eval()
                if network(torch.rand(2, 3, pixels, pixels)).isfinite().all():
                    print(name, arguments, given, pixels, flush=True)
                    return {"name": name, "arguments": arguments | given, "pixels": pixels, "parameters": size}
    raise SystemExit(f"{name} {arguments}: takes no image")


def _size(name: str, arguments: dict[str, Any]) -> float:
    """Parameters; infinitely many where it cannot be built."""
    from lowenergy.networks.foreign import imported

    try:
        return sum(w.numel() for w in imported(name)(**arguments).parameters())
    except Exception:  # whatever a constructor raises
        return math.inf


def name_of(entry: dict[str, Any]) -> str:
    """`timm coat_tiny`, `torchvision alexnet`."""
    library, *_, function = entry["name"].split(".")
    return f"{library} {entry['arguments'].get('model_name', function)}"


# -- one network ------------------------------------------------------------------------------------------------------


class Case:
    """One network as one target, and what has been made of it so far."""

    def __init__(self, entry: dict[str, Any], target: str, folder: Path, export: Sequence[str]) -> None:
        from lowenergy import data, networks, targets, training
        from lowenergy.networks import Spec

        self.target, self.folder, self.export, self.p = target, folder, export, params()
        self.section = getattr(self.p, target)
        self.said = ""  # by the last method
        self.splits = splits(entry["pixels"])
        self.run = training.Run(f"{target}/conformance", seed=0, inputs=[], root=folder)
        architecture = self.section.architecture.model_copy(
            update={"name": entry["name"], "arguments": entry["arguments"]}
        )
        head = None if target == "classifier" else self.section.architecture.head
        spec = Spec.of(architecture, self.splits.input_shape, CLASSES, head)
        self.images = data.to_float(self.splits.train.images)
        self.untrained: Any = networks.of_params(
            architecture, spec, seed=0, where=f"{target}.architecture", images=self.images, batch_size=IMAGES
        )
        stir(self.untrained, self.images)
        self.network: Any = networks.settled(networks.duplicate(self.untrained), self.images, self.run.name)
        self.objective: Any = targets.get(target).objective(self.copied(), self.splits, self.section, self.run)
        self.wanted = self.outputs(self.network)
        # A gradient jumps where a unit is switched or another maximum wins, and errors of rounding may do that.
        own = networks.sensitivity(partial(self.outputs, self.network), self.images)
        self.close = [max(CLOSE, by) for by in own]
        self.made: dict[str, Any] = {}  # by method, the stored model
        self.answers: dict[str, list[Tensor]] = {}  # of what is built from it
        self.rounded: list[Tensor] = []  # answers of the int8 model
        self.within: list[float] = []  # as far as they may be off
        self.files: dict[str, Path] = {}

    def copied(self) -> Any:
        from lowenergy import networks

        return networks.duplicate(self.network)

    def outputs(self, network: Any, images: Tensor | None = None) -> list[Tensor]:
        """Logits, and of an energy the input's gradient."""
        from lowenergy.energies import logits_and_gradient

        images = self.images if images is None else images
        with torch.no_grad():
            if self.target == "classifier":
                return [network(images)]
            return [part.detach() for part in logits_and_gradient(network, "logsumexp", images)]

    def compress(self, method: str, network: Any, **changes: Any) -> Any:
        from importlib import import_module

        section = getattr(self.p, method).model_copy(update=changes)
        compress = import_module(f"lowenergy.compression.{method}").compress
        with contextlib.redirect_stdout(io.StringIO()) as said:
            model = compress(network, self.target, self.objective, section, self.run)
        self.said = said.getvalue()
        print(self.said)
        return model

    def built(self, method: str) -> Any:
        """What is made of a stored model, whose answers are kept."""
        network = self.made[method].build()
        self.answers[method] = self.outputs(network)
        return network

    def taken_in(self) -> Checks:
        """It gives finite outputs, the same for an image alone, and can be trained for a step."""
        from lowenergy import networks

        alone = self.outputs(self.network, self.images[:1])
        own = networks.sensitivity(partial(self.outputs, self.network), self.images[:1])
        for part, whole, by in zip(alone, self.wanted, own, strict=True):
            yield "an image alone", difference(part, whole[:1]), max(CLOSE, by)
        trained = self.untrained
        self.objective.retrain(trained, self.p.prune.retrain.model_copy(update={"epochs": 1, "lr": 1e-3}), self.run)
        networks.settled(trained, self.images, self.run.name)
        yield "finite after a step", float(not all(w.isfinite().all() for w in trained.state_dict().values())), SAME

    def folded(self) -> Checks:
        from lowenergy import networks
        from lowenergy.storage import dense

        folded = networks.fold_batchnorm(self.copied())
        before, after = (len(networks.batchnorms(of)) for of in (self.network, folded))
        print(f"done: {before - after} of {before} norms")
        yield from self.same("folded", folded)
        self.made["dense"] = dense(self.network, self.target)
        self.built("dense")

    def weights_pruned(self) -> Checks:
        from lowenergy import networks

        pruned = self.copied()
        self.made["sparse"] = self.compress("prune", pruned)
        layers = [layer.weight for layer in networks.coded_layers(pruned).values()]
        zeros = sum(int((w == 0).sum()) for w in layers) / sum(w.numel() for w in layers)
        yield "amount", abs(zeros - self.p.prune.amount), 0.01
        self.built("sparse")
        yield "rebuilt", apart(self.answers["sparse"], self.outputs(pruned)), CLOSE

    def channels_pruned(self) -> Checks:
        """Short of what was asked for is right only if the reason is said."""
        pruned = self.copied()
        self.made["channels"] = self.compress("prune", pruned, kind="structured", amount=CHANNELS)
        reached = self.run.provenance["pruned"]["reached"]["channels"]
        print(f"done: {reached:.1%} of the channels")
        yield "short", CHANNELS - reached, 1.0 if "that is short, because of" in self.said else MISSED * CHANNELS
        yield "too much", reached - CHANNELS, STEP
        self.built("channels")
        yield "rebuilt", apart(self.answers["channels"], self.outputs(pruned)), CLOSE

    def int8(self) -> Checks:
        """Norms that are left and layers that stay float are right only if they are named."""
        from lowenergy import networks
        from lowenergy.runtimes import int8
        from lowenergy.storage import Int8

        model = self.made["int8"] = self.compress("quantize", self.copied())
        source = self.built("int8")
        rounded = sum(isinstance(part, Int8) for part in model.tensors.values())
        layers = networks.coded_layers(source)
        print(f"done: {rounded} of {len(layers)} layers")
        yield "float, unsaid", float(rounded < len(layers) and "float: " not in self.said), SAME
        kept = networks.batchnorms(source)
        yield "norms, unsaid", float(bool(kept) and "norms that are not folded: " not in self.said), SAME
        graph = int8.restore(model, gradient=self.target != "classifier", outputs="int8" in self.export)
        self.rounded = self.outputs(graph)
        noisy = [difference(*pair) for pair in zip(self.noisy(graph), self.wanted, strict=True)]
        self.within = [max(bound, AS_NOISE * by) for by, bound in zip(noisy, ROUNDED, strict=False)]
        parts = zip(("", " gradient"), self.rounded, self.wanted, self.within, strict=False)
        for what, part, wanted, bound in parts:
            yield f"rounded{what}", difference(part, wanted), bound
        int8.round_only(graph, ())
        yield from self.same("rounding off", graph, self.answers["int8"])

    def noisy(self, graph: Any) -> list[Tensor]:
        """Answers of an int8 graph where each rounding is replaced by as much noise."""
        from lowenergy.runtimes.int8 import Rounding

        generator = torch.Generator().manual_seed(0)

        def noise(rounding: Any, given: tuple[Tensor], _: Any) -> Tensor:
            (x,) = given
            step = rounding.scale.view(-1, *[1] * (x.ndim - 1)) if rounding.scale.numel() > 1 else rounding.scale
            is_on = bool(rounding.fake_quant_enabled[0])
            return x + step * (torch.rand(x.shape, generator=generator) - 0.5) if is_on else x

        modules = {module for module in graph.modules() if isinstance(module, Rounding)}
        handles = [module.register_forward_hook(noise) for module in modules]
        found = self.outputs(graph)
        for handle in handles:
            handle.remove()
        return found

    def pq(self) -> Checks:
        """Right is what is stored: the network as it was coded, but for the precision of codebooks, and nothing else.

        How far coding has moved the answers is shown, without a bound: few codewords, random weights, no training.
        """
        from lowenergy import networks
        from lowenergy.storage import Coded

        coded = self.copied()
        model = self.made["pq"] = self.compress("pq", coded)
        stored = self.built("pq")
        names = [name.removesuffix(".weight") for name, w in model.tensors.items() if isinstance(w, Coded)]
        source, found, again = (networks.coded_layers(of) for of in (self.network, coded, stored))
        print(f"done: {len(names)} of {len(source)} layers")
        yield "layers left", float(len({id(layer.weight) for layer in source.values()}) - len(names) > 1), SAME
        for name in names:
            yield f"stored {name}", difference(again[name].weight, found[name].weight), HALVED
        generator, noisy = torch.Generator().manual_seed(0), model.build()
        with torch.no_grad():
            for name in names:  # noise as large as what half precision has moved
                moved = (again[name].weight - found[name].weight).square().mean().sqrt()
                weight = networks.coded_layers(noisy)[name].weight
                weight += moved * torch.randn(weight.shape, generator=generator)
        amplified = AS_NOISE * difference(self.outputs(noisy)[0], self.answers["pq"][0])
        yield "stored", difference(self.answers["pq"][0], self.outputs(coded)[0]), max(NEARLY, amplified)
        yield "coded", difference(self.answers["pq"][0], self.wanted[0]), math.inf

    def file(self) -> Checks:
        """Written and read, each encoding gives the same tensors, and so the same outputs, bit for bit."""
        from lowenergy.runtimes import loading
        from lowenergy.storage import artifact

        provenance = {"stage": "conformance"}
        if self.target != "classifier":
            provenance |= {"sampler": self.section.train.recorded_sampler}
        for method, model in self.made.items():
            path = self.files[method] = self.folder / f"{method}.safetensors"
            artifact.save(model, path, provenance)
            again, _ = artifact.read(path, trust=[model.spec.name])
            yield f"{method}: names", float(set(again.tensors) != set(model.tensors)), SAME
            for name, encoded in model.tensors.items():
                yield f"{method}: {name}", float(not torch.equal(encoded.decode(), again.tensors[name].decode())), SAME
            yield from self.same(f"{method}: read", again.build(), self.answers[method], SAME)
            if method == "pq":
                yield from self.same("pq: coded", loading.coded_network(again), self.answers[method])

    def onnx(self) -> Checks:
        from onnxruntime import InferenceSession, SessionOptions

        from lowenergy.energies import HEADS
        from lowenergy.runtimes import to_onnx
        from lowenergy.storage import artifact

        for method in self.export:
            model, header = artifact.read(self.files[method], trust=None)
            far = None  # a step that moves pixels, but few of them to where they are clamped
            steepest = to_onnx.constants_of(header, "", None).gradient_clamp if self.target != "classifier" else 0.0
            if self.target != "classifier":
                far = 0.3 / min(float(self.wanted[1].abs().max()), steepest)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                to_onnx.export(model, header, path := self.folder / f"{method}.onnx", step_size=far)
            print(said.getvalue(), end="")
            still = torch.zeros_like(self.images)  # no noise
            wanted = self.rounded if method == "int8" else self.answers[method]
            if far is not None:
                moved = (self.images - far * wanted[1].clamp(-steepest, steepest)).clamp(-1, 1)
                wanted = [HEADS["logsumexp"](wanted[0]), moved - self.images]
            bounds = self.within if method == "int8" else [max(EXPORTED, close) for close in self.close]
            saturates = to_onnx.FLOAT_KERNELS[0] in said.getvalue()  # here, and export has said so
            for settings in [[to_onnx.FLOAT_KERNELS], *([[]] if method == "int8" and not saturates else [])]:
                options = SessionOptions()
                for setting in settings:
                    options.add_session_config_entry(*setting)
                session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
                names = [given.name for given in session.get_inputs()]
                given = {name: (self.images if name == "images" else still).numpy() for name in names}
                found = [torch.from_numpy(part) for part in session.run(None, given)]
                if far is not None:
                    found[1] -= self.images
                for part, right, bound in zip(found, wanted, bounds, strict=False):
                    yield method, difference(part, right), bound

    def same(self, what: str, network: Any, wanted: list[Tensor] | None = None, bound: float | None = None) -> Checks:
        """Within one bound, or as close as can be expected."""
        pairs = zip(self.outputs(network), wanted or self.wanted, ("", " gradient"), self.close, strict=False)
        for part, right, of, close in pairs:
            yield what + of, difference(part, right), close if bound is None else bound


def params() -> Any:
    """The shipped ones, changed, as a stage reads them: from params.yaml here."""
    from any_network import params as put

    from lowenergy import params as schema

    put(CHANGES)
    return schema.load()


def splits(pixels: int) -> Any:
    """IMAGES smooth images that differ, of as many classes; all parts are the same."""
    from lowenergy.data import Split, Splits

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, pixels, mode="bicubic")
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1).mul(255).byte()
    part = Split(images, torch.arange(IMAGES) % CLASSES)
    return Splits(part, part, part, [str(label) for label in range(CLASSES)], "conformance")


def stir(network: nn.Module, images: Tensor) -> None:
    """Statistics near those of the images for all norms, and random values for parameters that are constant.

    Freshly made, norms are the identity and the last layer of many blocks is 0, which would hide most mistakes.
    """
    generator = torch.Generator().manual_seed(0)

    def spread(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for weight in (weight for weight in network.parameters() if weight.numel()):
            first = weight.flatten()[0]
            if weight.is_floating_point() and bool((weight == first).all()):
                if first != 0:  # a gain, however small
                    weight.copy_(first.sign() * spread(weight, 0.5, 1.5) * first.abs().clamp_min(0.3))
                elif weight.ndim > 1:
                    weight.copy_(spread(weight, -1, 1) * weight[0].numel() ** -0.5)
                else:
                    weight.copy_(spread(weight, -0.2, 0.2))
        norms: list[Any] = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
        norms = [norm for norm in norms if hasattr(norm, "momentum")]  # others never learn theirs
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network.train()(images)
        network.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean += spread(norm.running_mean, -0.3, 0.3) * norm.running_var.sqrt()
            norm.running_var.clamp_min_(1e-3).mul_(spread(norm.running_var, 0.6, 1.6))


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference of two networks' answers."""
    return max(difference(*pair) for pair in zip(found, wanted, strict=True))


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted; nan where one is not finite."""
    if found.shape != wanted.shape:
        return math.inf
    return float((found - wanted).double().norm() / wanted.double().norm().clamp_min(1e-30))


def judged(checks: Callable[[], Checks]) -> dict[str, Any]:
    """What has come of a cell."""
    from lowenergy.base.errors import UserError

    said, started = io.StringIO(), time.process_time()
    largest, at, verdict = 0.0, "", "right"
    try:
        with contextlib.redirect_stdout(said):
            for what, by, bound in checks():
                if verdict == "right" and not by <= bound:
                    verdict, largest, at = "wrong", by, what
                elif verdict == "right" and by > largest:
                    largest, at = by, what
    except UserError as error:
        said_so = str(error).replace(f"{Path.cwd()}/", "")  # a folder of no use to others
        verdict, at = ("refused" if "\n" not in said_so else "traceback"), said_so
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/lowenergy/" in frame.filename] or frames
        places = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in (ours[-1], frames[-1]))
        verdict = "out of time" if "allocate memory" in str(error) or isinstance(error, MemoryError) else "traceback"
        at = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]} ({', '.join(places)})"
    seconds = round(time.process_time() - started, 1)
    lines = said.getvalue().splitlines()
    done = [line.removeprefix("done: ") for line in lines if line.startswith("done: ")]
    why = [line for line in lines if re.search("float: |that is short|not folded|int8 kernels", line)]
    row = {"verdict": verdict, "difference": largest, "at": at, "seconds": seconds}
    return row | ({"done": done[0]} if done else {}) | ({"said": why} if why else {})


def read_operators_once() -> None:
    """torch reads all that it can say in ONNX anew for each file, for half a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def cells(entry: dict[str, Any], target: str, folder: Path, *, export: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """All of a network as one target, as they end.

    Args:
        folder: the current one, empty.
        export: of what was made, what becomes ONNX.
    """
    case: Case | None = None
    read_operators_once()

    def start() -> Checks:
        nonlocal case
        case = Case(entry, target, folder, export)
        yield from case.taken_in()

    yield CELLS[0], judged(start)
    if case is not None:
        for cell in CELLS[1:]:
            yield cell, judged(getattr(case, cell.replace(" ", "_")))


def network(entry: dict[str, Any], limit: int, memory: int, path: Path) -> None:
    """All cells of a network, each written to `path` as it ends; in a process of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, path.open("w") as file:
        os.chdir(folder)
        for target in TARGETS:
            is_small = target == "classifier" and entry["parameters"] < SMALL
            export = ("dense", "int8") if is_small else ("dense",)  # each takes seconds
            for cell, found in cells(entry, target, Path(folder), export=export):
                file.write(json.dumps({"network": name_of(entry), "target": target, "cell": cell, **found}) + "\n")
                file.flush()


# -- all of them ------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """Rows, one a line; the last may have been cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Table:
    """Cells of the networks that have ended: in a file, one line each, and counted on screen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        return read(self.path)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """All of a network at once: of one that is there, nothing is missing."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def show(self, of: int) -> None:
        found = self.rows()
        print(f"\n{len({row['network'] for row in found})} of {of} networks", *(f"{cell:>15}" for cell in CELLS))
        for target in TARGETS:
            for verdict in VERDICTS:
                counts = Counter(r["cell"] for r in found if r["target"] == target and r["verdict"] == verdict)
                print(f"{target:>11} {verdict:>12}", *(f"{counts[cell] or '':>15}" for cell in CELLS), flush=True)


def run(entry: dict[str, Any], context: Any, table: Table, args: argparse.Namespace, of: int) -> None:
    started, name = time.monotonic(), name_of(entry)
    path = table.path.with_name(f"{name}.jsonl")
    process = context.Process(target=network, args=(entry, args.seconds, args.memory << 30, path))
    process.start()
    process.join(10 * args.seconds)  # it ends itself by its processor seconds, unless it sleeps
    if process.is_alive():
        process.kill()
        process.join()
    found = read(path)
    ended = {(row["target"], row["cell"]): row["verdict"] for row in found}
    for target in TARGETS if process.exitcode else ():
        for cell in CELLS if ended.get((target, CELLS[0]), "right") == "right" else ():
            if (target, cell) not in ended:
                row = {"network": name, "target": target, "cell": cell, "verdict": "out of time"}
                found.append(row | {"at": f"exit code {process.exitcode}"})
    table.add(found)
    path.unlink(missing_ok=True)
    bad = [f"{row['target']} {row['cell']}: {row['verdict']}" for row in found if row["verdict"] != "right"]
    print("; ".join([f"{name}: {time.monotonic() - started:.0f} s", *bad]))
    table.show(of)


def recorded(entry: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A network's row: by target the cells in their order, how much was done, and why what is not right is not."""
    row: dict[str, Any] = {"network": name_of(entry), "pixels": entry["pixels"]}
    not_right: dict[str, str] = {}
    for target in TARGETS:
        by_cell = {row["cell"]: row for row in rows if row["target"] == target}
        found = [by_cell.get(cell, {"verdict": NOT_REACHED}) for cell in CELLS]
        shown = [f"{f['difference']:.1e}" if f["verdict"] == "right" else f["verdict"].replace(" ", "_") for f in found]
        row[target] = " ".join(shown)
        row[f"{target}_done"] = ", ".join(cell["done"] for cell in found if "done" in cell)
        not_right |= {
            f"{target} {cell}": f"{f['verdict']}: {f['at']}" for cell, f in by_cell.items() if f["verdict"] != "right"
        }
    return row | {"not_right": not_right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where rows are kept")
    parser.add_argument("--only", nargs="*", help="names, or parts of them")
    parser.add_argument("--limit", type=int, help="so many networks, the smallest")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=300, help="of a processor, for one network")
    parser.add_argument("--memory", type=int, default=6, help="GiB, for one network")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--record", action="store_true", help="write benchmarks/records/conformance.json")
    args = parser.parse_args()
    if args.choose:
        CHOSEN.write_text("[\n" + ",\n".join(map(json.dumps, choose())) + "\n]\n")
        return
    entries = json.loads(CHOSEN.read_text())
    if args.only:
        entries = [entry for entry in entries if any(part in name_of(entry) for part in args.only)]
    entries = entries[: args.limit]
    table = Table((args.work / f"{commit()}.jsonl").resolve())
    table.path.parent.mkdir(parents=True, exist_ok=True)
    earlier = {row["network"]: row for row in rows("conformance")}
    is_right = {name for name, row in earlier.items() if not row["not_right"] and not args.only}
    done = {row["network"] for row in table.rows()} | is_right
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ThreadPoolExecutor(args.jobs) as pool:
        left = [entry for entry in entries if name_of(entry) not in done]
        list(pool.map(lambda entry: run(entry, context, table, args, len(entries)), left))
    if args.record:
        by_network = defaultdict(list)
        for row in table.rows():
            by_network[row["network"]].append(row)
        chosen = json.loads(CHOSEN.read_text())
        new = {name: recorded(entry, by_network[name]) for entry in chosen if (name := name_of(entry)) in by_network}
        seconds = round(sum(row.get("seconds", 0) for row in table.rows()))
        write("conformance", [*(earlier | new).values()], seconds=seconds, cells=CELLS, changes=CHANGES, seed=0)


if __name__ == "__main__":
    main()
