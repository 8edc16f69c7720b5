"""Our MindRecord files beside those of MindSpore's own writer, byte by byte, and as MindSpore reads them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from mindspore.dataset import MindDataset
from mindspore.mindrecord import FileWriter

from spark13b.data import mindrecord_writer
from spark13b.data.mindrecord_writer import MindRecordWriter


def both(tmp_path: Path, blocks: list[dict[str, np.ndarray]], page: int = 1 << 25) -> tuple[Path, Path]:
    """The same rows by our writer and by theirs."""
    names = list(blocks[0])
    ours, theirs = tmp_path / "ours" / "rows", tmp_path / "theirs" / "rows"
    for path in (ours, theirs):
        path.parent.mkdir()
    writer = MindRecordWriter(ours, names)
    file_writer = FileWriter(str(theirs), 1)
    file_writer.set_page_size(page)
    file_writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in names})
    for block in blocks:
        writer.write(block)
        rows = zip(*block.values(), strict=True)
        file_writer.write_raw_data([dict(zip(names, row, strict=True)) for row in rows])
    writer.commit()
    file_writer.commit()
    return ours, theirs


def index(path: Path) -> list[list[tuple]]:
    database = sqlite3.connect(f"{path}.db")
    queries = ("select * from INDEXES order by ROW_ID", "select * from SHARD_NAME", "select sql from sqlite_master")
    return [database.execute(query).fetchall() for query in queries]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 33])
@pytest.mark.parametrize("columns", [("input_ids", "loss_mask"), ("input_ids", "loss_mask", "document_ids")])
def test_the_bytes_are_those_of_mindspores_writer(tmp_path, length, columns):
    random = np.random.default_rng(length)
    edges = np.array([-(2**31), -32769, -32768, -129, -128, -1, 0, 1, 127, 128, 32767, 32768, 65535, 2**31 - 1])
    blocks = []
    for count in (1, 7):
        ids = random.choice(edges, (count, length)).astype(np.int32)
        others = [random.integers(0, 2, (count, length)).astype(np.int32) for _ in columns[1:]]
        blocks.append(dict(zip(columns, [ids, *others], strict=True)))
    ours, theirs = both(tmp_path, blocks)
    assert ours.read_bytes() == theirs.read_bytes()
    assert index(ours) == index(theirs)


def test_rows_of_many_pages_are_laid_out_as_mindspore_does(tmp_path, monkeypatch):
    page = 1 << 16
    monkeypatch.setattr(mindrecord_writer, "PAGE_BYTES", page)
    ids = np.random.default_rng(0).integers(0, 60_000, (160, 1001)).astype(np.int32)
    blocks = [{"input_ids": part, "loss_mask": part % 2} for part in (ids[:9], ids[9:])]
    ours, theirs = both(tmp_path, blocks, page)
    assert ours.stat().st_size > mindrecord_writer.HEADER_BYTES + 10 * page
    assert ours.read_bytes() == theirs.read_bytes()
    assert index(ours) == index(theirs)


def test_more_rows_than_one_raw_page_describes_are_read_by_mindspore(tmp_path, monkeypatch):
    monkeypatch.setattr(mindrecord_writer, "PAGE_BYTES", 1 << 14)  # 1260 rows
    ids = np.arange(3000 * 4, dtype=np.int32).reshape(3000, 4)
    path = tmp_path / "rows"
    writer = MindRecordWriter(path, ("input_ids", "loss_mask"))
    writer.write({"input_ids": ids, "loss_mask": ids % 2})
    writer.commit()
    rows = MindDataset(str(path), shuffle=False, num_parallel_workers=2)
    read = [(row["input_ids"], row["loss_mask"]) for row in rows.create_dict_iterator(num_epochs=1, output_numpy=True)]
    np.testing.assert_array_equal(np.stack([one for one, _ in read]), ids)
    np.testing.assert_array_equal(np.stack([one for _, one in read]), ids % 2)
