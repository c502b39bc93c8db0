"""A tracker of runs that keeps what it gets."""

__all__ = ["Recorder"]


class Recorder:
    """Records the calls of all its instances, and raises errors as a store would.

    Arguments:
        fails: The calls that fail, such as ``["log 2", "finish"]``.
    """

    calls: list = []  # noqa: RUF012

    def __init__(self, fails=()):
        self.fails = list(fails)

    def start(self, run):
        self._record("start", run)

    def log(self, values, step):
        self._record(f"log {step}", dict(values))

    def finish(self, metrics, figures):
        self._record("finish", (metrics, figures))

    def abort(self, outcome, reason):
        self._record("abort", (outcome, reason))

    def _record(self, name, value):
        if name in self.fails:
            raise ConnectionError("the store is gone")
        self.calls.append((name, value))
