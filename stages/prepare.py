"""Read the images of the params' source and split them. DVC stage `prepare`."""

from lowenergy import data, params
from lowenergy.base.stage import run as run_stage


@params.held("seed", "data")
def main() -> None:
    p = params.load()
    splits = data.prepare(p.data, p.seed)
    data.save(splits, data.SPLITS)
    print(*(f"{name} {len(getattr(splits, name))}" for name in ("train", "validation", "test")), "images")


if __name__ == "__main__":
    run_stage(main)
