"""Keep the cards of a workspace's models as rows of a record, with the params that differ from the shipped ones.

    dvc repro evaluate@ebm-pq && python benchmarks/cards.py mnist_retrain ebm-pq --label "77 k, pq"

A row of the same label is replaced. --workspace names another clone of this repository that the models were made in,
--machine another machine.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from record import RECORDS, machine, write
from ruamel.yaml import YAML

from lowenergy.storage import artifact


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            name: leaf for key, part in value.items() for name, leaf in leaves(part, f"{at}.{key}".lstrip(".")).items()
        }
    return {at: value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record")
    parser.add_argument("model", help="target-branch")
    parser.add_argument("--label", required=True)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--machine", type=Path, help="what record.machine() says where the model was made, as JSON")
    parser.add_argument("--seconds", type=int, help="that making it took")
    args = parser.parse_args()
    target, branch = args.model.split("-")

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=args.workspace, check=True, capture_output=True, text=True).stdout

    yaml = YAML(typ="safe")
    shipped = leaves(yaml.load(git("show", "HEAD:params.yaml")))
    used = leaves(yaml.load(args.workspace / "params.yaml"))
    row = {
        "label": args.label,
        "model": args.model,
        "commit": git("rev-parse", "--short", "HEAD").strip(),
        "sha256": artifact.sha256(args.workspace / f"models/{target}/{branch}.safetensors"),
        "machine": json.loads(args.machine.read_text()) if args.machine else machine(),
        **({"seconds": args.seconds} if args.seconds else {}),
        "params": {name: value for name, value in used.items() if shipped.get(name, "none") != value},
        "card": json.loads((args.workspace / f"metrics/{target}/{branch}.card.json").read_text()),
    }
    path = RECORDS / f"{args.record}.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    write(args.record, [*(old for old in before if old["label"] != args.label), row], seed=used["seed"])
    print(path, len(before), "rows before;", row["card"]["size_bytes"], "bytes")


if __name__ == "__main__":
    main()
