"""What a run writes and how it is read back: schema, storage, live table. Never imports torch."""

import host.interpreter  # noqa: F401  # isort: skip
