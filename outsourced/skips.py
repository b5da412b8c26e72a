"""Optimiser steps without an update, since their loss or gradient was not finite."""

import warnings


class Skips:
    """Counts the steps that were skipped.

    Args:
        limit: Of consecutive ones, at which training is stuck.

    Attributes:
        total, in_row: Steps skipped, in all and since the last good one.
        what: Of the last one, which step and why.
    """

    def __init__(self, limit: int):
        self.limit, self.total, self.in_row, self.what = limit, 0, 0, ""

    @property
    def stuck(self) -> bool:
        """Whether so many came in a row that waiting is of no use."""
        return self.in_row >= self.limit

    @property
    def reason(self) -> str:
        """Why it is stuck."""
        return f"{self.in_row} steps in a row gave a non-finite loss or gradient ({self.what})"

    def add(self, what: str) -> None:
        """Count a skipped step; the first of a row is told.

        Args:
            what: Which step, and why.
        """
        self.total, self.in_row, self.what = self.total + 1, self.in_row + 1, what
        if self.in_row == 1:
            warnings.warn(f"skipped an optimiser step ({what})", stacklevel=2)

    def error(self) -> ValueError:
        """What to raise when it is stuck."""
        return ValueError(
            f"{self.reason}; check the reward on samples of the prior, or lower trainer.lr; the "
            "last checkpoint is intact"
        )
