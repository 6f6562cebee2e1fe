"""From rows to knowledge: statistics, tables, the report, charts. Never imports torch."""
