"""The `lowenergy` command: what is not a stage of the pipeline."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowenergy.base.errors import UserError, explained, missing

if TYPE_CHECKING:
    from lowenergy import params
    from lowenergy.storage import Model


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0, or 2 after printing one clear error."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (UserError, OSError) as error:
        print(explained(error), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(missing(error), file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowenergy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="`dvc repro` with independent stages side by side, here or on a cluster")
    run.add_argument("stages", nargs="*", help="stages, with those that they need (default: all)")
    run.add_argument("--jobs", type=int, help="stages at a time (default: 2, or half as many as there are cores)")
    run.add_argument("--address", help="of a Dask scheduler whose workers run the stages, such as tcp://node1:8786")
    run.add_argument("--force", action="store_true", help="run stages that have not changed, too")
    run.add_argument("--keep-going", action="store_true", help="after a failure, go on with what does not need it")
    run.add_argument("--queue", action="store_true", help="the stages of DVC's queued experiments, shared ones once")
    run.add_argument("--dry", action="store_true", help="say what would run")
    run.set_defaults(run=_run)

    search = commands.add_parser("search", help="the smallest model that is good enough; see docs/search.md")
    search.add_argument("--target", required=True, help="what to compress: a teacher of params.yaml")
    search.add_argument("--max-loss", help="5%% of the teacher's figure, or 0.5 points of accuracy, or FID")
    search.add_argument("--max-bytes", type=int, help="of the model's file")
    search.add_argument("--max-macs", type=int, help="multiply-accumulates of one image")
    search.add_argument("--max-flash", type=_size, help="as C on a microcontroller, code and constants: such as 32k")
    search.add_argument(
        "--max-ram", type=_size, help="as C on a microcontroller, working memory and stack: such as 32k"
    )
    search.add_argument("--device", help="these limits by name: arduino-nano-33-ble, rp2040, stm32f746")
    search.add_argument(
        "--minimize", choices=["bytes", "macs", "latency", "flash", "ram"], default="bytes", help="default: bytes"
    )
    search.add_argument("--trials", type=int, default=40, help="models to try, those of before counted (default: 40)")
    search.add_argument("--space", type=Path, default=Path("search.yaml"), help="default: search.yaml")
    search.add_argument("--name", help="of the search (default: TARGET-MINIMIZE); it is kept in searches/NAME.log")
    search.add_argument("--sampler", choices=["tpe", "random"], default="tpe", help="random: to compare with")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--jobs", type=int, help="stages at a time, as of `lowenergy run`")
    search.add_argument("--address", help="of a Dask scheduler, as of `lowenergy run`")
    search.add_argument("--apply", action="store_true", help="afterwards, bring the winner into the workspace")
    search.set_defaults(run=_search)

    start = commands.add_parser("start", help="write a params.yaml that suits your images and this machine")
    start.add_argument("images", help="a folder with one sub-directory per class, or a data set such as mnist")
    start.add_argument(
        "--budget", type=_seconds, default="1h", help="time for `lowenergy run`: 90m or 2h (default: 1h)"
    )
    start.add_argument("--size", type=int, help="side of the images in pixels (default: the largest that fits)")
    start.add_argument("--root", default="data/raw", help="torchvision root of data sets (default: data/raw)")
    start.add_argument("--force", action="store_true", help="overwrite values of your own in params.yaml")
    start.set_defaults(run=_start)

    profile = commands.add_parser("profile", help="write a profile's values into params.yaml")
    profile.add_argument("name", help="without a name, they are listed", nargs="?")
    profile.add_argument("--force", action="store_true", help="overwrite values that are in no profile")
    profile.set_defaults(run=_profile)

    listing = commands.add_parser("params", help="list every parameter: what it means and may be")
    listing.add_argument("prefix", nargs="?", default="", help="only those that start so, such as prune")
    listing.set_defaults(run=_params)

    check = commands.add_parser("check", help="check params.yaml against the schema")
    check.set_defaults(run=_check)

    table = commands.add_parser("table", help="print the figures of all models: what compression costs, and saves")
    table.add_argument("--all", action="store_true", help="all figures")
    table.set_defaults(run=_table)

    report = commands.add_parser("report", help="what a pull request should say, as Markdown; `dvc repro` has a page")
    report.add_argument("--base", default="HEAD", help="revision to compare with (default: HEAD)")
    report.set_defaults(run=_report)

    show = commands.add_parser("show", help="print what is in a model file")
    show.add_argument("model", type=Path)
    _limits(show)
    show.set_defaults(run=_show)

    plan = commands.add_parser("plan", help="flash and RAM that a model takes on a device; see docs/device.md")
    plan.add_argument("model", help="a model file, or a teacher or student of params.yaml by its name")
    plan.add_argument("--ram", type=_size, help="that it may take, such as 32k (default: the least time)")
    plan.add_argument("--bits", type=int, help="of an architecture: weights as integers of so many bits, int8 within")
    plan.add_argument("--sparse", type=float, help="of an architecture: this share of the weights is zero")
    plan.add_argument("--codewords", type=int, help="of an architecture: product quantization with so many codewords")
    plan.add_argument("--length", type=int, default=4, help="weights of a codeword (default: 4)")
    plan.add_argument("--device", help="see whether it fits: arduino-nano-33-ble, rp2040, stm32f746")
    _trusts(plan)
    plan.set_defaults(run=_plan)

    score = commands.add_parser("score", help="accuracy of a classifier or JEM on the test images of its data set")
    score.add_argument("model", type=Path)
    score.add_argument("--root", help="torchvision root of its data set, to look at the official test images there")
    _trusts(score)
    _limits(score)
    score.set_defaults(run=_score)

    fid = commands.add_parser("fid", help="FID and Inception Score of images, by the pipeline's scorer or by Inception")
    fid.add_argument(
        "images", type=Path, help=".npy, or .npz with `images`: uint8, (n, h, w), (n, c, h, w) or (n, h, w, c)"
    )
    through = fid.add_mutually_exclusive_group()
    through.add_argument(
        "--scorer",
        type=Path,
        help="its statistics lie beside it: reference for scorer in the name (default: models/scorer.safetensors)",
    )
    through.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="Inception v3 in its place: the FID weights, or torchvision's, as safetensors; "
        "images may then also be a folder of image files",
    )
    fid.add_argument("--real", type=Path, help="images to compare with, as above; needed with --inception")
    fid.set_defaults(run=_fid)

    bench = commands.add_parser("bench", help="milliseconds and memory of models, each way of running them")
    bench.add_argument("models", type=Path, nargs="+", help="the first is what the others are compared with")
    bench.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="images at a time (default: 1 64)")
    bench.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    bench.add_argument("--steps", action="store_true", help="of an EBM or JEM: Langevin steps, not forward passes")
    bench.add_argument("--rounds", type=int, default=50, help="runs of which the median is taken (default: 50)")
    bench.add_argument("--way", action="append", default=[], help="only this one of the ways shown; may be repeated")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    _trusts(bench)
    bench.set_defaults(run=_bench)

    export = commands.add_parser(
        "export", help="write a model as ONNX, C or a web page; docs/deploy.md, docs/device.md"
    )
    export.add_argument("model", type=Path)
    export.add_argument("--to", choices=["onnx", "c", "page"], default="onnx", help="default: onnx")
    export.add_argument(
        "--out", type=Path, help="file, of C a directory (default: the model's name with .onnx, -c, .html)"
    )
    export.add_argument("--ram", type=_size, help="of C or a page: bytes that working memory and stack may take: 32k")
    export.add_argument("--unpack", action="store_true", help="of C or a page: weights as floats; faster, larger")
    export.add_argument("--no-sampler", action="store_true", help="of an EBM or JEM: energies only, in half the time")
    export.add_argument("--step-size", type=float, help="of the Langevin step in the file (default: as it was trained)")
    _trusts(export)
    _limits(export)
    export.set_defaults(run=_export)

    sweep = commands.add_parser("sweep-plot", help="gather the experiments of `dvc exp show` in one table, and draw it")
    sweep.add_argument("tables", nargs="*", type=Path, help="tables that it wrote before, instead of `dvc exp show`")
    sweep.add_argument("--target", default="ebm", help="whose branches: a teacher of params.yaml (default: ebm)")
    sweep.add_argument("--quality", help="the figure to draw (default: accuracy of a classifier, FID of an energy)")
    sweep.add_argument("--out", type=Path, default=Path("plots/sweep"), help="a directory (default: plots/sweep)")
    sweep.add_argument("--all-commits", action="store_true", help="experiments of all commits, not the current one's")
    sweep.set_defaults(run=_sweep_plot)

    sample = commands.add_parser("sample", help="draw images from an EBM or JEM, compressed or not")
    sample.add_argument("model", type=Path)
    sample.add_argument("--n", type=int, default=64, help="images (default 64)")
    sample.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="PNG or .npz (default samples.png)",
    )
    sample.add_argument("--steps", type=int, help="Langevin steps (default: as it was trained)")
    sample.add_argument("--step-size", type=float, help="of each (default: as it was trained); see docs/energies.md")
    sample.add_argument("--seed", type=int, default=0)
    _trusts(sample)
    _limits(sample)
    sample.set_defaults(run=_sample)
    return parser


def _size(text: str) -> int:
    """Bytes, as 32768, 32k or 1M."""
    units = {"k": 2**10, "m": 2**20}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; give one such as 32768 or 32k")
    return size


def _trusts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="FILE",
        help="file or module that the model's network may be imported from, besides torchvision and timm: mynets.py",
    )


def _limits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--limit",
        type=int,
        metavar="BYTES",
        help="of memory that the model may take (default: 256 MiB, and 256 times its file's size)",
    )


def _run(args: argparse.Namespace) -> None:
    from lowenergy.running import crew, experiments, pipeline

    if args.jobs is not None and args.jobs < 1:
        raise crew.RunError(f"--jobs {args.jobs}: give at least 1")
    if args.queue:
        if args.stages or args.force or args.dry:
            raise crew.RunError("--queue takes the stages that each experiment was queued with; no others, no --force")
        experiments.run_queued(jobs=args.jobs, address=args.address, keep_going=args.keep_going)
        return
    pipeline.run(
        args.stages,
        jobs=args.jobs,
        address=args.address,
        force=args.force,
        keep_going=args.keep_going,
        dry=args.dry,
    )


def _search(args: argparse.Namespace) -> None:
    from lowenergy.searching import session

    session.search(
        args.target,
        minimize=args.minimize,
        max_loss=args.max_loss,
        max_bytes=args.max_bytes,
        max_macs=args.max_macs,
        max_flash=args.max_flash,
        max_ram=args.max_ram,
        device=args.device,
        count=args.trials,
        space=args.space,
        name=args.name,
        sampler=args.sampler,
        seed=args.seed,
        jobs=args.jobs,
        address=args.address,
        apply=args.apply,
    )


def _seconds(text: str) -> float:
    """`90m`, `2h`, `45s`: seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", text)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give such as 45m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def _start(args: argparse.Namespace) -> None:
    from lowenergy.starting import start

    start(args.images, args.budget, size=args.size, root=args.root, force=args.force)


