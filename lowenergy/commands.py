"""The commands of `lowenergy` as functions, each of which prints its results; see cli.py for their arguments."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowenergy.base.errors import UserError

if TYPE_CHECKING:
    from lowenergy import params as parameters
    from lowenergy.storage import Model

# Imports inside functions are those that take longer than `lowenergy --help` may.


def run(
    stages: Sequence[str] = (),
    *,
    jobs: int | None = None,
    address: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    queue: bool = False,
    dry: bool = False,
) -> None:
    """Run the pipeline or, with `queue`, DVC's queued experiments."""
    from lowenergy.running import crew, experiments, pipeline

    if jobs is not None and jobs < 1:
        raise crew.RunError(f"--jobs {jobs}: give at least 1")
    if not queue:
        pipeline.run(stages, jobs=jobs, address=address, force=force, keep_going=keep_going, dry=dry)
        return
    if stages or force or dry:
        raise crew.RunError("--queue takes the stages that each experiment was queued with; no others, no --force")
    experiments.run_queued(jobs=jobs, address=address, keep_going=keep_going)


def profile(name: str | None = None, *, force: bool = False) -> None:
    from lowenergy import profiles

    if name is None:
        print(*(f"{name:16} {text}" for name, text in profiles.described()), sep="\n")
        return
    changed = profiles.apply(name, force=force)
    print(*changed, f"params.yaml: {len(changed)} values changed", sep="\n")


def params(prefix: str = "") -> None:
    from lowenergy import params

    rows = [row for row in params.listing() if row[0].startswith(prefix)]
    if not rows:
        raise params.ParamsError(f"no parameter starts with {prefix}; `lowenergy params` lists all of them")
    for name, allowed, meaning in rows:
        print(f"{name}  ({allowed})\n    {meaning}")


def check() -> None:
    """Check params.yaml, and the networks in it that are not from the zoo."""
    from lowenergy import networks, params

    p = params.load()
    print(f"params.yaml: valid; source {p.data.source}, {', '.join(p.teachers)} and {len(p.branches)} branches")
    foreign = {place: a for place, a in p.architectures.items() if params.is_import_path(a.name)}
    if foreign:
        _build(p, foreign)
    for place, architecture in p.architectures.items():
        if place not in foreign and architecture.norm == "batch" and _head(p, place):
            print(networks.batchnorm_warning(architecture.name, place))


def _head(p: "parameters.Params", place: str) -> str | None:
    """The head of the energy that the network at this place is; None if it is not an energy."""
    name = place.partition(".")[0]
    if name not in p.models:
        return None  # the scorer
    teacher = p.teachers[p.target_of(name)]
    return "logsumexp" if teacher.kind == "jem" else getattr(teacher.architecture, "head", None)


def _build(p: "parameters.Params", foreign: "dict[str, parameters.Architecture]") -> None:
    """Build the networks that are not ours and try them with the images that they will get; print their sizes."""
    from lowenergy import data, networks

    splits = data.load(data.SPLITS)
    for place, architecture in foreign.items():
        name, head = place.partition(".")[0], _head(p, place)
        outputs = 0 if head in ("mean", "scalar") else len(splits.classes)
        spec = networks.Spec.of(architecture, splits.input_shape, outputs, head, splits.normalisation)
        images = data.to_float(splits.train.images[: networks.TRIED])
        of_name: Any = p.scorer if name == "scorer" else p.teachers.get(name) or p.branches[name].params
        train = of_name.train
        batch_size = train.batch_size if train.epochs else 0
        network = networks.of_params(architecture, spec, seed=p.seed, where=place, images=images, batch_size=batch_size)
        layers, rest = networks.coded_layers(network), networks.left_out(network)
        size = sum(w.numel() for w in network.parameters())
        more = f"; of no layer: {', '.join(rest)}" if rest else ""
        print(f"{place}: {architecture.name}: {size:,} parameters, {len(layers)} layers to compress{more}")


def table(*, everything: bool = False) -> None:
    from lowenergy import params
    from lowenergy.base import cards
    from lowenergy.reporting import tables

    p = params.load()
    tables.show(tables.collect(p), p, everything=everything)
    for remark in cards.remarks(list(p.models)):
        print(remark)


def report(base: str = "HEAD") -> None:
    from lowenergy import params
    from lowenergy.reporting import markdown

    print(markdown.text(params.load(), base))


