"""Sizes of files as people write them: what every --shard-size takes."""

from __future__ import annotations

import re
from decimal import Decimal

from spark13b.errors import InputError

MIB = 1 << 20
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(i?)B|([KMGT]))?\s*", re.IGNORECASE)


def bytes_of(text: str, number: int = 1, *, least: int = 1) -> int:
    """'4GB', '4G' or '512 MiB' as bytes; a number alone counts units of `number` bytes.

    Raises InputError for what is no size, or less than `least` bytes.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"'{text}' is no size", where="--shard-size", fix="write e.g. 4GB or 512MiB")
    count, prefix, binary, short = found.groups()
    unit = number
    if prefix is not None or short is not None:
        unit = (1024 if binary else 1000) ** " KMGT".index((prefix or short or " ").upper())
    size = int(Decimal(count) * unit)
    if size < least:
        raise InputError(
            f"'{text}' is {size:,} bytes, and a file has at least {least:,}",
            where="--shard-size",
            fix="write e.g. 4GB or 512MiB",
        )
    return size
