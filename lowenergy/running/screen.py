"""What a run shows: how many stages are in each state, and the time and last line of those in work."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

STATES = {
    "waiting": "dim",
    "running": "bold cyan",
    "done": "green",
    "cached": "green",
    "unchanged": "dim green",
    "failed": "bold red",
    "skipped": "yellow",
}
ROWS = 12  # of the table: stages in work, failed or just ended


class Screen:
    """A live table on a terminal; elsewhere, a line whenever a stage starts, prints something or ends."""

    def __init__(self, stages: Iterable[str]) -> None:
        self.state = dict.fromkeys(stages, "waiting")
        self.line: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.started = time.monotonic()
        self.console = Console(markup=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False) if sys.stdout.isatty() else None

    def __enter__(self) -> "Screen":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh()
        if self.live:
            self.live.__exit__(kind, error, trace)
        if error is None or set(self.state.values()) != {"waiting"}:
            print(f"{self.counts()} in {time.monotonic() - self.started:.0f} s", flush=True)

    def set(self, stage: str, state: str) -> None:
        self.state[stage] = state
        now = time.monotonic()
        if state == "running":
            self.since[stage] = now
        elif stage in self.since:
            self.took[stage] = now - self.since[stage]
        if self.live is None and state != "unchanged":
            took = f" in {self.took[stage]:.0f} s" if stage in self.took else ""
            print(f"{state} {stage}{took}", flush=True)
        self.refresh()

    def tell(self, stage: str, line: str) -> None:
        """Take the last line that a running stage has printed."""
        self.line[stage] = line
        if self.live is None and self.state[stage] == "running":
            print(f"  {stage}: {line}" if stage not in line else f"  {line}", flush=True)

    def refresh(self) -> None:
        if self.live:
            self.live.update(self.table(), refresh=True)

    def counts(self) -> str:
        """How many stages are in each state."""
        present = [(state, list(self.state.values()).count(state)) for state in STATES]
        return ", ".join(f"{count} {state}" for state, count in present if count)

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, title=self.counts(), title_justify="left", expand=True)
        for column, width in (("stage", 24), ("state", 10), ("seconds", 8)):
            table.add_column(column, width=width, justify="right" if column == "seconds" else "left")
        table.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)
        moving = [s for s in self.since if self.state[s] in ("running", "failed")]
        ended = sorted((s for s in self.took if s not in moving), key=lambda s: self.since[s] + self.took[s])
        room = max(0, ROWS - len(moving))
        for stage in [*ended[max(0, len(ended) - room) :], *moving]:
            seconds = self.took.get(stage, time.monotonic() - self.since[stage])
            state = self.state[stage]
            line = Text(self.line.get(stage, "") if state in ("running", "failed") else "")
            table.add_row(stage, Text(state, STATES[state]), f"{seconds:.0f}", line)
        return table
