"""Gather all figures for git, and into one page and one CSV. DVC stage `report`, the last one."""

from lowenergy import params
from lowenergy.base import cards
from lowenergy.base.stage import run as run_stage
from lowenergy.reporting import page


def main() -> None:
    p = params.load()
    cards.publish(p.models)
    page.write(p)


if __name__ == "__main__":
    run_stage(main)
