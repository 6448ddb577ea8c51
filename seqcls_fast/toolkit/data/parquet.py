"""Parquet files, by pyarrow. Row groups are kept as Arrow tables until rows of them are taken."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from typing import Any

from .._extras import need
from .._terminal import escaped
from .errors import DataError
from .records import Block, Content, Layout, Reader, Record, Table, check_columns

__all__ = ["Parquet"]

# A few bytes of a file can stand for any number of equal values. Data of either size, whichever is larger, are read.
_MOST_UNPACKED = 1 << 30  # bytes
_MOST_TIMES = 1000  # the size of the file


class Parquet(Reader):
    """Rows in row groups, each of which is a block."""

    endings = (".parquet",)
    kinds = ("text", "series")
    place = "row"

    def records(self, file: Any, name: str) -> Iterator[tuple[int, Record]]:
        with _arrow_errors(name):
            opened, size = self._opened(file, name)
            groups = self._groups(opened, name, 0)
            batches = (batch.to_pylist() for batch in _batches(opened, name, size, groups))
            yield from enumerate(chain.from_iterable(batches), 1)

    def blocks(self, file: Any, name: str, number: int) -> Iterator[tuple[Block, Content]]:
        with _arrow_errors(name):
            opened, size = self._opened(file, name)
            groups = self._groups(opened, name, number)
        for block in groups:
            yield block, self._row_group(opened, name, block, size)

    def content(self, file: Any, name: str, block: Block) -> Content:
        with _arrow_errors(name):
            opened, size = self._opened(file, name)
        return self._row_group(opened, name, block, size)

    def _opened(self, file: Any, name: str) -> tuple[Any, int]:
        """The file as pyarrow's ParquetFile, and its size."""
        file = getattr(file, "buffer", file)
        if not file.seekable():
            file = io.BytesIO(file.read())  # the index of a Parquet file is at its end
        size = file.seek(0, io.SEEK_END)
        opened = need("pyarrow.parquet", "Reading Parquet").ParquetFile(file)
        check_columns(name, None, opened.schema_arrow.names, self.layout.wanted)
        return opened, size

    @staticmethod
    def _groups(opened: Any, name: str, number: int) -> list[Block]:
        """The row groups that have rows, as the index at the end of the file says."""
        about = opened.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        if sum(sizes) != about.num_rows or min(sizes, default=0) < 0:
            raise DataError(f"{name}: expected row groups of {about.num_rows} rows in all but got {sum(sizes)}")
        starts = accumulate(sizes, initial=1)
        return [
            Block(number, i, first, rows) for i, (first, rows) in enumerate(zip(starts, sizes, strict=False)) if rows
        ]

    def _row_group(self, opened: Any, name: str, block: Block, size: int) -> Content:
        with _arrow_errors(name):
            wanted = list(dict.fromkeys(self.layout.wanted))
            batches = list(_batches(opened, name, size, [block], use_threads=False, columns=wanted))
            table = need("pyarrow", "Reading Parquet").Table.from_batches(batches).combine_chunks()
        return _RowGroup(table, name, block, self.layout)


class _RowGroup:
    """A row group in memory, as an Arrow table."""

    def __init__(self, table: Any, name: str, block: Block, layout: Layout) -> None:
        self.table, self.name, self.block, self.layout = table, name, block, layout

    def __len__(self) -> int:
        return self.block.rows

    def take(self, rows: Sequence[int]) -> Table:
        wanted = self.layout.wanted
        with _arrow_errors(self.name):
            if isinstance(rows, range):
                table = self.table.slice(rows.start, len(rows))  # a view, where take() copies
            else:
                table = self.table.take(rows)
            columns = {name: _as_list(table.column(name)) for name in wanted}
        numbers = [self.block.line + row for row in rows]
        return self.layout.table([columns[name] for name in wanted], numbers, self.name, Parquet.place)


def _batches(opened: Any, name: str, size: int, groups: Sequence[Block], **options: Any) -> Iterator[Any]:
    """The rows of row groups, 1024 at once. A DataError ends them where they become too many for a file of ``size``
    bytes, or are not as many as the index says."""
    unpacked, most = 0, max(_MOST_UNPACKED, _MOST_TIMES * size)
    for group in groups:
        rows = 0
        for batch in opened.iter_batches(batch_size=1024, row_groups=[group.offset], **options):
            unpacked += batch.nbytes
            if unpacked > most:
                raise DataError(
                    f"{name}: expected at most {most} bytes of values in a file of {size} bytes but got more"
                )
            rows += len(batch)
            yield batch
        if rows != group.rows:
            place = f"{Parquet.place} {group.line}"
            raise DataError(f"{name}, {place}: expected {group.rows} rows from there but got {rows}")


def _as_list(column: Any) -> list[Any]:
    types = need("pyarrow", "Reading Parquet").types
    if types.is_string(column.type) or types.is_large_string(column.type):
        return column.to_numpy().tolist()  # to_pylist() takes eight times as long
    if _is_list(column.type):
        series = [_as_arrays(chunk) for chunk in column.chunks]
        if None not in series:
            return [one for arrays in series if arrays for one in arrays]
    return column.to_pylist()


def _as_arrays(lists: Any) -> list[Any] | None:
    """Lists of numbers, or of steps with equally many numbers each, as arrays; None if the lists hold anything else."""
    types = need("pyarrow", "Reading Parquet").types
    ends = lists.offsets.to_numpy()
    values, shape = lists.flatten(), [-1]
    if _is_list(values.type):
        shape += values.value_lengths().unique().to_pylist()
        if values.null_count or len(shape) > 2 or 0 in shape:
            return None
        values = values.flatten()
    if lists.null_count or not (types.is_floating(values.type) or types.is_integer(values.type)):
        return None
    array = values.to_numpy(zero_copy_only=False).reshape(shape)  # null becomes NaN
    return [array[start:end] for start, end in pairwise((ends - ends[0]).tolist())]


def _is_list(type: Any) -> bool:
    types = need("pyarrow", "Reading Parquet").types
    return bool(types.is_list(type) or types.is_large_list(type))


@contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    """Turns errors of pyarrow, and those of values that Python cannot hold, into a DataError that names the file."""
    arrow = need("pyarrow", "Reading Parquet")
    try:
        yield
    except DataError:
        raise
    except (arrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(f"{name}: expected Parquet but got {escaped(error, 1000)}") from None
