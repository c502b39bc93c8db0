"""What a contender has to offer."""

from cases import Case


class Runner:
    """A training that goes on when it is told to.

    Attributes:
        rows_per_call: The rows that one call presents: a batch, or an epoch.
    """

    rows_per_call: int

    def run(self, calls: int) -> float:
        """Trains, and returns the mean loss per datum when all of it is done."""
        raise NotImplementedError

    def check(self, case: Case, steps: int, made: int) -> float:
        """Returns the mean loss per datum of the last of so many steps.

        Arguments:
            case: The case.
            steps: The steps.
            made: The calls made so far, of which it takes account.
        """
        each = self.rows_per_call // case.batch
        window = max(1, case.window(steps) // each)
        before = steps // each - window - made
        if before > 0:
            self.run(before)
        return self.run(window)

    def notes(self) -> str:
        """Returns what the report should say of how it was computed."""
        return ""