def _profile(args: argparse.Namespace) -> None:
    from lowenergy import profiles

    if args.name is None:
        print(*(f"{name:16} {text}" for name, text in profiles.described()), sep="\n")
        return
    changed = profiles.apply(args.name, force=args.force)
    print(*changed, f"params.yaml: {len(changed)} values changed", sep="\n")


def _params(args: argparse.Namespace) -> None:
    from lowenergy import params

    rows = [row for row in params.listing() if row[0].startswith(args.prefix)]
    if not rows:
        raise params.ParamsError(f"no parameter starts with {args.prefix}; `lowenergy params` lists all of them")
    for name, allowed, meaning in rows:
        print(f"{name}  ({allowed})\n    {meaning}")


def _check(args: argparse.Namespace) -> None:
    from lowenergy import params

    p = params.load()
    print(f"params.yaml: valid; source {p.data.source}, {', '.join(p.teachers)} and {len(p.branches)} branches")
    foreign = {place: a for place, a in p.architectures.items() if params.is_import_path(a.name)}
    if foreign:
        _build(p, foreign)
    for place, architecture in p.architectures.items():
        if place not in foreign and architecture.norm == "batch" and _head(p, place):
            from lowenergy.networks import batchnorm_warning

            print(batchnorm_warning(architecture.name, place))


