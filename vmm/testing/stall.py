"""The failure of a wait: what a test waited for did not come in time."""


class Stalled(AssertionError):
    """A guest or a VMM stood still; the text has all that was printed until then."""
