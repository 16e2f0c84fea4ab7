"""Images a second of training by one process and by two that share each batch, one thread each.

    .venv/bin/python benchmarks/data_parallel.py FOLDER --root data/raw [--steps 8] [--repeats 3]

The MNIST profile's EBM (a step: 128 images, 20 Langevin steps of 128 chains, the flow) and the CIFAR-100 profile's
ResNet-18, both float32. The figure is the median step, the first two steps left out. In turn with these, two processes
that know nothing of each other run at once: what they get done together is the most that this machine can give to two.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from any_network import params
from record import write

from lowenergy import profiles

ROOT = Path(__file__).parents[1]
CASES: dict[str, dict[str, Any]] = {  # profile and target: what differs
    "mnist ebm": {"energies.train.precision": "32-true", "ebm.train.contrastive_from": 0.0},
    "cifar100 classifier": {
        "classifier.train.precision": "32-true",
        "classifier.train.image_scales": [1.0],
    },
}
SCRIPT = """
import json, sys, time
from lowenergy import data, targets, training
from lowenergy import params
from lowenergy.training import loop

target, steps = sys.argv[1], int(sys.argv[2])
p = params.load()
splits = data.prepare(p.data, p.seed).read()
began = []
fit = loop.fit

def timed(network, loss, **settings):
    def watched(network, step):
        began.append(time.monotonic())
        if step == steps:
            if run.team.rank == 0:
                print(json.dumps([b - a for a, b in zip(began, began[1:])]), flush=True)
            training.disband(run)
            raise SystemExit
        return loss(network, step)
    fit(network, watched, **settings)

for place in (f"lowenergy.targets.{target}.training", "lowenergy.training.energies"):
    module = __import__(place, fromlist=["fit"])
    if hasattr(module, "fit"):
        module.fit = timed
with training.running(target, 0, []) as run:
    targets.get(target).train(splits, getattr(p, target), run)
"""


def prepare(place: Path, root: Path, profile: str, changes: dict[str, Any]) -> None:
    """A folder with the profile's params, these changed."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "script.py").write_text(SCRIPT)
    with contextlib.chdir(place):
        profiles.apply(profile, force=True)
        params({"data.root": str(root), "data.limit": 2000} | changes, Path("params.yaml"))


def step_seconds(place: Path, target: str, processes: int, steps: int) -> list[float]:
    here = os.environ | {
        "LOWENERGY_PROCESSES": str(processes),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "script.py", target, str(steps)]
    done = subprocess.run(command, cwd=place, env=here, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("[")), None)
    if line is None:
        raise SystemExit(done.stdout + done.stderr)
    found: list[float] = json.loads(line)
    return found[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for case, changes in CASES.items():
        place = args.folder / case.replace(" ", "-")
        prepare(place, args.root.resolve(), case.split()[0], changes)
        target = case.split()[1]
        seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
        for _ in range(args.repeats):
            seconds["one"] += step_seconds(place, target, 1, args.steps)
            seconds["two"] += step_seconds(place, target, 2, args.steps)
            with ThreadPoolExecutor(2) as both:
                for found in both.map(lambda _: step_seconds(place, target, 1, args.steps), range(2)):  # noqa: B023
                    seconds["apart"] += found
        one, two, apart = (128 / statistics.median(found) for found in seconds.values())
        rows.append(
            {
                "case": case,
                "images_per_s_one": round(one, 2),
                "images_per_s_two": round(two, 2),
                "images_per_s_of_two_apart": round(2 * apart, 2),
                "ratio": round(two / one, 3),
                "ratio_apart": round(2 * apart / one, 3),
                "steps": len(seconds["one"]),
            }
        )
        print(rows[-1], flush=True)
    write("data_parallel", rows, seed=0, batch_size=128, changes=CASES)


if __name__ == "__main__":
    main()
