"""Print now and then how far a stage has got, and how much longer it will take."""

import time

EVERY = 5.0  # seconds


class Progress:
    """Count up to `total`, and print a line every few seconds.

    >>> progress = Progress("ebm/evaluate prune: sampling", total=3000)
    >>> progress(500)  # that many are done
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.skipped = name, total, 0, 0
        self.started = self.printed = time.monotonic()

    def skip(self, done: int) -> None:
        """Count this many as done by an earlier run that was killed."""
        self.done += done
        self.skipped += done

    def __call__(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.printed > EVERY:
            left = (now - self.started) / (self.done - self.skipped) * (self.total - self.done)
            print(f"{self.name} {self.done / self.total:.0%}, {left:.0f} s left", flush=True)
            self.printed = now
