"""From rows to knowledge: statistics, tables, the report, charts. Never imports torch."""

import host.interpreter  # noqa: F401  # isort: skip
