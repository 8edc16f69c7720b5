"""Reading rows: exact order, the original's files, and files that are not what they should be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter

from spark13b.data import mindrecord
from spark13b.data.mindrecord import RowInfo, open_rows, read_manifest, row_info
from spark13b.errors import InputError, JobError

ROWS = 1000


def write(path: Path, columns: dict[str, list[np.ndarray]], kind: str = "int32") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = FileWriter(str(path), 1)
    writer.add_schema({name: {"type": kind, "shape": [-1]} for name in columns})
    rows = zip(*columns.values(), strict=True)
    writer.write_raw_data([dict(zip(columns, (array.astype(kind) for array in row), strict=True)) for row in rows])
    writer.commit()
    return path


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """Rows that begin with their number."""
    ids = [np.array([number, 7, 8, 9]) for number in range(ROWS)]
    masks = [np.array([0, 1, number % 2, 1]) for number in range(ROWS)]
    return write(tmp_path_factory.mktemp("numbered") / "rows.mindrecord", {"input_ids": ids, "loss_mask": masks})


def numbers(batches) -> list[int]:
    return [int(number) for ids, _ in batches for number in ids[:, 0]]


@pytest.fixture
def copy(numbered, tmp_path) -> Path:
    for path in (numbered, Path(f"{numbered}.db")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / numbered.name


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        row_info(path)
    with pytest.raises(InputError) as at_once:
        open_rows(path, 2)
    assert at_once.value.message() == caught.value.message()
    assert "\n" not in caught.value.what
    assert caught.value.fix
    return caught.value


def test_batches_have_shapes_types_and_the_rows_masks(numbered):
    batches = list(open_rows(numbered, 300))
    assert [ids.shape for ids, _ in batches] == [mask.shape for _, mask in batches] == [(300, 4)] * 3 + [(100, 4)]
    assert all(ids.dtype == np.int32 and mask.dtype == np.float32 for ids, mask in batches)
    assert numbers(batches) == list(range(ROWS))
    assert batches[0][1][:3].tolist() == [[0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_is_exact_with_any_number_of_workers(numbered, monkeypatch, workers):
    monkeypatch.setattr(mindrecord.os, "cpu_count", lambda: workers)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(ROWS)
        assert numbers(open_rows(numbered, 7, order=order)) == order.tolist()


def test_the_rest_of_an_order_is_the_rest_of_the_rows(numbered):
    order = np.random.default_rng(5).permutation(ROWS).tolist()
    stopped = open_rows(numbered, 8, order=order)
    begun = numbers(next(stopped) for _ in range(10))
    stopped.close()
    assert begun + numbers(open_rows(numbered, 8, order=order[80:])) == order


def test_an_order_may_be_empty_repeat_rows_and_be_longer_than_the_file(numbered):
    assert list(open_rows(numbered, 4, order=[])) == []
    assert numbers(open_rows(numbered, 4, order=[5, 5, 3, 5, 999, 0])) == [5, 5, 3, 5, 999, 0]
    epochs = [number for seed in range(3) for number in np.random.default_rng(seed).permutation(ROWS).tolist()]
    assert numbers(open_rows(numbered, 64, order=epochs)) == epochs


@pytest.mark.parametrize("order", [[ROWS], [-1], [0, 1, 5000]])
def test_a_row_that_is_not_there_is_refused(numbered, order):
    with pytest.raises(ValueError, match="the file has 0 to 999"):
        open_rows(numbered, 4, order=order)


def test_closing_the_iterator_frees_its_threads(numbered):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    list(open_rows(numbered, 4, order=[1]))
    before = threads()
    for _ in range(5):
        batches = open_rows(numbered, 4)
        next(batches)
        batches.close()
    deadline = time.monotonic() + 100
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads() <= before


def test_many_rows_start_at_once_and_cost_the_same_late_as_early(tmp_path):
    many = 30_000
    path = write(tmp_path / "many.mindrecord", {"input_ids": [np.array([number, 1]) for number in range(many)]})
    order = np.random.default_rng(0).permutation(many).tolist()
    start = time.process_time()
    batches = open_rows(path, 30, order=order)
    found = numbers([next(batches)])
    first = time.process_time() - start
    times = []
    for _ in range(9):
        start = time.process_time()
        found += numbers(next(batches) for _ in range(100))
        times.append(time.process_time() - start)
    assert min(times[-3:]) < 5 * min(times[:3])
    assert first < sum(times)  # it takes an eighth of the time of a hundred batches
    found += numbers(batches)
    assert found == order


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_the_originals_files_are_read(tmp_path, kind):
    original = np.load(Path(__file__).parents[1] / "golden" / "preprocess" / "original_rows.npz")
    ids, masks = original["sft_seq1024/input_ids"], original["sft_seq1024/loss_mask"]
    sft = write(tmp_path / "sft.mindrecord", {"input_ids": list(ids), "loss_mask": list(masks)}, kind)
    assert row_info(sft) == RowInfo(42, 1025, ("input_ids", "loss_mask"))
    assert read_manifest(sft) is None
    ((found, mask),) = open_rows(sft, 50)
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(mask, masks)
    ids = original["pretrain_seq256/input_ids"]
    pretrain = write(tmp_path / "pretrain.mindrecord", {"input_ids": list(ids)}, kind)
    assert row_info(pretrain) == RowInfo(102, 257, ("input_ids",))
    ((found, mask),) = open_rows(pretrain, 200)
    np.testing.assert_array_equal(found, ids)
    assert (found.dtype, mask.dtype, mask.min()) == (np.int32, np.float32, 1)


def test_what_is_not_there_is_refused(tmp_path, copy):
    assert "no such file" in refused(tmp_path / "none.mindrecord").what
    assert "folder" in refused(tmp_path).what
    Path(f"{copy}.db").unlink()
    error = refused(copy)
    assert "index" in error.what
    assert error.where == f"{copy}.db"


@pytest.mark.parametrize("folder", [".", "/", "..", ""])
def test_a_folder_is_refused_whatever_its_name(folder):
    assert refused(Path(folder)).what == "this is a folder, not a MindRecord file"


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"\x05\0\0\0\0\0\0\0{}   ", b"\xff" * 100, b"PK\x03\x04"])
def test_a_file_that_is_no_mindrecord_is_refused(copy, content):
    copy.write_bytes(content)
    assert refused(copy).what == "this is not a MindRecord file"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off_is_refused_with_its_sizes(copy, kept):
    content = copy.read_bytes()
    copy.write_bytes(content[: int(len(content) * kept)])
    error = refused(copy)
    assert f"it has {int(len(content) * kept):,} of {len(content):,} bytes" in error.what


def test_a_renamed_file_is_refused_with_its_name(copy):
    Path(f"{copy}.db").rename(copy.with_name("new.mindrecord.db"))
    error = refused(copy.rename(copy.with_name("new.mindrecord")))
    assert "it was written as rows.mindrecord" in error.what
    assert "back to rows.mindrecord" in error.fix


def test_a_link_of_another_name_is_followed(copy, tmp_path):
    link = tmp_path / "elsewhere" / "link.mindrecord"
    link.parent.mkdir()
    link.symlink_to(copy)
    assert numbers(open_rows(link, 2, order=[4, 2])) == [4, 2]


@pytest.mark.parametrize("content", [b"", b"x" * 9999])
def test_a_broken_index_is_refused(copy, content):
    Path(f"{copy}.db").write_bytes(content)
    assert "MindSpore cannot read this file" in refused(copy).what


def test_other_columns_are_refused_and_named(tmp_path):
    row = [np.arange(4)]
    labels = write(tmp_path / "a.mindrecord", {"input_ids": row, "labels": row})
    assert "input_ids, labels" in refused(labels).what
    assert "they are text" in refused(write(tmp_path / "b.mindrecord", {"text": row})).what
    assert "it is float32" in refused(write(tmp_path / "c.mindrecord", {"input_ids": row}, "float32")).what


def test_ragged_rows_are_refused_with_the_first_of_them(tmp_path):
    ragged = [np.arange(4), np.arange(6), np.arange(4)]
    path = write(tmp_path / "middle.mindrecord", {"input_ids": ragged, "loss_mask": ragged})
    assert row_info(path).row_length == 4
    with pytest.raises(InputError, match="row 1 has length 6"):
        list(open_rows(path, 2))
    assert (
        "row 2 has length 6"
        in refused(write(tmp_path / "last.mindrecord", {"input_ids": [*ragged[::2], ragged[1]]})).what
    )
    uneven = write(tmp_path / "uneven.mindrecord", {"input_ids": [np.arange(4)], "loss_mask": [np.arange(3)]})
    assert "3 (loss_mask)" in refused(uneven).what


def test_a_row_that_cannot_be_read_later_is_a_failed_job(copy):
    batches = open_rows(copy, 1, order=list(range(ROWS)) * 3)
    next(batches)
    copy.unlink()
    with pytest.raises(JobError, match="a row cannot be read") as caught:
        list(batches)
    assert "\n" not in caught.value.what


def test_a_manifest_that_is_none_is_refused_with_the_key(copy):
    sidecar = Path(f"{copy}.json")
    assert read_manifest(copy) is None
    for content, words in [("{", "EOF"), ("{}", "kind: Field required"), ('{"format_version": 2}', "format_version")]:
        sidecar.write_text(content)
        with pytest.raises(InputError, match="no manifest of version 1") as caught:
            read_manifest(copy)
        assert words in caught.value.what
        assert caught.value.where == str(sidecar)


def test_a_misspelt_key_of_a_manifest_is_named_with_the_right_one(tmp_path):
    whole = {
        "kind": "sft",
        "seq_lenght": 3,
        "seq_length": 3,
        "columns": ["input_ids", "loss_mask"],
        "rows": 1,
        "tokenizer": {"path": "/t", "sha256": "", "vocab_size": 9, "end_id": 5, "pad_id": 0},
        "options": {},
        "inputs": [],
        "ledger": {"read": 1},
    }
    (tmp_path / "rows.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="no key 'seq_lenght', did you mean 'seq_length'"):
        read_manifest(tmp_path / "rows")
    del whole["seq_lenght"]
    (tmp_path / "rows.json").write_text(json.dumps({**whole, "ledger": {"raed": 1}}))
    with pytest.raises(InputError, match=r"no key 'ledger\.raed'"):
        read_manifest(tmp_path / "rows")
    (tmp_path / "rows.json").write_text(json.dumps(whole))
    manifest = read_manifest(tmp_path / "rows")
    assert manifest is not None
    assert manifest.ledger.read == 1
