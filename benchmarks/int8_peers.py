"""int8 of networks from elsewhere beside torchao's own PT2E recipe and NNCF's default post-training quantization.

    .venv/bin/python benchmarks/int8_peers.py WORK [--only resnet18 mobilenet_v2]

WORK is the folder of any_network.py, with its teachers. NNCF is no dependency of the project: `pip install nncf` into
an environment of its own first. Each way quantizes after the same 500 images and is stored as its own tools do, without
tensors that nothing reads; bytes are given after zstd, too, since our own files go through it:

    lowenergy          model file; run from its ONNX file by onnxruntime
    torchao PT2E       X86InductorQuantizer, torch.export.save; compiled by Inductor
    NNCF               nncf.quantize of torch's ONNX export; run by onnxruntime
    float              the teacher's ONNX file in onnxruntime, and the teacher compiled by Inductor
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import zstandard
from torch import Tensor

from lowenergy import data, networks, params
from lowenergy.runtimes import int8, to_onnx
from lowenergy.storage import artifact

CALIBRATION, REPEATS = 500, 30
ZSTD_LEVEL = 19  # that of our files


def median(run: Callable[[], Any]) -> float:
    """Milliseconds."""
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def in_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def pt2e(network: torch.nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = networks.traced(network).module(check_guards=False)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in images.split(100):
            prepared(batch)
    converted = convert_pt2e(prepared)
    drop_unused(converted)
    batch_size = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(converted, (images[:2],), dynamic_shapes=batch_size), path)
    return int8.frozen(converted)


def drop_unused(graph: torch.fx.GraphModule) -> None:
    """Take off what converting has left behind: float weights that nothing reads any more would be saved, too."""
    graph.graph.eliminate_dead_code()
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    graph.recompile()


def compiled(model: artifact.Model) -> Callable[[Tensor], Tensor]:
    return int8.compiled(int8.restore(model))


def nncf(network: torch.nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    import nncf as peer
    import onnx

    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, (images[:2],), path, dynamic_shapes=batch, external_data=False, verbose=False)
    loaded = onnx.load(path)
    name = loaded.graph.input[0].name
    dataset = peer.Dataset([{name: image[None].numpy()} for image in images])
    onnx.save(peer.quantize(loaded, dataset, subset_size=len(images)), path)
    return in_onnxruntime(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=["resnet18", "mobilenet_v2"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in args.only:
        os.chdir(args.work / name)
        p = params.load()
        splits = data.load(data.SPLITS)
        test = data.to_float(splits.test.images)
        every = max(1, len(splits.train) // CALIBRATION)
        images = data.to_float(splits.train.images[::every][:CALIBRATION])
        teacher, header = artifact.read("models/classifier.safetensors", trust=p.trusted)
        ours, own = artifact.read("models/classifier-quantize.safetensors", trust=p.trusted)
        network = teacher.build()
        to_onnx.export(teacher, header, "teacher.onnx")
        to_onnx.export(ours, own, "ours.onnx")
        ways: list[tuple[str, Path, Callable[..., Callable[[Tensor], Tensor]], tuple[Any, ...]]] = [
            ("float, onnxruntime", Path("teacher.onnx"), in_onnxruntime, (Path("teacher.onnx"),)),
            ("float, Inductor", Path("models/classifier.safetensors"), int8.frozen, (network,)),
            ("lowenergy, onnxruntime", Path("ours.onnx"), in_onnxruntime, (Path("ours.onnx"),)),
            ("lowenergy, Inductor", Path("models/classifier-quantize.safetensors"), compiled, (ours,)),
            ("torchao PT2E, Inductor", Path("pt2e.pt2"), pt2e, (network, images, Path("pt2e.pt2"))),
            ("NNCF, onnxruntime", Path("nncf.onnx"), nncf, (network, images, Path("nncf.onnx"))),
        ]
        for way, path, make, arguments in ways:
            started = time.monotonic()
            try:
                run = make(*arguments)
                quantized = time.monotonic() - started
                whole = test[: len(test) // 100 * 100]  # Inductor compiles each batch size anew
                logits = torch.cat([run(batch) for batch in whole.split(100)])
                accuracy = float((logits.argmax(1) == splits.test.labels[: len(whole)]).double().mean())
                one, many = test[:1].contiguous(), test[:64].contiguous()
                milliseconds = [median(partial(run, one)), median(partial(run, many))]
            except Exception as error:
                rows.append({"network": name, "way": way, "error": f"{type(error).__name__}: {error}"[:300]})
                print(rows[-1], flush=True)
                continue
            rows.append(
                {
                    "network": name,
                    "way": way,
                    "accuracy": round(accuracy, 4),
                    "bytes": path.stat().st_size,
                    "zstd_bytes": len(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(path.read_bytes())),
                    "ms_1": round(milliseconds[0], 3),
                    "ms_64": round(milliseconds[1], 2),
                    "seconds_to_make": round(quantized, 1),
                }
            )
            print(rows[-1], flush=True)
    os.chdir(Path(__file__).parents[1])
    record.write("int8_peers", rows, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
