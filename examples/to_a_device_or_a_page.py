"""From a model to a microcontroller or a web page.

    python examples/to_a_device_or_a_page.py [MODEL]

The default is the 12 kB model of handwritten digits that the repository ships: it draws, so it can be watched drawing.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import lowenergy

model = Path(sys.argv[1] if len(sys.argv) > 1 else "pretrained/mnist-ebm-12k.safetensors")

lowenergy.export(model, "model-c")  # C99 without libraries, with a main.c that shows how to call it
card = json.loads(Path("model-c/card.json").read_text())
print(f"model-c: {card['constant_bytes']:,} bytes of constants, {card['arena_bytes']:,} of working memory")

lowenergy.export(model, "lean-c", ram=card["arena_bytes"] * 9 // 10)  # less memory: some things are computed again
lean = json.loads(Path("lean-c/card.json").read_text())
more = lean["multiply_accumulates"] / card["multiply_accumulates"] - 1
print(f"lean-c: {lean['arena_bytes']:,} of working memory, {more:.0%} more multiply-accumulates")

lowenergy.export(model, "model.onnx")
print(f"model.onnx: {Path('model.onnx').stat().st_size:,} bytes")
if find_spec("ziglang"):  # pip install 'lowenergy[device]'
    lowenergy.export(model, "model.html")  # one file; open it in a browser
    print(f"model.html: {Path('model.html').stat().st_size:,} bytes")

# Output:
#   model-c: 9,050 bytes of constants, 56,448 of working memory
#   lean-c: 45,696 of working memory, 3% more multiply-accumulates
#   model.onnx: 33,142 bytes
#   model.html: 42,268 bytes
