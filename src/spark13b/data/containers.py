"""How a file holds its records, and its bytes as they were before compression."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from spark13b.data.manifest import is_ours
from spark13b.data.place import Place
from spark13b.errors import InputError

Container = Literal["json", "jsonl", "text", "csv", "parquet"]
OnBytes = Callable[[bytes | memoryview], None]

_JSON_LINES, _TEXT = {".jsonl", ".ndjson"}, {".txt", ".md"}
_DATA = {".json", *_JSON_LINES, *_TEXT, ".csv", ".tsv", ".parquet"}  # what is taken of a folder
_PACKED = {".gz", ".zst"}
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_BUFFER = 1 << 20  # bytes
_HEAD = 4096  # bytes


def container_of(path: Path) -> Container:
    """How a file holds its records: by its suffix or its first bytes. Raises InputError when it cannot be read."""
    suffix = suffix_of(path)
    head = _head(path)
    if head.startswith(_PARQUET):
        return "parquet"
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in _TEXT:
        return "text"
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{") or suffix in _JSON_LINES:
        return "jsonl"
    if not head:
        raise _empty(path)
    if suffix == ".json":
        raise Place(path, 1).error(
            "this is not JSON: it begins with neither [ nor {",
            "give a JSON array of records, JSON Lines, or plain text named .txt",
        )
    if suffix == ".parquet":
        raise InputError("this is not a Parquet file", where=path, fix="copy it again")
    return "text"


def suffix_of(path: Path) -> str:
    """The suffix that tells the container: that before `.gz` or `.zst`."""
    name = Path(path.stem) if path.suffix.lower() in _PACKED else path
    return name.suffix.lower()


def expanded(inputs: Iterable[Path]) -> list[Path]:
    """The files behind paths: of a folder all data files in it, sorted; of a pattern (`*`, `?`, `[`) those it matches.

    Neither takes what `preprocess` wrote there itself.
    Raises InputError for a folder or a pattern with nothing in it.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file() and suffix_of(one) in _DATA)
            files = [one for one in files if not any(part.startswith(".") for part in one.relative_to(path).parts)]
            files = [one for one in files if not is_ours(one)]
            if not files:
                raise InputError(
                    "the folder holds no data file",
                    where=path,
                    fix=f"files end in {', '.join(sorted(_DATA))}, and .gz or .zst behind that",
                )
            found += files
        elif not path.exists() and any(mark in str(path) for mark in "*?["):
            files = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path)))
            files = [one for one in files if one.is_file() and not is_ours(one)]
            if not files:
                raise InputError("no file matches this pattern", where=path, fix="check --input")
            found += files
        else:
            found.append(path)
    return found


def open_bytes(path: Path, on_bytes: OnBytes | None = None) -> BinaryIO:
    """The bytes of a file without its compression; `on_bytes` is handed those of the file itself as they are read.

    Reading raises InputError when compressed bytes are damaged or cut off.
    """
    raw = _Watched(path, on_bytes)
    with path.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_GZIP):
        return io.BufferedReader(_Unpacked(_gunzipped(raw, path)), _BUFFER)
    if start == _ZSTD:
        return io.BufferedReader(_Unpacked(_unzstd(raw, path)), _BUFFER)
    return io.BufferedReader(raw, _BUFFER)


class _Watched(io.RawIOBase):
    """A file whose bytes are shown to `on_bytes` as they are read."""

    def __init__(self, path: Path, on_bytes: OnBytes | None) -> None:
        self._stream = path.open("rb", buffering=0)
        self._on_bytes = on_bytes or (lambda data: None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer
        count = self._stream.readinto(buffer) or 0
        self._on_bytes(buffer[:count])
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """A stream of the chunks that a decompressor gives."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._held = memoryview(chunk)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count


def _gunzipped(raw: _Watched, path: Path) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BufferedReader(raw, _BUFFER)) as unpacked:
        while True:
            try:
                chunk = unpacked.read1(_BUFFER)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _damaged(path, error) from None
            if not chunk:
                return
            yield chunk


def _unzstd(raw: _Watched, path: Path) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    while True:
        data = raw.read(_BUFFER // 8)
        if not data:
            if begun:
                raise _damaged(path, EOFError("the last frame has no end"))
            return
        while data:
            begun = True
            try:
                chunk = unpacker.decompress(data)
            except zstandard.ZstdError as error:
                raise _damaged(path, error) from None
            if chunk:
                yield chunk
            data = b""
            if unpacker.eof:  # another frame may follow
                data, begun = unpacker.unused_data, False
                unpacker = zstandard.ZstdDecompressor().decompressobj()


def _damaged(path: Path, error: Exception) -> InputError:
    what = "cut off" if isinstance(error, EOFError) else "damaged"
    return InputError(f"the compressed file is {what}: {error}", where=path, fix="copy the file again")


def _head(path: Path) -> bytes:
    """The first bytes of a file, once it is certain that it can be read."""
    if path.is_dir():
        raise InputError("this is a folder", where=path, fix="give a file")
    if not path.exists():
        fix = "write what comes by the pipe to a file first" if str(path) == "-" else "check its name"
        raise InputError("there is no such file", where=path, fix=fix)
    if not path.is_file():
        raise InputError("this is not a regular file", where=path, fix="write it to a file first")
    try:
        with open_bytes(path) as stream:
            head = stream.read(_HEAD)
    except PermissionError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=path, fix="check its mode") from None
    if not head:
        raise _empty(path)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Place(path, 1).error("the file is UTF-16", f"convert it: iconv -f utf-16 -t utf-8 '{path}' > NEW")
    return head


def _empty(path: Path) -> InputError:
    return InputError("the file is empty", where=path, fix="give a file with at least one record")
