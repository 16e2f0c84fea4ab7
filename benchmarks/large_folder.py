"""Memory of every stage on a folder of images larger than memory holds: peak of what a process keeps for itself.

    .venv/bin/python benchmarks/large_folder.py --work FOLDER [--gigabytes 8] [--cgroup /sys/fs/cgroup/memory/NAME]

The folder is made up: hard links of 200 small pictures, two classes. Images are 128 pixels a side, so 8 GB of decoded
pixels are 163,000 files. Peak memory is that of anonymous pages (RssAnon of /proc/PID/status), every 50 ms: the splits
are mapped from their file, and what is mapped goes back to the system whenever it is needed elsewhere. With --cgroup
the kernel itself holds every stage below that group's limit, mapped pages and all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image
from ruamel.yaml import YAML

from lowenergy.base.nested import with_values

ROOT = Path(__file__).parents[1]
SIDE, PICTURES = 128, 100
CHANGES = {
    "teachers": {target: {"kind": target} for target in ("classifier", "ebm")},
    "branches": {
        f"{target}-{method}": {"target": target, "start": target, "by": method}
        for target in ("classifier", "ebm")
        for method in ("prune", "quantize", "distill", "pq")
    },
    "data.source": "folder",
    "data.folder": "images",
    "data.image_size": SIDE,
    "data.channels": 3,
    "data.validation": 0.45,  # all of the pixels are written and read, fewer are trained on
    "data.test": 0.45,
    **{f"{t}.architecture.{key}": value for t in ("scorer", "classifier", "ebm") for key, value in {
        "name": "strided", "width": 4, "norm": "none", "activation": "relu"}.items()},
    **{f"{t}.train.{key}": value for t in ("scorer", "classifier") for key, value in {
        "epochs": 1, "batch_size": 256, "crop_padding": 0}.items()},
    "energies.train.batch_size": 256,
    "ebm.train.epochs": 1,
    "ebm.train.contrastive_weight": 0.0,
    "ebm.evaluate.samples": 100,
    "ebm.evaluate.chain_steps": 5,
    "energies.train.chain_steps": 2,
    "energies.train.fresh_fraction": 0.5,
    "energies.train.burn_in": 1,
    "energies.train.buffer_size": 256,
    "energies.matching.images": 200,
    "energies.matching.chains": 20,
    "energies.matching.chain_steps": 8,
    "prune.finetune.epochs": 0,
    "prune.retrain.epochs": 0,
    "prune.scan_images": 0,
    "quantize.finetune.epochs": 0,
    "distill.student.name": "strided",
    "distill.student.width": 2,
    "distill.train.epochs": 1,
    "distill.train.batch_size": 256,
    "distill.retrain.epochs": 0,
    "pq.finetune.epochs": 0,
}  # fmt: skip
STAGES = [
    "prepare", "recipes", "scorer", "teacher classifier", "teacher ebm",
    *(f"compress {t}-{method}" for t in ("classifier", "ebm") for method in ("prune", "quantize", "distill", "pq")),
    *(f"evaluate {name}" for name in ("classifier", "classifier-quantize", "ebm", "ebm-quantize")),
]  # fmt: skip


def folder(place: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 180)):
        (place / label).mkdir(parents=True)
        for i in range(PICTURES):
            noise = rng.normal(shade, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).resize((SIDE, SIDE)).save(place / label / f"{i}.jpg")
        for i in range(PICTURES, count // 2):
            os.link(place / label / f"{i % PICTURES}.jpg", place / label / f"{i}.jpg")


def watched(command: list[str], environment: dict[str, str], group: Path | None) -> dict[str, Any]:
    started = time.monotonic()
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, env=environment)
    peak = {"RssAnon": 0, "VmHWM": 0}

    def look() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    code = process.wait()
    watcher.join()
    return {
        "code": code,
        "seconds": round(time.monotonic() - started),
        "anonymous_mib": round(peak["RssAnon"] / 1024),
        "with_mapped_mib": round(peak["VmHWM"] / 1024),
    }


def limit(group: Path | None) -> int | None:
    """Bytes that the kernel lets the group have, page cache included."""
    if group is None:
        return None
    found = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]
    return int(found[0].read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--cgroup", type=Path, help="run stages in this control group, whose memory is limited")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    count = round(args.gigabytes * 1e9 / (3 * SIDE * SIDE))
    folder(args.work / "images", count)
    changes = {**CHANGES, "networks": str(ROOT / "lowenergy/networks/zoo")}
    YAML().dump(with_values(YAML().load(ROOT / "params.yaml"), changes), args.work / "params.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    os.chdir(args.work)
    rows = []
    for stage in STAGES:
        name, *arguments = stage.split()
        rows.append(
            {"stage": stage, **watched([sys.executable, "-m", f"stages.{name}", *arguments], environment, args.cgroup)}
        )
        print(rows[-1], flush=True)
        os.chdir(ROOT)
        record.write("large_folder", rows, files=count, decoded_bytes=count * 3 * SIDE * SIDE, limit=limit(args.cgroup))
        os.chdir(args.work)


if __name__ == "__main__":
    main()
