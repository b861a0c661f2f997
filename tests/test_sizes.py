from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arenite.runtime.errors import ConfigError
from arenite.runtime.sizes import format_size, parse_size

GIB = 1 << 30


@pytest.mark.parametrize(("text", "size"), [
    ("600MiB", 600 << 20), ("2GiB", 2 * GIB), ("1.5 GiB", 3 * GIB // 2), ("80%", int(0.8 * GIB)), ("100 %", GIB),
    ("auto", None), ("AUTO", None), ("1000", 1000), (4096, 4096), ("2G", 2 * GIB), ("2gb", 2_000_000_000), ("7b", 7),
])
def test_sizes_read_as_people_write_them(text: str | int, size: int | None) -> None:
    assert parse_size(text, GIB) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0%", "101%", "2XiB", "1e9", "GiB", "2 GiB more", "nan"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text, GIB)


@given(st.integers(1, 1 << 50))
def test_what_is_written_reads_back_within_its_precision(size: int) -> None:
    again = parse_size(format_size(size), GIB) if size < (1 << 40) else size
    assert again == pytest.approx(size, rel=0.06)
