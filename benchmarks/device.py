"""What models take as C, and how fast they are: `python benchmarks/device.py [--only NAME …]`, rows of README.md.

Needs gcc; rows on microcontrollers need arm-none-eabi-gcc and qemu-system-arm, or avr-gcc and simavr, the page's
ziglang and Chromium, its comparison the npm package onnxruntime-web in the folder that --web names. A row whose tools
are missing is left out, with a line; rows that are measured take the place of the record's. Times need an idle machine.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import record
import targets
import torch
from ruamel.yaml import YAML

from lowenergy import data, params
from lowenergy.energies import energy_gradient, sample
from lowenergy.runtimes import c, sampling, to_onnx
from lowenergy.runtimes.loading import dense_network, energy_in
from lowenergy.scoring import generation
from lowenergy.storage import artifact

ROOT = Path(__file__).parents[1]
PRETRAINED = ROOT / "pretrained"
STRICT = ["-std=c99", "-ffp-contract=off"]
FAST = [*STRICT, "-O3", "-march=native"]
KEPT = [*FAST, "-DMODEL_KEEP=1"]
AS_MADE = [*STRICT, "-O2"]  # by the Makefile of an export
IMAGES, STEPS = 2000, 149
Row = dict[str, Any]


class Library:
    """A directory of C, compiled for this machine."""

    def __init__(self, directory: Path, flags: Sequence[str] = FAST) -> None:
        library = directory.with_name(f"{directory.name}.so")
        subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-o", library, directory / "model.c"], check=True)
        self.code: Any = ctypes.CDLL(str(library))
        header = (directory / "model.h").read_text()
        self.shape = tuple(int(_found(rf"MODEL_{k} (\d+)", header)) for k in ("CHANNELS", "HEIGHT", "WIDTH"))
        self.outputs = int(_found(r"MODEL_OUTPUTS (\d+)", header))
        self.memory = np.zeros(2**23)
        self.arena = self.memory.ctypes.data_as(ctypes.c_void_p)

    def sample(self, seed: int, steps: int) -> np.ndarray:
        image = np.zeros(self.shape, np.float32)
        self.code.model_sample(self.arena, image.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(seed), steps)
        return image

    def logits(self, image: np.ndarray) -> np.ndarray:
        found = np.zeros(self.outputs, np.float32)
        given = np.ascontiguousarray(image, np.float32)
        self.code.model_logits(self.arena, *(part.ctypes.data_as(ctypes.c_void_p) for part in (given, found)))
        return found


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None
    return found[1]


def exported(name: str, place: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    model, header = artifact.read(PRETRAINED / f"{name}.safetensors")
    out = place / name
    return out, c.export(model, header, out, **options)


def least_ms(runs: dict[str, Callable[[], Any]], rounds: int = 100) -> dict[str, float]:
    """The least of many runs of each, taken in turn, so that whatever else the machine does troubles all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begun)
    return {name: 1e3 * min(times) for name, times in taken.items()}


# -- rows -------------------------------------------------------------------------------------------------------------


def microcontrollers(place: Path) -> list[Row]:
    """Flash and RAM by processor and by plan; whether the pixels are those drawn here."""
    if (tool := targets.missing()) is not None:
        print(f"microcontrollers: {tool} is not installed")
        return []
    rows = []
    for name in ("mnist-ebm-12k", "mnist-ebm-tiny"):
        model, _ = artifact.read(PRETRAINED / f"{name}.safetensors")
        for plan, ram in {"fastest": None, "32k": 32 * 1024, "smallest": _least_ram(model)}.items():
            out, card = exported(name, place / plan, ram=ram)
            here = _checksum(Library(out).sample(3, 1))
            for target in targets.TARGETS if plan == "32k" else ["cortex-m7"]:
                ran = targets.run(out, target, seed=3, steps=1)
                rows.append(
                    {
                        "row": "microcontroller", "model": name, "plan": plan, "target": target,
                        "flash": targets.code(out, target), "constants": card["constant_bytes"],
                        "arena": card["arena_bytes"], "stack": ran.stack, "ram": card["arena_bytes"] + ran.stack,
                        "work": card["multiply_accumulates"], "computed_again": card["computed_again"],
                        "same_pixels": ran.hash == here,
                    }
                )  # fmt: skip
    return rows


