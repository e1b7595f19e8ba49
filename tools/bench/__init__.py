"""What the program costs, beside a reference in the same run: ``python -m tools.bench``."""