def _head(p: "params.Params", place: str) -> str | None:
    """Of the energy that the network named at this place is."""
    name = place.partition(".")[0]
    if name not in p.models:
        return None  # the scorer
    teacher = p.teachers[p.target_of(name)]
    return "logsumexp" if teacher.kind == "jem" else getattr(teacher.architecture, "head", None)


def _build(p: "params.Params", foreign: "dict[str, params.Architecture]") -> None:
    """Build the networks that are not ours, with the images that they will get."""
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


def _table(args: argparse.Namespace) -> None:
    from lowenergy import params
    from lowenergy.reporting import tables

    p = params.load()
    tables.show(tables.collect(p), p, everything=args.all)


def _report(args: argparse.Namespace) -> None:
    from lowenergy import params
    from lowenergy.reporting import markdown

    print(markdown.text(params.load(), args.base))


def _show(args: argparse.Namespace) -> None:
    import json

    from lowenergy.storage import artifact

    model, header = artifact.read(args.model, trust=None, limit=args.limit)
    print(json.dumps({key: header.get(key) for key in ("target", "spec", "provenance")}, indent=2))
    sizes = artifact.stored_bytes(args.model)
    for name, encoded in model.tensors.items():
        shown = name if name.isprintable() else ascii(name)
        print(f"{encoded.kind:8}{sizes.get(name, 0):10,} bytes  {shown} {tuple(encoded.shape)}")


