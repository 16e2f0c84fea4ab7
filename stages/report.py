"""Gather all figures into one page and one CSV. DVC stage `report`."""

from lowenergy import params, report


def main() -> None:
    report.write(list(params.load().targets))


if __name__ == "__main__":
    main()
