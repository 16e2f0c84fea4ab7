"""Gather all figures into one page and one CSV. DVC stage `report`."""

from lowenergy import params, report


def main() -> None:
    p = params.load()
    report.write(list(p.targets), p.chain)


if __name__ == "__main__":
    main()