def show(model: Path, *, limit: int | None = None) -> None:
    from lowenergy.storage import artifact

    content, header = artifact.read(model, trust=None, limit=limit)
    print(json.dumps({key: header.get(key) for key in ("target", "spec", "provenance")}, indent=2))
    sizes = artifact.stored_bytes(model)
    for name, encoded in content.tensors.items():
        shown = name if name.isprintable() else ascii(name)
        print(f"{encoded.kind:8}{sizes.get(name, 0):10,} bytes  {shown} {tuple(encoded.shape)}")


def score(model: Path, *, root: str | None = None, trust: Collection[str] = (), limit: int | None = None) -> None:
    import lowenergy
    from lowenergy.base.files import FileError
    from lowenergy.storage import artifact

    target = artifact.read(model, trust=None, limit=limit)[0].target
    if target == "ebm":
        raise FileError(f"{model}: an ebm does not classify; see `lowenergy sample`")
    card = lowenergy.evaluate(model, root=root, trust=trust, limit=limit)
    if card.accuracy is None:
        raise FileError(f"{model}: its target, {target!r}, has no accuracy")
    print(f"{model}: {card.size_bytes:,} bytes, {card.images:,} test images of {card.data}")
    print(f"accuracy {card.accuracy.value:.4f} ({card.accuracy.low:.4f} to {card.accuracy.high:.4f})")
    print(f"nll {card.nll:.4f}")


def fid(images: Path, *, scorer: Path | None = None, inception: Path | None = None, real: Path | None = None) -> None:
    import lowenergy
    from lowenergy import params

    trust = params.load().trusted if Path("params.yaml").exists() else []
    through = scorer if scorer or inception else Path("models/scorer.safetensors")
    figures = lowenergy.fid(images, scorer=through, inception=inception, real=real, trust=trust)
    print(f"{images}: {figures.images:,} images")
    for name in ("fid", "inception_score"):
        figure = getattr(figures, name)
        print(f"{name} {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})")


def bench(
    models: Sequence[Path],
    *,
    batch: Sequence[int] = (1, 64),
    threads: Sequence[int] = (1,),
    steps: bool = False,
    rounds: int = 50,
    way: Sequence[str] = (),
    json: Path | None = None,
    trust: Collection[str] = (),
) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from lowenergy.base import files
    from lowenergy.timing import bench, table

    if min([*batch, *threads, rounds]) < 1:
        raise UserError("--batch, --threads and --rounds: give at least 1")
    if unknown := set(way) - set(bench.WAYS):
        raise UserError(f"--way {unknown.pop()}: there are {', '.join(bench.WAYS)}")
    if json:
        files.check_place(json)
    timings: list[bench.Timing] = []
    failed: list[bench.Failure] = []
    results = bench.bench(
        models, batches=batch, threads=threads, steps=steps, rounds=rounds, ways=list(way), trust=trust
    )
    with Progress(console=Console(stderr=True, emoji=False)) as progress:
        task = progress.add_task("timing", total=None)
        for result in results:
            if isinstance(result, bench.Timing):
                timings.append(result)
                progress.update(
                    task, description=f"{escape(Path(result.model).stem)}, {result.way}: {result.ms:.2f} ms"
                )
            else:
                failed.append(result)
    if timings:
        table.show([asdict(timing) for timing in timings], "Langevin step" if steps else "forward pass")
    for failure in failed:
        print(f"{failure.model}: not {failure.way}: {failure.why}")
    if json:
        files.write_json(json, [asdict(timing) for timing in timings])
    if not timings:
        raise UserError("nothing could be timed")


def export(
    model: Path,
    *,
    to: Literal["onnx", "c", "page"] = "onnx",
    out: Path | None = None,
    ram: int | None = None,
    unpack: bool = False,
    sampler: bool = True,
    step_size: float | None = None,
    trust: Collection[str] = (),
    limit: int | None = None,
) -> None:
    import lowenergy

    if not model.name:
        raise UserError(f"{model}: give the file of a model")
    stem = model.with_suffix("")
    named = {"onnx": stem.with_suffix(".onnx"), "page": stem.with_suffix(".html"), "c": Path(f"{stem}-c")}
    out = out or named[to]
    lowenergy.export(
        model, out, to=to, sampler=sampler, step_size=step_size, ram=ram, unpack=unpack, trust=trust, limit=limit
    )
    stored = f"({model.name} has {model.stat().st_size:,})"
    if to != "c":
        print(f"{out}: {out.stat().st_size:,} bytes {stored}")
        return
    card = json.loads((out / "card.json").read_text())
    again = card["computed_again"]
    share = f", {again / (card['multiply_accumulates'] - again):.0%} more than without the limit" if again else ""
    print(
        f"{out}: {card['constant_bytes']:,} bytes of constants {stored}, "
        f"{card['arena_bytes']:,} of working memory, at most {card['stack_bytes_at_most']:,} of stack, "
        f"{card['multiply_accumulates']:,} multiply-accumulates{share}"
    )


