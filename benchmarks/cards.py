"""Keep the cards of a workspace's models as rows of a record, with the params that differ from the shipped ones.

    dvc repro evaluate@ebm-pq && python benchmarks/cards.py mnist_retrain ebm-pq --label "77 k, pq"

Run it on the machine that made the model. A row of the same label is replaced. --workspace names another clone of this
repository that the models were made in.
"""

import argparse
import json
import subprocess
from pathlib import Path

from record import machine, write
from record import rows as recorded
from ruamel.yaml import YAML

from lowenergy.base.nested import leaves
from lowenergy.storage import artifact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record")
    parser.add_argument("model", help="its name")
    parser.add_argument("--label", required=True)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--seconds", type=int, help="that making it took")
    args = parser.parse_args()

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=args.workspace, check=True, capture_output=True, text=True).stdout

    yaml = YAML(typ="safe")
    shipped = dict(leaves(yaml.load(git("show", "HEAD:params.yaml"))))
    used = dict(leaves(yaml.load(args.workspace / "params.yaml")))
    row = {
        "label": args.label,
        "model": args.model,
        "commit": git("rev-parse", "--short", "HEAD").strip(),
        "sha256": artifact.sha256(args.workspace / f"models/{args.model}.safetensors"),
        "machine": machine(),
        **({"seconds": args.seconds} if args.seconds else {}),
        "params": {name: value for name, value in used.items() if shipped.get(name, "none") != value},
        "card": json.loads((args.workspace / f"cards/{args.model}.json").read_text()),
    }
    others = [old for old in recorded(args.record) if old["label"] != args.label]
    print(write(args.record, [*others, row], seed=used["seed"]), row["card"]["size_bytes"], "bytes")


if __name__ == "__main__":
    main()
