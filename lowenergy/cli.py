"""The `lowenergy` command: what is not a stage of the pipeline."""

import argparse
import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path

from lowenergy.base.errors import UserError, explained, missing


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    That is 0, or 2 after printing one clear error, or 141, as for other commands, if nobody reads all of the output.
    """
    options = vars(_parser().parse_args(argv))
    module, _, function = options.pop("command").partition(":")
    try:
        getattr(import_module(f"lowenergy.{module}"), function)(**options)
        sys.stdout.flush()
    except BrokenPipeError:  # as with `lowenergy params | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains when it exits
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:
        print(explained(error), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(missing(error), file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    """The parser: each command names the function that it calls, and has that function's arguments."""
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
    run.set_defaults(command="commands:run")

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
    search.add_argument(
        "--trials", dest="count", type=int, default=40, help="models to try, those of before counted (default: 40)"
    )
    search.add_argument("--space", type=Path, default=Path("search.yaml"), help="default: search.yaml")
    search.add_argument("--name", help="of the search (default: TARGET-MINIMIZE); it is kept in searches/NAME.log")
    search.add_argument("--sampler", choices=["tpe", "random"], default="tpe", help="random: to compare with")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--jobs", type=int, help="stages at a time, as of `lowenergy run`")
    search.add_argument("--address", help="of a Dask scheduler, as of `lowenergy run`")
    search.add_argument("--apply", action="store_true", help="afterwards, bring the winner into the workspace")
    search.set_defaults(command="searching.session:search")

    start = commands.add_parser("start", help="write a params.yaml that suits your images and this machine")
    start.add_argument(
        "place", metavar="images", help="a folder with one sub-directory per class, or a data set such as mnist"
    )
    start.add_argument(
        "--budget", type=_seconds, default="1h", help="time for `lowenergy run`: 90m or 2h (default: 1h)"
    )
    start.add_argument("--size", type=int, help="side of the images in pixels (default: the largest that fits)")
    start.add_argument("--root", default="data/raw", help="torchvision root of data sets (default: data/raw)")
    start.add_argument(
        "--arguments", nargs="*", default=(), metavar="NAME=VALUE", help="of a data set: split=letters for EMNIST"
    )
    start.add_argument("--force", action="store_true", help="overwrite values and comments of your own in params.yaml")
    start.set_defaults(command="starting:start")

    profile = commands.add_parser("profile", help="write a profile's values into params.yaml")
    profile.add_argument("name", help="without a name, they are listed", nargs="?")
    profile.add_argument("--force", action="store_true", help="overwrite values and comments that are in no profile")
    profile.set_defaults(command="commands:profile")

    listing = commands.add_parser("params", help="list every parameter: what it means and may be")
    listing.add_argument("prefix", nargs="?", default="", help="only those that start so, such as prune")
    listing.set_defaults(command="commands:params")

    check = commands.add_parser("check", help="check params.yaml against the schema")
    check.set_defaults(command="commands:check")

    table = commands.add_parser("table", help="print the figures of all models: what compression costs, and saves")
    table.add_argument("--all", dest="everything", action="store_true", help="all figures")
    table.set_defaults(command="commands:table")

    report = commands.add_parser("report", help="what a pull request should say, as Markdown; `dvc repro` has a page")
    report.add_argument("--base", default="HEAD", help="revision to compare with (default: HEAD)")
    report.set_defaults(command="commands:report")

    show = commands.add_parser("show", help="print what is in a model file")
    show.add_argument("model", type=Path)
    _limits(show)
    show.set_defaults(command="commands:show")

    plan = commands.add_parser("plan", help="flash and RAM that a model takes on a device; see docs/device.md")
    plan.add_argument("model", help="a model file, or a teacher or student of params.yaml by its name")
    plan.add_argument("--ram", type=_size, help="that it may take, such as 32k (default: the least time)")
    plan.add_argument("--bits", type=int, help="of an architecture: weights as integers of so many bits, int8 within")
    plan.add_argument("--sparse", type=float, help="of an architecture: this share of the weights is zero")
    plan.add_argument("--codewords", type=int, help="of an architecture: product quantization with so many codewords")
    plan.add_argument("--length", type=int, help="weights of a codeword (default: 4)")
    plan.add_argument("--device", help="see whether it fits: arduino-nano-33-ble, rp2040, stm32f746")
    _trusts(plan)
    plan.set_defaults(command="commands:plan")

    score = commands.add_parser("score", help="accuracy of a classifier or JEM on the test images of its data set")
    score.add_argument("model", type=Path)
    score.add_argument("--root", help="torchvision root of its data set, to look at the official test images there")
    _trusts(score)
    _limits(score)
    score.set_defaults(command="commands:score")

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
    fid.set_defaults(command="commands:fid")

    bench = commands.add_parser("bench", help="milliseconds and memory of models, each way of running them")
    bench.add_argument("models", type=Path, nargs="+", help="the first is what the others are compared with")
    bench.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="images at a time (default: 1 64)")
    bench.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    bench.add_argument("--steps", action="store_true", help="of an EBM or JEM: Langevin steps, not forward passes")
    bench.add_argument("--rounds", type=int, default=50, help="runs of which the median is taken (default: 50)")
    bench.add_argument("--way", action="append", default=[], help="only this one of the ways shown; may be repeated")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    _trusts(bench)
    bench.set_defaults(command="commands:bench")

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
    export.add_argument(
        "--no-sampler", dest="sampler", action="store_false", help="of an EBM or JEM: energies only, in half the time"
    )
    export.add_argument("--step-size", type=float, help="of the Langevin step in the file (default: as it was trained)")
    _trusts(export)
    _limits(export)
    export.set_defaults(command="commands:export")

    sweep = commands.add_parser("sweep-plot", help="gather the experiments of `dvc exp show` in one table, and draw it")
    sweep.add_argument("tables", nargs="*", type=Path, help="tables that it wrote before, instead of `dvc exp show`")
    sweep.add_argument("--target", default="ebm", help="whose branches: a teacher of params.yaml (default: ebm)")
    sweep.add_argument("--quality", help="the figure to draw (default: accuracy of a classifier, FID of an energy)")
    sweep.add_argument("--out", type=Path, default=Path("plots/sweep"), help="a directory (default: plots/sweep)")
    sweep.add_argument("--all-commits", action="store_true", help="experiments of all commits, not the current one's")
    sweep.set_defaults(command="commands:sweep_plot")

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
    sample.set_defaults(command="commands:sample")
    return parser


def _size(text: str) -> int:
    """The number of bytes in a text such as 32768, 32k or 1M."""
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
        type=_size,
        metavar="BYTES",
        help="of memory that the model may take (default: 256 MiB, and 256 times its file's size)",
    )


def _seconds(text: str) -> float:
    """The number of seconds in a text such as `90m`, `2h` or `45s`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give such as 45m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


if __name__ == "__main__":
    sys.exit(main())
