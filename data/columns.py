"""The documents of a table: one column of a Parquet file or of an Arrow file, row by row.

    for row in columns.rows(stream, Form.PARQUET, path, "text"): ...      # needs pyarrow

A column of text is read in any of its types: string, large_string, string_view, a dictionary of
them (a category), and binary, which must then be UTF-8. A row that is null gives None.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.filetype import Form
from data.streams import Stream, is_pipe, name_of
from errors import UserError

BATCH_ROWS = 256


def rows(
    stream: Stream, form: Form, path: Path, field: str, scratch: Path | None = None
) -> Iterator[str | bytes | None]:
    """Yield the column's values. scratch: where a pipe is copied to, for Parquet is read backwards.

    Raises UserError if pyarrow is not installed, the file is damaged, or the column is not text.
    """
    name = name_of(path)
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{name}: reading {form.value} needs pyarrow; run: pip install pyarrow"
        ) from error
    damaged = (pyarrow.ArrowException, OSError, ValueError)
    with _seekable(stream, path, scratch) as file:
        try:
            schema, batches = _opened(form, file, field)
        except damaged as error:
            raise _not(name, form, "", error) from error
        _check(name, form, schema, field)
        row = 0
        while True:
            try:
                group, batch = next(batches, ("", None))
            except damaged as error:
                raise _not(name, form, f" behind row {row}", error) from error
            if batch is None:
                return
            column = batch.column(batch.schema.get_field_index(field))
            for start in range(0, len(column), BATCH_ROWS):
                part = column.slice(start, BATCH_ROWS)
                try:
                    values = part.to_pylist()
                except damaged:
                    values = [_value(name, group, row + n, part[n]) for n in range(len(part))]
                yield from values
                row += len(values)


def _opened(form: Form, file: Any, field: str) -> tuple[Any, Iterator[tuple[str, Any]]]:
    """The schema, and batches of rows with the words for where they are."""
    import pyarrow
    import pyarrow.parquet

    if form is Form.PARQUET:
        table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)

        def groups() -> Iterator[tuple[str, Any]]:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(BATCH_ROWS, [group], columns=[field]):
                    yield f"row group {group + 1}", batch

        return table.schema_arrow, groups()
    if form is Form.ARROW:
        reader = pyarrow.ipc.open_file(file)
        count = reader.num_record_batches
        return reader.schema, ((f"batch {n + 1}", reader.get_batch(n)) for n in range(count))
    reader = pyarrow.ipc.open_stream(file)
    return reader.schema, ((f"batch {n + 1}", batch) for n, batch in enumerate(reader))


def _not(name: str, form: Form, where: str, error: Exception) -> UserError:
    """The message for a file that pyarrow cannot read."""
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return UserError(
        f"{name} is not {form.value}, or damaged{where}: {reason}; mend it or leave it out"
    )


def _value(name: str, group: str, row: int, scalar: Any) -> str | bytes | None:
    try:
        value: str | bytes | None = scalar.as_py()
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{name} row {row + 1} ({group}): its value is not the text that its column says: "
            f"{reason}; mend the row or leave it out"
        ) from error
    return value


def _check(name: str, form: Form, schema: Any, field: str) -> None:
    """Raise UserError unless the table has exactly one such column, and it is text."""
    found = schema.get_all_field_indices(field)
    others = [
        each.name for each in schema
        if each.name != field and _is_text(each.type) and schema.names.count(each.name) == 1
    ]  # fmt: skip
    advice = (
        f"choose one by --field: {', '.join(others)}" if others else "it has no text: leave it out"
    )
    if not found:
        raise UserError(f"{name} has no column {field!r}; {advice}")
    if len(found) > 1:
        raise UserError(f"{name} has {len(found)} columns {field!r}; rename all but one")
    kind = schema.field(found[0]).type
    if not _is_text(kind):
        raise UserError(f"{name}: column {field!r} is {kind}, not text; {advice}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _is_text(kind.value_type)
    if hasattr(kind, "storage_type"):  # an extension, such as JSON
        return _is_text(kind.storage_type)
    is_one = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_null,
        types.is_binary, types.is_large_binary, types.is_binary_view,
    )  # fmt: skip
    return any(check(kind) for check in is_one)


@contextmanager
def _seekable(stream: Stream, path: Path, scratch: Path | None) -> Iterator[Any]:
    """The file itself, or a nameless copy, which is gone with this process."""
    if not is_pipe(path) and not stream.layers:
        yield str(path)
        return
    with tempfile.TemporaryFile(dir=scratch) as copy:
        shutil.copyfileobj(stream.file, copy)
        copy.seek(0)
        yield copy
