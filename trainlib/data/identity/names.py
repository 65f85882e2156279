"""Names of samples below their folders, kept once and not again for every way to write them in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import overload


class PrefixedNames(Sequence[str]):
    """The names in `names`, each behind the prefix of its part: parts are (prefix, number of names), in their order."""

    def __init__(self, names: Sequence[str], parts: Sequence[tuple[str, int]]):
        assert sum(count for _, count in parts) == len(names)
        self.names, self.parts = names, parts

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._range(range(len(self))[index])
        place = index = range(len(self))[index]
        for prefix, count in self.parts:
            if place < count:
                return prefix + self.names[index]
            place -= count
        raise IndexError(index)

    def _range(self, rows: range) -> list[str]:
        if rows.step != 1:
            return [self[row] for row in rows]
        found, end = list[str](), 0
        for prefix, count in self.parts:
            start, end = end, end + count
            found += map(prefix.__add__, self.names[max(start, rows.start) : max(start, min(end, rows.stop))])
        return found

    def __iter__(self) -> Iterator[str]:
        names = iter(self.names)
        return chain.from_iterable(map(prefix.__add__, islice(names, count)) for prefix, count in self.parts)