def _score(args: argparse.Namespace) -> None:
    import lowenergy
    from lowenergy.base.files import FileError
    from lowenergy.storage import artifact

    if artifact.read(args.model, trust=None, limit=args.limit)[0].target == "ebm":
        raise FileError(f"{args.model}: an ebm does not classify; see `lowenergy sample`")
    card = lowenergy.evaluate(args.model, root=args.root, trust=args.trust, limit=args.limit)
    assert card.accuracy is not None
    print(f"{args.model}: {card.size_bytes:,} bytes, {card.images:,} test images of {card.data}")
    print(f"accuracy {card.accuracy.value:.4f} ({card.accuracy.low:.4f} to {card.accuracy.high:.4f})")
    print(f"nll {card.nll:.4f}")


def _fid(args: argparse.Namespace) -> None:
    import lowenergy
    from lowenergy import params

    trust = params.load().trusted if Path("params.yaml").exists() else []
    scorer = args.scorer if args.scorer or args.inception else Path("models/scorer.safetensors")
    figures = lowenergy.fid(args.images, scorer=scorer, inception=args.inception, real=args.real, trust=trust)
    print(f"{args.images}: {figures.images:,} images")
    for name in ("fid", "inception_score"):
        figure = getattr(figures, name)
        print(f"{name} {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})")