def _least_ram(model: artifact.Model) -> int:
    """Bytes of the smallest plan."""
    try:
        c.planned(model, ram=1)
    except c.NoPlanError as error:
        return error.smallest
    raise AssertionError("a plan of one byte")


def _checksum(image: np.ndarray) -> int:
    total = 2166136261
    for byte in ((image + np.float32(1)) * np.float32(127.5) + np.float32(0.5)).astype(np.uint8).ravel().tolist():
        total = (total ^ byte) * 16777619 & 0xFFFFFFFF
    return total


def quality(place: Path) -> list[Row]:
    """FID of images that the C program draws, and of those that torch draws from the same file."""
    scorer = dense_network(artifact.read(PRETRAINED / "mnist-scorer.safetensors")[0])
    reference = PRETRAINED / "mnist-reference.safetensors"
    rows = []
    for name in ("mnist-ebm-12k", "mnist-ebm-tiny"):
        out, _ = exported(name, place)
        library = Library(out)
        model, header = artifact.read(PRETRAINED / f"{name}.safetensors")
        constants = sampling.constants_of(header, name)
        steps = int(header["provenance"]["sampler"]["chain_steps"])
        begun = time.perf_counter()
        drawn = torch.from_numpy(np.stack([library.sample(seed, steps) for seed in range(IMAGES)]))
        seconds = time.perf_counter() - begun
        fid = generation.measure(scorer, reference, data.to_float(data.to_bytes(drawn)), 0)["fid"]
        energy = energy_in(model, dense_network(model))
        generator = torch.Generator().manual_seed(0)
        begun = time.perf_counter()
        others = sample(energy, model.spec.input_shape, IMAGES, steps=steps, constants=constants, generator=generator)
        of_torch = generation.measure(scorer, reference, data.to_float(data.to_bytes(others)), 0)["fid"]
        rows.append(
            {
                "row": "quality", "model": name, "images": IMAGES, "steps": steps, "fid": fid, "fid_torch": of_torch,
                "seconds": seconds, "seconds_torch": time.perf_counter() - begun,
            }
        )  # fmt: skip
    return rows


TEN = 10  # steps at a time, as a chain takes them: caches are warm


def _repeated(run: Callable[[], Any]) -> None:
    for _ in range(TEN):
        run()


def in_onnxruntime(model: artifact.Model, header: dict[str, Any], path: Path, *, optimised: bool = True) -> Any:
    """A session on one core."""
    import onnxruntime

    to_onnx.export(model, header, path)
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def speed(place: Path) -> list[Row]:
    """Milliseconds of a Langevin step of one image on one core: C, onnxruntime, torch (the gradient alone)."""
    torch.set_num_threads(1)
    rows = []
    for name in ("mnist-ebm-12k", "mnist-ebm-tiny", "mnist-ebm-77k"):
        model, header = artifact.read(PRETRAINED / f"{name}.safetensors")
        runs: dict[str, Callable[[], Any]] = {}
        ways: dict[str, tuple[dict[str, Any], list[str]]] = {
            "c": ({}, FAST), "c_kept": ({}, KEPT), "c_as_made": ({}, AS_MADE), "c_unpacked": ({"unpack": True}, FAST),
            "c_smallest": ({"ram": _least_ram(model)}, FAST),
        }  # fmt: skip
        for way, (options, flags) in ways.items():
            out, _ = exported(name, place / way, **options)
            runs[way] = partial(Library(out, flags).sample, 1, TEN)
        session = in_onnxruntime(model, header, place / "model.onnx")
        image = np.random.default_rng(0).uniform(-1, 1, (1, *model.spec.input_shape)).astype(np.float32)
        noise = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
        step = partial(session.run, ["next"], {"images": image, "noise": noise})
        gradient = partial(energy_gradient, energy_in(model, dense_network(model)), torch.from_numpy(image))
        runs["onnxruntime"], runs["torch"] = partial(_repeated, step), partial(_repeated, gradient)
        times = {way: taken / TEN for way, taken in least_ms(runs).items()}
        rows.append({"row": "speed", "model": name, **times, "c_to_onnxruntime": times["c"] / times["onnxruntime"]})
    return rows


