"""Classify, score and sample with onnxruntime and numpy alone.

lowenergy export pretrained/mnist-jem.safetensors --out model.onnx
python onnx_example.py model.onnx --n 16 --steps 200 --out samples.npz
"""

import argparse

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--images", help=".npz with `images`, uint8 (n, c, h, w); default: uniform noise")
parser.add_argument("--n", type=int, default=16)
parser.add_argument("--steps", type=int, default=0, help="Langevin steps")
parser.add_argument("--out", default="samples.npz")
args = parser.parse_args()

session = onnxruntime.InferenceSession(args.model)
outputs, random = [output.name for output in session.get_outputs()], np.random.default_rng(0)
shape = (args.n, *session.get_inputs()[0].shape[1:])
images = random.uniform(-1, 1, shape).astype("float32")
if args.images:
    images = np.load(args.images)["images"].astype("float32") / 127.5 - 1  # the networks see [-1, 1]

for _ in range(args.steps):  # energies and JEMs: walk downhill, with noise
    (images,) = session.run(["next"], {"images": images, "noise": random.standard_normal(images.shape, "float32")})
inputs = {"images": images} if outputs == ["logits"] else {"images": images, "noise": np.zeros_like(images)}
found = dict(zip(outputs, session.run(None, inputs), strict=True))
if "energy" in outputs:
    print("mean energy", found["energy"].mean())
if "logits" in outputs:
    print("classes", *found["logits"].argmax(1))
np.savez_compressed(args.out, images=((images + 1) * 127.5).round().astype("uint8"))
