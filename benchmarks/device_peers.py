"""The digits' int8 classifier as C beside other runtimes, and all exports in OpenVINO: rows of README.md.

    python benchmarks/device_peers.py WORK [--only c c_kept onnxruntime executorch litert openvino]

WORK is a folder in which `dvc repro` ran on params.yaml as it is shipped. The peers are no dependencies of the
project: `pip install executorch`, `litert-torch` or `openvino` into environments of their own, and run this in each,
with --only. A peer quantizes the same teacher after the same images by its own default recipe. A runtime's bytes are
those of the shared libraries that its package has loaded; of C, of the code on a Cortex-M7.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import device
import numpy as np
import targets
import torch
from torch import Tensor

from lowenergy import data, networks
from lowenergy.runtimes import c, to_onnx
from lowenergy.storage import artifact

CALIBRATION = 500
Row = dict[str, Any]
Run = Callable[[np.ndarray], np.ndarray]  # one image (1, c, h, w) to logits


def loaded(package: str) -> int:
    """Bytes of the shared libraries of a package that this process has loaded."""
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if f"/{package}/" in line}
    return sum(Path(path).stat().st_size for path in paths if ".so" in path)


# -- ways: the file's bytes, the runtime's, and what runs it ----------------------------------------------------------


def as_c(ours: artifact.Model, header: Any, out: Path, flags: Sequence[str]) -> tuple[int, int, Run]:
    card = c.export(ours, header, out)
    library = device.Library(out, flags)
    code = targets.code(out, "cortex-m7") - card["constant_bytes"]
    return card["constant_bytes"], code, lambda image: library.logits(image[0])


def in_onnxruntime(ours: artifact.Model, header: Any, place: Path) -> tuple[int, int, Run]:
    path = place / "model.onnx"
    session = device.in_onnxruntime(ours, header, path)
    return path.stat().st_size, loaded("onnxruntime"), lambda image: session.run(None, {"images": image})[0]


def in_executorch(network: torch.nn.Module, images: Tensor, place: Path) -> tuple[int, int, Run]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    exported = torch.export.export(quantized(network, images, quantizer), (images[:1],))
    path = place / "model.pte"
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(path).load_method("forward")
    run: Run = lambda image: method.execute([torch.from_numpy(image)])[0].numpy()  # noqa: E731
    run(images[:1].numpy())
    return path.stat().st_size, loaded("executorch"), run


def in_litert(network: torch.nn.Module, images: Tensor, place: Path) -> tuple[int, int, Run]:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    path = place / "model.tflite"
    litert_torch.convert(network, (images[:1],)).export(str(path))
    (name,) = Interpreter(str(path)).get_signature_list()["serving_default"]["inputs"]
    rounding = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    seen = rounding.calibrate({"serving_default": [{name: image.numpy()} for image in images.split(1)]})
    rounding.quantize(seen).export_model(str(path), overwrite=True)
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (scale_out, zero_out) = given["quantization"], answer["quantization"]

    def run(image: np.ndarray) -> np.ndarray:  # int8 comes in and goes out
        interpreter.set_tensor(given["index"], np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8))
        interpreter.invoke()
        return (interpreter.get_tensor(answer["index"]).astype(np.float32) - zero_out) * scale_out

    return path.stat().st_size, loaded("ai_edge_litert"), run


def quantized(network: torch.nn.Module, images: Tensor, quantizer: Any) -> torch.fx.GraphModule:
    """Static int8 by torchao's flow, with a peer's own quantizer."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(torch.export.export(network, (images[:1],)).module(), quantizer)
    with torch.no_grad():
        for image in images.split(1):
            prepared(image)
    return convert_pt2e(prepared)


def peers(work: Path, place: Path, names: list[str]) -> list[Row]:
    """The same int8 classifier in each runtime: bytes, milliseconds of an image on one core, accuracy."""
    splits = data.load(work / data.SPLITS)
    test, labels = data.to_float(splits.test.images), splits.test.labels.numpy()
    every = max(1, len(splits.train) // CALIBRATION)
    images = data.to_float(splits.train.images[::every][:CALIBRATION])
    network = artifact.read(work / "models/classifier/teacher.safetensors")[0].build()
    assert isinstance(network, torch.nn.Module)
    folded = networks.fold_batchnorm(network).eval()
    ours, header = artifact.read(work / "models/classifier/quantize.safetensors")
    ways: dict[str, Callable[[], tuple[int, int, Run]]] = {
        "c": lambda: as_c(ours, header, place / "c", device.FAST),
        "c_kept": lambda: as_c(ours, header, place / "kept", device.KEPT),
        "onnxruntime": lambda: in_onnxruntime(ours, header, place),
        "executorch": lambda: in_executorch(folded, images, place),
        "litert": lambda: in_litert(folded, images, place),
    }
    rows = []
    for name in names:
        size, runtime, run = ways[name]()
        answers = np.concatenate([run(image.numpy()).reshape(1, -1) for image in test.split(1)])
        accuracy = float((answers.argmax(1) == labels).mean())
        one = test[:1].numpy()
        ms = device.least_ms({"ms": partial(run, one)}, 500)["ms"]
        rows.append(
            {"row": "peer", "way": name, "bytes": size, "runtime_bytes": runtime, "ms": ms, "accuracy": accuracy,
             "images": len(labels)}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


# -- OpenVINO ---------------------------------------------------------------------------------------------------------


def in_openvino(work: Path, place: Path) -> list[Row]:
    """All exports of the pipeline and of pretrained/: the largest differences from onnxruntime, in deviations, and
    those that onnxruntime itself makes of images that are 1e-6 apart."""
    import openvino

    core = openvino.Core()
    rows = []
    paths = [*sorted(work.glob("models/*/*.safetensors")), *sorted(device.PRETRAINED.glob("*.safetensors"))]
    for path in paths:
        if path.stem.endswith("reference"):
            continue
        model, header = artifact.read(path)
        exported = place / "model.onnx"
        session = device.in_onnxruntime(model, header, exported, optimised=False)
        compiled = core.compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        images, noise = to_onnx.looked_at(model.spec.input_shape)
        nudged = images + to_onnx.NEAR * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        given = {"images": images.numpy(), "noise": noise.numpy()}
        given = {put.name: given[put.name] for put in session.get_inputs()}
        names = [put.name for put in session.get_outputs()]
        wanted, near = (
            dict(zip(names, session.run(names, {**given, "images": of.numpy()}), strict=True))
            for of in (images, nudged)
        )
        found = compiled(given)
        worst, ties = (
            {name: float(np.abs(other[name] - of).max() / of.std()) for name, of in wanted.items()}
            for other in (found, near)
        )
        name = f"{path.parent.name}/{path.stem}" if path.is_relative_to(work) else path.stem
        rows.append({"row": "openvino", "model": name, "int8": bool(model.activations), "differences": worst,
                     "of_nudged": ties})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", default=["c", "c_kept", "onnxruntime"])
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        rows = peers(args.work, Path(place), [name for name in args.only if name != "openvino"])
        if "openvino" in args.only:
            rows += in_openvino(args.work, Path(place))
    if not args.no_record:
        device.keep(rows)


if __name__ == "__main__":
    main()
