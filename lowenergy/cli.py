"""The `lowenergy` command: what is not a stage of the pipeline."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowenergy.base.errors import UserError, explained

if TYPE_CHECKING:
    from lowenergy.base import params


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0, or 2 after printing one clear error."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (UserError, OSError) as error:
        print(explained(error), file=sys.stderr)
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
    search.add_argument("--target", required=True, help="what to compress: a target of params.yaml")
    search.add_argument("--max-loss", help="5%% of the teacher's figure, or 0.5 points of accuracy, or FID")
    search.add_argument("--max-bytes", type=int, help="of the model's file")
    search.add_argument("--max-macs", type=int, help="multiply-accumulates of one image")
    search.add_argument("--minimize", choices=["bytes", "macs", "latency"], default="bytes", help="default: bytes")
    search.add_argument("--trials", type=int, default=40, help="models to try, those of before counted (default: 40)")
    search.add_argument("--space", type=Path, default=Path("search.yaml"), help="default: search.yaml")
    search.add_argument("--name", help="of the search (default: TARGET-MINIMIZE); it is kept in searches/NAME.log")
    search.add_argument("--sampler", choices=["tpe", "random"], default="tpe", help="random: to compare with")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--jobs", type=int, help="stages at a time, as of `lowenergy run`")
    search.add_argument("--address", help="of a Dask scheduler, as of `lowenergy run`")
    search.add_argument("--apply", action="store_true", help="afterwards, bring the winner into the workspace")
    search.set_defaults(run=_search)

    profile = commands.add_parser("profile", help="write a profile of profiles/ into params.yaml")
    profile.add_argument("name", help="a file of profiles/; without a name, they are listed", nargs="?")
    profile.set_defaults(run=_profile)

    listing = commands.add_parser("params", help="list every parameter: what it means and may be")
    listing.add_argument("prefix", nargs="?", default="", help="only those that start so, such as prune")
    listing.set_defaults(run=_params)

    check = commands.add_parser("check", help="check params.yaml against the schema")
    check.set_defaults(run=_check)

    table = commands.add_parser("table", help="print the figures of metrics/: what compression costs, and saves")
    table.add_argument("--all", action="store_true", help="all figures")
    table.set_defaults(run=_table)

    report = commands.add_parser("report", help="what a pull request should say: changed figures, what to take")
    report.add_argument("--markdown", action="store_true", required=True, help="the page is `dvc repro report`'s")
    report.add_argument("--base", default="HEAD", help="revision to compare with (default: HEAD)")
    report.set_defaults(run=_report)

    show = commands.add_parser("show", help="print what is in a model file")
    show.add_argument("model", type=Path)
    show.set_defaults(run=_show)

    score = commands.add_parser("score", help="accuracy of a classifier or JEM on the test images of its data set")
    score.add_argument("model", type=Path)
    score.add_argument("--root", help="torchvision root of mnist and cifar100 (default: data.root of params.yaml)")
    _trusts(score)
    score.set_defaults(run=_score)

    fid = commands.add_parser("fid", help="FID and Inception Score of images in a .npz file, by the pipeline's scorer")
    fid.add_argument("images", type=Path, help="array `images`, uint8, (n, h, w) or (n, c, h, w)")
    fid.add_argument(
        "--scorer",
        type=Path,
        default=Path("models/scorer.safetensors"),
        help="its statistics lie beside it: reference for scorer in the name (default: models/scorer.safetensors)",
    )
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

    export = commands.add_parser("export", help="write a model as ONNX, for onnxruntime alone; see docs/deploy.md")
    export.add_argument("model", type=Path)
    export.add_argument("--out", type=Path, help="default: the model's name with .onnx")
    export.add_argument("--no-sampler", action="store_true", help="of an EBM or JEM: energies only, in half the time")
    export.add_argument("--step-size", type=float, help="of the Langevin step in the file (default: as it was trained)")
    _trusts(export)
    export.set_defaults(run=_export)

    sweep = commands.add_parser("sweep-plot", help="gather the experiments of `dvc exp show` in one table, and draw it")
    sweep.add_argument("tables", nargs="*", type=Path, help="tables that it wrote before, instead of `dvc exp show`")
    sweep.add_argument("--target", default="ebm", help="default: ebm")
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
    sample.set_defaults(run=_sample)
    return parser


def _trusts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="FILE",
        help="file or module that the model's network may be imported from, besides torchvision and timm: mynets.py",
    )


def _needs(command: str, package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(f"`lowenergy {command}` needs {package}: pip install 'lowenergy[{extra}]'")


def _run(args: argparse.Namespace) -> None:
    _needs("run", "distributed", "cluster")
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
    _needs("search", "distributed", "search")
    _needs("search", "optuna", "search")
    from lowenergy.searching import session

    session.search(
        args.target,
        minimize=args.minimize,
        max_loss=args.max_loss,
        max_bytes=args.max_bytes,
        max_macs=args.max_macs,
        count=args.trials,
        space=args.space,
        name=args.name,
        sampler=args.sampler,
        seed=args.seed,
        jobs=args.jobs,
        address=args.address,
        apply=args.apply,
    )


def _profile(args: argparse.Namespace) -> None:
    from lowenergy import profiles

    if args.name is None:
        print(*(f"{name:16} {text}" for name, text in profiles.described()), sep="\n")
        return
    changed = profiles.apply(args.name)
    print(*changed, f"params.yaml: {len(changed)} values changed", sep="\n")


def _params(args: argparse.Namespace) -> None:
    from lowenergy.base import params

    rows = [row for row in params.listing() if row[0].startswith(args.prefix)]
    if not rows:
        raise params.ParamsError(f"no parameter starts with {args.prefix}; `lowenergy params` lists all of them")
    for name, allowed, meaning in rows:
        print(f"{name}  ({allowed})\n    {meaning}")


def _check(args: argparse.Namespace) -> None:
    from lowenergy.base import params

    p = params.load()
    print(f"params.yaml: valid; source {p.data.source}, targets {', '.join(p.targets)}")
    foreign = {place: a for place, a in p.architectures.items() if params.is_import_path(a.name)}
    if foreign:
        _build(p, foreign)


def _build(p: "params.Params", foreign: "dict[str, params.Architecture]") -> None:
    """Build the networks that are not ours, with the images that they will get."""
    from lowenergy import data, networks

    splits = data.load(data.SPLITS)
    for place, architecture in foreign.items():
        target = place.split(".")[0]
        outputs = 0 if target == "ebm" or place == "distill.student" else len(splits.classes)
        spec = networks.Spec.of(architecture, splits.input_shape, outputs, None, splits.normalisation)
        network = networks.of_params(architecture, spec, seed=p.seed, where=place)
        layers, rest = networks.coded_layers(network), networks.left_out(network)
        size = sum(w.numel() for w in network.parameters())
        more = f"; of no layer: {', '.join(rest)}" if rest else ""
        print(f"{place}: {architecture.name}: {size:,} parameters, {len(layers)} layers to compress{more}")


def _table(args: argparse.Namespace) -> None:
    from lowenergy.base import params
    from lowenergy.reporting import tables

    p = params.load()
    tables.show(tables.collect(list(p.targets)), p.chain, everything=args.all)


def _report(args: argparse.Namespace) -> None:
    from lowenergy.base import params
    from lowenergy.reporting import markdown

    p = params.load()
    print(markdown.text(list(p.targets), p.chain, args.base))


def _show(args: argparse.Namespace) -> None:
    import json

    from lowenergy.storage import artifact

    model, header = artifact.read(args.model, trust=None)
    print(json.dumps({key: header.get(key) for key in ("target", "spec", "provenance")}, indent=2))
    for name, encoded in model.tensors.items():
        size = sum(part.numel() * part.element_size() for part in encoded.parts().values())
        print(f"{encoded.kind:7}{size:10,} bytes  {name} {tuple(encoded.decode().shape)}")


def _score(args: argparse.Namespace) -> None:
    from lowenergy import data
    from lowenergy.base import params
    from lowenergy.base.files import FileError
    from lowenergy.runtimes.loading import network_of
    from lowenergy.scoring import accuracy
    from lowenergy.storage import artifact

    model, header = artifact.read(args.model, trust=args.trust)
    if model.target == "ebm":
        raise FileError(f"{args.model}: an ebm does not classify; see `lowenergy sample`")
    source = header["provenance"]["data"]
    test = data.test_images(source, args.root or params.load().data.root)
    if tuple(test.images.shape[1:]) != model.spec.input_shape:
        raise FileError(
            f"{args.model}: made for images of {model.spec.input_shape}, the test images of {source} have "
            f"{tuple(test.images.shape[1:])}; run the pipeline that made it and read metrics/"
        )
    measured = accuracy.measure(accuracy.predict(network_of(model), test.images, 250), test.labels)
    print(f"{args.model}: {args.model.stat().st_size:,} bytes, {len(test):,} test images of {source}")
    print(*(f"{key} {value:.4f}" for key, value in measured.items()), sep="\n")


def _fid(args: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from lowenergy import data
    from lowenergy.base import params
    from lowenergy.base.files import FileError
    from lowenergy.runtimes.loading import dense_network
    from lowenergy.scoring import generation
    from lowenergy.storage import artifact

    trust = params.load().trusted if Path("params.yaml").exists() else []
    scorer = dense_network(artifact.read(args.scorer, trust=trust)[0])
    reference = args.scorer.with_name(args.scorer.name.replace("scorer", "reference"))
    try:
        with np.load(args.images, allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["images"])
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{args.images}: no .npz file with an array `images` ({error})") from None
    images = images[:, None] if images.ndim == 3 else images
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != scorer.spec.input_shape:
        raise FileError(
            f"{args.images}: {images.dtype} images of {tuple(images.shape[1:])}; the scorer looks at uint8 images of "
            f"{scorer.spec.input_shape}"
        )
    measured = generation.measure(scorer, reference, data.to_float(images), 0)
    print(f"{args.images}: {len(images):,} images")
    print(*(f"{key} {value:.4f}" for key, value in measured.items()), sep="\n")


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
    from lowenergy.runtimes import to_onnx
    from lowenergy.storage import artifact

    model, header = artifact.read(args.model, trust=args.trust)
    out = args.out or args.model.with_suffix(".onnx")
    to_onnx.export(model, header, out, sampler=not args.no_sampler, step_size=args.step_size)
    size, stored = out.stat().st_size, args.model.stat().st_size
    print(f"{out}: {size:,} bytes ({args.model.name} has {stored:,})")


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
    import torch
    from rich.progress import Progress

    from lowenergy import data
    from lowenergy.base import files
    from lowenergy.base.device import fastest
    from lowenergy.energies import sample
    from lowenergy.runtimes import sampling
    from lowenergy.runtimes.loading import network_of
    from lowenergy.storage import artifact

    model, header = artifact.read(args.model, trust=args.trust)
    if model.spec.head is None:
        raise files.FileError(f"{args.model}: a {model.target} has no energy to sample from; give an EBM or a JEM")
    constants = sampling.constants_of(header, args.model, args.step_size)
    steps = int(header["provenance"]["sampler"]["chain_steps"]) if args.steps is None else args.steps
    if min(args.n, steps) < 1:
        raise UserError("--n and --steps: give at least 1")
    device = fastest()
    with Progress() as progress:
        task = progress.add_task(f"{steps} Langevin steps", total=steps * args.n)
        images = sample(
            sampling.fastest(model, network_of(model).to(device), images=steps * args.n),
            model.spec.input_shape,
            args.n,
            steps=steps,
            constants=constants,
            generator=torch.Generator(device).manual_seed(args.seed),
            progress=lambda chains: progress.advance(task, chains),
        )
    if args.out.suffix == ".npz":
        archive = io.BytesIO()
        np.savez_compressed(archive, images=data.to_bytes(images).cpu().numpy())
        files.write_bytes(args.out, archive.getvalue())
    else:
        data.write_grid(images.cpu(), args.out, columns=8)
    print(f"{args.out}: {args.n} images")


if __name__ == "__main__":
    sys.exit(main())