def _bench(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from lowenergy.base import files
    from lowenergy.timing import bench, table

    if min([*args.batch, *args.threads, args.rounds]) < 1:
        raise UserError("--batch, --threads and --rounds: give at least 1")
    if unknown := set(args.way) - set(bench.WAYS):
        raise UserError(f"--way {unknown.pop()}: there are {', '.join(bench.WAYS)}")
    found: list[bench.Timing] = []
    failed: list[bench.Failure] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("timing", total=None)
        for result in bench.bench(
            args.models,
            batches=args.batch,
            threads=args.threads,
            steps=args.steps,
            rounds=args.rounds,
            ways=args.way,
            trust=args.trust,
        ):
            if isinstance(result, bench.Timing):
                found.append(result)
                progress.update(task, description=f"{Path(result.model).stem}, {result.way}: {result.ms:.2f} ms")
            else:
                failed.append(result)
    if found:
        table.show([asdict(timing) for timing in found], "Langevin step" if args.steps else "forward pass")
    for failure in failed:
        print(f"{failure.model}: not {failure.way}: {failure.why}")
    if args.json:
        files.write_json(args.json, [asdict(timing) for timing in found])
    if not found:
        raise UserError("nothing could be timed")


def _export(args: argparse.Namespace) -> None:
    import json

    import lowenergy

    stem = args.model.with_suffix("")
    out = (
        args.out
        or {"onnx": stem.with_suffix(".onnx"), "page": stem.with_suffix(".html"), "c": Path(f"{stem}-c")}[args.to]
    )
    lowenergy.export(
        args.model,
        out,
        to=args.to,
        sampler=not args.no_sampler,
        step_size=args.step_size,
        ram=args.ram,
        unpack=args.unpack,
        trust=args.trust,
        limit=args.limit,
    )
    stored = f"({args.model.name} has {args.model.stat().st_size:,})"
    if args.to != "c":
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


def _plan(args: argparse.Namespace) -> None:
    from lowenergy.runtimes.c import devices, forecast
    from lowenergy.storage import artifact

    device = devices.named(args.device) if args.device else None
    if sum(given is not None for given in (args.bits, args.sparse, args.codewords)) > 1:
        raise UserError("--bits, --sparse, --codewords: give one of them")
    if args.model.endswith(".safetensors"):
        if any(given is not None for given in (args.bits, args.sparse, args.codewords)):
            raise UserError(f"--bits, --sparse, --codewords are for networks of params.yaml; {args.model} has weights")
        model, _ = artifact.read(args.model, trust=args.trust)
    else:
        model = _described(args)
    found = forecast.forecast(model, ram=args.ram)
    how = "compiled for a Cortex-M7" if found.compiled else "code estimated: arm-none-eabi-gcc is not installed"
    print(f"flash {found.flash:,} bytes: {found.constants:,} of constants ({how})")
    print(f"RAM   {found.ram:,} bytes: {found.arena:,} of working memory, the rest stack")
    print(f"      {found.work:,} multiply-accumulates")
    if device is not None:
        fits = found.flash <= device.flash and found.ram <= device.ram
        print(f"{args.device} has {device.flash:,} and {device.ram:,}: {'it fits' if fits else 'it does not fit'}")


def _described(args: argparse.Namespace) -> "Model":
    """Untrained: an architecture of params.yaml for the images of its data, in the encoding that is asked for."""
    from lowenergy import params
    from lowenergy.runtimes.c import forecast

    p = params.load()
    students = {name: branch.params.student for name, branch in p.branches.items() if hasattr(branch.params, "student")}
    if args.model not in {**p.teachers, **students}:
        known = ", ".join([*p.teachers, *students])
        raise UserError(f"{args.model}: no model file (.safetensors), and none of {known} of params.yaml")
    coding = forecast.Coding(args.bits, args.sparse, args.codewords, args.length)
    return forecast.untrained(*forecast.described(p, p.target_of(args.model), students.get(args.model)), coding)


def _sweep_plot(args: argparse.Namespace) -> None:
    from lowenergy.reporting import sweeps

    if args.tables:
        table = sweeps.read(args.tables)
        table = table[table["target"] == args.target]
        if table.empty:
            raise sweeps.SweepError(f"no rows of target {args.target} in {', '.join(map(str, args.tables))}")
    else:
        revisions = sweeps.shown(*["-A"] * args.all_commits)
        for state, names in sweeps.unfinished(revisions).items():
            print(f"{len(names)} {state}: {', '.join(names)}" if state == "failed" else f"{len(names)} {state}")
        table = sweeps.collect(revisions, args.target)
    for path in sweeps.write(table, args.quality, args.out):
        print(path)


def _sample(args: argparse.Namespace) -> None:
    import io

    import numpy as np

    import lowenergy
    from lowenergy import data
    from lowenergy.base import files
    from lowenergy.calls.using import check_out

    if args.model.is_file():  # else what reads it says so
        check_out(args.out, args.model)
    images = lowenergy.sample(
        args.model,
        n=args.n,
        steps=args.steps,
        step_size=args.step_size,
        seed=args.seed,
        trust=args.trust,
        limit=args.limit,
    )
    if args.out.suffix == ".npz":
        archive = io.BytesIO()
        np.savez_compressed(archive, images=data.to_bytes(images).numpy())
        files.write_bytes(args.out, archive.getvalue())
    else:
        data.write_grid(images, args.out, columns=8)
    print(f"{args.out}: {args.n} images")


if __name__ == "__main__":
    sys.exit(main())
