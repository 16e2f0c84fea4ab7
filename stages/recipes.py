"""Write what each stage needs to know about each teacher. DVC stage `recipes`."""

from lowenergy import params
from lowenergy.base.stage import run as run_stage
from lowenergy.params import recipes


def main() -> None:
    recipes.write(params.load())


if __name__ == "__main__":
    run_stage(main)
