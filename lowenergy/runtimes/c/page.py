"""Write a model as one web page: its C compiled to WebAssembly, inside an HTML file that makes no network requests."""

import base64
import html
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.runtimes.c import directory
from lowenergy.storage.artifact import Model

HERE = Path(__file__).parent
FLAGS = [
    "-target", "wasm32-freestanding", "-mcpu=generic+simd128", "-std=c99", "-ffp-contract=off", "-O3", "-nostdlib",
    "-fno-builtin", "-DMODEL_KEEP=1", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--initial-memory={memory}",
    "-Wl,-z,stack-size=16384",
]  # fmt: skip
PAGE = 65536  # bytes: WebAssembly's memory comes in pages of this size


def export_page(model: Model, header: Mapping[str, Any], out: str | Path, **options: Any) -> int:
    """Write the page atomically and return its size in bytes.

    Args:
        options: ram, unpack, step_size and sampler, as in `directory.export`.
    Raises:
        UserError: ziglang is not installed or cannot compile the model, or the model has no C form or takes images that
            no page shows.
    """
    if find_spec("ziglang") is None:
        raise UserError("--to page needs a compiler for WebAssembly: pip install 'lowenergy[device]'")
    if (channels := model.spec.input_shape[0]) not in (1, 3):
        raise UserError(f"a page shows images of 1 or 3 channels, not of {channels}; export it `--to c`")
    plan, code = directory.code(model, header, **options)
    shown = 4 * (math.prod(model.spec.input_shape) + plan.program.logits.index.numel())  # page.c's image and logits
    compiled = wasm(code.header, code.source, plan.bytes + code.kept + sum(code.constants.values()) + shown)
    text = _filled(model, header, compiled, code.header)
    files.write_bytes(out, text.encode())
    return len(text.encode())


def wasm(header: str, source: str, size: int) -> bytes:
    """Compile the model and page.c to a WebAssembly module.

    Args:
        size: bytes of the arena, the constants, the image and the logits; 256 KiB are added for everything else.
    Raises:
        UserError: it does not compile.
    """
    memory = -(-(size + 4 * PAGE) // PAGE) * PAGE
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.h").write_text(header)
        (folder / "model.c").write_text(source)
        command = [sys.executable, "-m", "ziglang", "cc", *(flag.format(memory=memory) for flag in FLAGS)]
        command += ["-I", place, "-o", str(folder / "model.wasm"), str(folder / "model.c"), str(HERE / "page.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"ziglang cannot compile the model: {done.stderr.strip().splitlines()[0]}")
        return (folder / "model.wasm").read_bytes()


def _filled(model: Model, header: Mapping[str, Any], compiled: bytes, c_header: str) -> str:
    channels, height, width = model.spec.input_shape
    defined = dict(re.findall(r"#define MODEL_(\w+) (\(?[-\w.+]+\)?)", c_header))
    steps = int(defined.get("STEPS", 0)) or 100
    draws = "STEP_SIZE" in defined
    data = header.get("provenance", {}).get("data") or "images"
    kind = {"ebm": "an energy-based model", "jem": "a classifier that is an energy, too"}.get(
        model.target, "a classifier"
    )
    values = {
        "title": html.escape(f"{data}: {kind} in {len(compiled):,} bytes"),
        "about": "All of it runs in this page, as WebAssembly; nothing is asked of the network. "
        + ("One seed draws the same pixels here, on a desktop and on a microcontroller." if draws else ""),
        "width": width, "height": height, "channels": channels, "outputs": model.spec.outputs or 1, "steps": steps,
        "most": 4 * steps, "step_size": defined.get("STEP_SIZE", "0").strip("()f").rstrip("f") or "0",
        "wasm": base64.b64encode(compiled).decode(),
    }  # fmt: skip
    text = (HERE / "page.html").read_text()
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)