def classifier(place: Path, root: Path) -> list[Row]:
    """CIFAR-100's ResNet-18 of 689,995 bytes: what it takes, and whether it answers as torch does."""
    name = "cifar100-resnet18-half-pq"
    out, card = exported(name, place)
    library = Library(out)
    model, header = artifact.read(PRETRAINED / f"{name}.safetensors")
    network = dense_network(model)
    p = params.load(ROOT / "params.yaml")
    section = p.data.model_copy(update={"source": "cifar100", "root": str(root), "limit": None})
    test = data.test_images(header["provenance"], model.spec.input_shape, section, p.seed, None)
    images, labels = data.to_float(test.images[:1000]), test.labels[:1000].numpy()
    with torch.no_grad():
        wanted = torch.cat([network(batch) for batch in images.split(100)]).numpy()
    found = np.stack([library.logits(image) for image in images.numpy()])
    row: Row = {
        "row": "classifier", "model": name, "constants": card["constant_bytes"], "ram": card["arena_bytes"],
        **least_ms({"ms": lambda: library.logits(images[0].numpy())}, 60), "images": len(images),
        "same_answers": int((found.argmax(1) == wanted.argmax(1)).sum()),
        "accuracy": float((found.argmax(1) == labels).mean()),
        "accuracy_torch": float((wanted.argmax(1) == labels).mean()),
        "largest_difference": float(abs(found - wanted).max()),
    }  # fmt: skip
    if targets.missing() is None:
        row["flash"] = targets.code(out, "cortex-m7")
    return [row]


def page(place: Path, web: Path | None = None) -> list[Row]:
    """Bytes of the page, and steps a second in Chromium."""
    if find_spec("ziglang") is None:
        print("page: ziglang is not installed")
        return []
    model, header = artifact.read(PRETRAINED / "mnist-ebm-12k.safetensors")
    size = c.export_page(model, header, place / "model.html")
    row: Row = {"row": "page", "model": "mnist-ebm-12k", "bytes": size}
    if shutil.which("chromium"):
        text = (place / "model.html").read_text().replace("</html>", f"<script>{TIMING}</script></html>")
        (place / "index.html").write_text(text)
        row["ms"] = browsed(place)
        if web is not None:
            to_onnx.export(model, header, place / "model.onnx")
            for path in (web / "node_modules/onnxruntime-web/dist").glob("ort*"):
                (place / path.name).symlink_to(path.resolve())
            (place / "index.html").write_text(f'<script src="ort.wasm.min.js"></script><script>{OF_ORT}</script>')
            row["onnxruntime_web_ms"] = browsed(place)
            row["times_as_many_steps"] = row["onnxruntime_web_ms"] / row["ms"]
            row["onnxruntime_web_bytes"] = (place / "ort-wasm-simd-threaded.wasm").stat().st_size
    return [row]


# After a warm-up, the least of many short rounds; the milliseconds of one step are told to the server.
ROUNDS = """
  let least = Infinity;
  for (let round = 0; round < 300; round++) {
    const begun = performance.now();
    for (let i = 0; i < EACH; i++) STEP;
    least = Math.min(least, (performance.now() - begun) / EACH);
  }
  fetch('/done?' + least);
"""
TIMING = """addEventListener('load', async () => {
  while (!document.body.dataset.ready) await new Promise(r => setTimeout(r, 10));
  going = false;
  model.start(1);
  for (let i = 0; i < 200; i++) model.step(STEP);
""" + ROUNDS.replace("EACH", "20").replace("STEP", "model.step(STEP)") + "});"  # fmt: skip
OF_ORT = """(async () => {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create('model.onnx', {executionProviders: ['wasm']});
  const noise = new ort.Tensor('float32', Float32Array.from({length: 784}, () => Math.random() - .5), [1, 1, 28, 28]);
  let images = new ort.Tensor('float32', new Float32Array(784), [1, 1, 28, 28]);
  for (let i = 0; i < 100; i++) images = (await session.run({images, noise}, ['next'])).next;
""" + ROUNDS.replace("EACH", "10").replace("STEP", "images = (await session.run({images, noise}, ['next'])).next") + (
    "})();"
)  # fmt: skip


