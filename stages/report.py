"""Gather all figures into one page and one CSV. DVC stage `report`."""

from lowenergy.base import params
from lowenergy.base.stage import run as run_stage
from lowenergy.reporting import page


def main() -> None:
    p = params.load()
    page.write(list(p.targets), p.chain)


if __name__ == "__main__":
    run_stage(main)
