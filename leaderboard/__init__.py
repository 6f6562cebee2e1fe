"""What makes a number a record: `verify` recomputes it from its files. Never imports torch."""

import host.interpreter  # noqa: F401  # isort: skip