def plan(
    model: str,
    *,
    ram: int | None = None,
    bits: int | None = None,
    sparse: float | None = None,
    codewords: int | None = None,
    length: int | None = None,
    device: str | None = None,
    trust: Collection[str] = (),
) -> None:
    from lowenergy.runtimes.c import devices, forecast
    from lowenergy.storage import artifact

    limits = devices.named(device) if device else None
    given = sum(option is not None for option in (bits, sparse, codewords))
    if given > 1:
        raise UserError("--bits, --sparse, --codewords: give one of them")
    if length is not None and codewords is None:
        raise UserError("--length is that of codewords; give --codewords, too")
    if not model.endswith(".safetensors"):
        length = forecast.Coding.length if length is None else length
        planned = _described(model, forecast.Coding(bits, sparse, codewords, length))
    elif given:
        raise UserError(f"--bits, --sparse, --codewords are for networks of params.yaml; {model} has weights")
    else:
        planned, _ = artifact.read(model, trust=trust)
    footprint = forecast.forecast(planned, ram=ram)
    how = "compiled for a Cortex-M7" if footprint.compiled else "code estimated: arm-none-eabi-gcc is not installed"
    print(f"flash {footprint.flash:,} bytes: {footprint.constants:,} of constants ({how})")
    print(f"RAM   {footprint.ram:,} bytes: {footprint.arena:,} of working memory, the rest stack")
    print(f"      {footprint.work:,} multiply-accumulates")
    if limits is not None:
        fits = footprint.flash <= limits.flash and footprint.ram <= limits.ram
        print(f"{device} has {limits.flash:,} and {limits.ram:,}: {'it fits' if fits else 'it does not fit'}")


def _described(name: str, coding: Any) -> "Model":
    """The untrained model of an architecture in params.yaml, for the images of its data, in the encoding asked for.

    Raises:
        UserError: `name` is neither a teacher nor a student in params.yaml.
    """
    from lowenergy import params
    from lowenergy.runtimes.c import forecast

    p = params.load()
    students = {key: branch.params.student for key, branch in p.branches.items() if hasattr(branch.params, "student")}
    if name not in {**p.teachers, **students}:
        known = ", ".join([*p.teachers, *students])
        raise UserError(f"{name}: no model file (.safetensors), and none of {known} of params.yaml")
    return forecast.untrained(*forecast.described(p, p.target_of(name), students.get(name)), coding)


def sweep_plot(
    tables: Sequence[Path] = (),
    *,
    target: str = "ebm",
    quality: str | None = None,
    out: Path = Path("plots/sweep"),
    all_commits: bool = False,
) -> None:
    from lowenergy.reporting import sweeps

    if tables:
        table = sweeps.read(tables)
        table = table[table["target"] == target]
        if table.empty:
            raise sweeps.SweepError(f"no rows of target {target} in {', '.join(map(str, tables))}")
    else:
        revisions = sweeps.shown(*["-A"] * all_commits)
        for state, names in sweeps.unfinished(revisions).items():
            print(f"{len(names)} {state}: {', '.join(names)}" if state == "failed" else f"{len(names)} {state}")
        table = sweeps.collect(revisions, target)
    for path in sweeps.write(table, quality, out):
        print(path)


def sample(
    model: Path,
    *,
    n: int = 64,
    out: Path = Path("samples.png"),
    steps: int | None = None,
    step_size: float | None = None,
    seed: int = 0,
    trust: Collection[str] = (),
    limit: int | None = None,
) -> None:
    import io

    import numpy as np

    import lowenergy
    from lowenergy import data
    from lowenergy.base import files
    from lowenergy.calls.using import check_out

    if model.is_file():  # otherwise whatever reads it reports that
        check_out(out, model)
    form = out.suffix.lower()
    if form not in (".png", ".npz"):
        raise UserError(f"--out {out}: give samples.png, a picture, or samples.npz, an array")
    images = lowenergy.sample(model, n=n, steps=steps, step_size=step_size, seed=seed, trust=trust, limit=limit)
    if form == ".png" and images.shape[1] not in (1, 3):
        raise UserError(f"--out {out}: no picture has {images.shape[1]} channels; give samples.npz")
    if form == ".npz":
        archive = io.BytesIO()
        np.savez_compressed(archive, images=data.to_bytes(images).numpy())
        files.write_bytes(out, archive.getvalue())
    else:
        data.write_grid(images, out, columns=8)
    print(f"{out}: {n} images")