def browsed(place: Path) -> float:
    """What a page, index.html of a folder, tells of itself in Chromium."""
    told: list[float] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/done?"):
                told.append(float(self.path.partition("?")[2]))
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={place}/profile", f"http://127.0.0.1:{server.server_port}/"]  # fmt: skip
        browser = subprocess.Popen(
            [*command[:-1], "--remote-debugging-port=0", command[-1]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 120
        while not told and time.monotonic() < until:
            time.sleep(0.1)
        browser.terminate()
        browser.wait()
        server.shutdown()
    assert told, "the page told nothing in two minutes"
    return told[0]


def smallest(place: Path) -> list[Row]:
    """An int8 energy of the digits, 8x8, on an ATmega328P with 2 kB of RAM and 32 kB of flash."""
    if (tool := targets.missing(targets.AVR_TOOLS)) is not None:
        print(f"smallest: {tool} is not installed")
        return []
    width = 4
    work = digits_energy(place / "work", {"name": "shallow", "width": width, "logits": 1})
    path = work / "models/ebm/quantize.safetensors"
    model, header = artifact.read(path)
    out = place / "c"
    card = c.export(model, header, out, ram=_least_ram(model))
    library = Library(out)
    steps = params.load(work / "params.yaml").ebm.evaluate.chain_steps
    ran = targets.run_on_avr(out, seed=3, steps=10)
    scorer = dense_network(artifact.read(work / "models/scorer.safetensors")[0])
    reference = work / "models/reference.safetensors"
    drawn = np.stack([library.sample(seed, steps) for seed in range(IMAGES)])
    energy, generator = energy_in(model, dense_network(model)), torch.Generator().manual_seed(0)
    constants = sampling.constants_of(header, path.name)
    others = sample(energy, model.spec.input_shape, IMAGES, steps=steps, constants=constants, generator=generator)
    fid, of_torch = (
        generation.measure(scorer, reference, data.to_float(data.to_bytes(images)), 0)["fid"]
        for images in (torch.from_numpy(drawn), others)
    )
    return [
        {
            "row": "smallest", "model": f"shallow, width {width}, int8", "bytes": path.stat().st_size,
            "constants": card["constant_bytes"], "arena": card["arena_bytes"], "image": drawn[0].nbytes,
            "flash": ran.flash, "ram": ran.ram + ran.stack, "stack": ran.stack, "steps": steps,
            "ms_at_16_mhz": ran.cycles / 16e3 / 10, "same_pixels": ran.hash == _checksum(library.sample(3, 10)),
            "images": IMAGES, "fid": fid, "fid_torch": of_torch,
        }
    ]  # fmt: skip


def digits_energy(work: Path, architecture: dict[str, Any]) -> Path:
    """A folder with an int8 energy of the digits, made by the stages as params.yaml has them but for its network."""
    yaml = YAML()
    values: Any = yaml.load(ROOT / "params.yaml")
    values["ebm"]["architecture"].update(architecture)
    work.mkdir()
    yaml.dump(values, work / "params.yaml")
    for name in ("lowenergy", "stages", "dvc.yaml"):
        (work / name).symlink_to(ROOT / name)
    for stage in ("prepare", "scorer", "teacher ebm", "compress quantize ebm"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", *f"stages.{stage}".split()], cwd=work, check=True, env=environment)
    return work


ROWS: dict[str, Callable[..., list[Row]]] = {
    "microcontrollers": microcontrollers, "speed": speed, "page": page, "classifier": classifier, "smallest": smallest,
    "quality": quality,
}  # fmt: skip


def keep(rows: list[Row]) -> None:
    """Write rows into the record, in the place of those that measured the same."""

    def what(row: Row) -> tuple[str, str]:
        return row["row"], row.get("way", "")

    measured = {what(row) for row in rows}
    print(record.write("device", [*(row for row in record.rows("device") if what(row) not in measured), *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--web", type=Path, help="folder in which `npm install onnxruntime-web` was run")
    parser.add_argument("--root", type=Path, default=Path("data/raw"), help="torchvision root of cifar100")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        for name in args.only:
            (folder := Path(place) / name).mkdir()
            more = {"page": [args.web], "classifier": [args.root]}.get(name, [])
            rows += ROWS[name](folder, *more)
            print(json.dumps(rows[-3:], indent=1), flush=True)
    if not args.no_record:
        keep(rows)


if __name__ == "__main__":
    main()
