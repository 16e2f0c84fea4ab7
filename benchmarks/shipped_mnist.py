"""The shipped energies of MNIST through the shipped scorer: FID and Inception Score of samples that anyone can draw.

    python benchmarks/shipped_mnist.py [--images published.npz]

The same figures by hand: `lowenergy sample MODEL --n 5000 --steps 200 --out images.npz`, then
`lowenergy fid images.npz --scorer pretrained/mnist-scorer.safetensors`. What was measured of a file before is kept;
give --again to measure all anew.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from record import rows as recorded
from record import write

from lowenergy.storage import artifact

SHIPPED = Path(__file__).resolve().parents[1] / "pretrained"
SCORER = SHIPPED / "mnist-scorer.safetensors"


def measured(path: Path, samples: int, steps: int, folder: Path) -> dict[str, Any]:
    """By the commands that a user has."""
    images = folder / "images.npz"
    command = [sys.executable, "-m", "lowenergy.cli", "sample", str(path), "--n", str(samples)]
    started = time.monotonic()
    subprocess.run([*command, "--steps", str(steps), "--out", str(images)], check=True)
    seconds = time.monotonic() - started
    return looked_at(images) | {"sampling_seconds": round(seconds)}


def looked_at(images: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "lowenergy.cli", "fid", str(images), "--scorer", str(SCORER)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in (line.split() for line in shown.splitlines()[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="also these, as `lowenergy fid` takes them")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    before = [] if args.again else recorded("shipped_mnist")
    rows: list[dict[str, Any]] = []
    for path in sorted(SHIPPED.glob("mnist-*.safetensors")):
        if "scorer" in path.name or "reference" in path.name or artifact.read(path)[0].spec.head is None:
            continue
        row: dict[str, Any] = {
            "model": path.name,
            "sha256": artifact.sha256(path),
            "bytes": path.stat().st_size,
            "samples": args.samples,
            "steps": args.steps,
        }
        known = next((old for old in before if row.items() <= old.items()), None)
        if known is None:
            with TemporaryDirectory() as folder:
                known = row | measured(path, args.samples, args.steps, Path(folder))
        rows.append(known)
        print(known, flush=True)
    for images in args.images:
        rows.append({"images": images.name, "sha256": artifact.sha256(images), **looked_at(images)})
        print(rows[-1], flush=True)
    write("shipped_mnist", rows, seed=0, scorer=artifact.sha256(SCORER))


if __name__ == "__main__":
    main()
