"""Text and instructions to MindRecord training rows: the two jobs behind `spark13b preprocess`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from spark13b.data.encoding import encode_documents, encode_examples
from spark13b.data.ledger import Ledger
from spark13b.data.manifest import Kind, Manifest, TokenizerEntry
from spark13b.data.overlong import Overlong, fitted
from spark13b.data.packing import Rows, cut, pack
from spark13b.data.records import Record
from spark13b.data.row_writer import COLUMNS, check_output, row_writer
from spark13b.data.sources import Sources
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.progress import SILENT, Progress

DEFAULT_SEQ_LENGTH = 32768
LONGEST_SEQ_LENGTH = 1 << 20  # a row must fit a page of a MindRecord file, 32 MiB

_MakeRows = Callable[[Iterator[Record], Ledger], Iterator[Rows]]


def preprocess_pretrain(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: SparkTokenizer,
    seq_length: int = DEFAULT_SEQ_LENGTH,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Ledger:
    """Write the texts of `inputs`, each with `<end>` behind it, as rows of `seq_length + 1` tokens.

    Columns `input_ids` and `loss_mask` (int32); the mask is 1 but for the padding of the last row. Memory is bounded
    by a block of rows. Raises InputError for what cannot be read or written, before anything is written if it can be
    known, and leaves no part of the output behind.
    """
    row_length = seq_length + 1

    def rows(records: Iterator[Record], ledger: Ledger) -> Iterator[Rows]:
        return cut(encode_documents(records, tokenizer, ledger), row_length, tokenizer.pad_id)

    return _run("pretrain", inputs, output, tokenizer, seq_length, {}, rows, force, progress)


def preprocess_sft(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: SparkTokenizer,
    seq_length: int = DEFAULT_SEQ_LENGTH,
    *,
    overlong: Overlong = "error",
    force: bool = False,
    progress: Progress = SILENT,
) -> Ledger:
    """Write the instruction examples of `inputs`, packed in order, as rows of `seq_length + 1` tokens.

    Columns `input_ids` and `loss_mask` (int32); the mask is 1 on answers and their `<end>`. `overlong` says what
    becomes of an example that is longer than a row (see `overlong.fitted`). Otherwise like `preprocess_pretrain`.
    """
    row_length = seq_length + 1

    def rows(records: Iterator[Record], ledger: Ledger) -> Iterator[Rows]:
        examples = encode_examples(records, tokenizer, ledger)
        return pack(fitted(examples, row_length, overlong, ledger), row_length, tokenizer.pad_id)

    return _run("sft", inputs, output, tokenizer, seq_length, {"overlong": overlong}, rows, force, progress)


def _run(
    kind: Kind,
    inputs: Sequence[Path],
    output: Path,
    tokenizer: SparkTokenizer,
    seq_length: int,
    options: dict[str, str | int | float | bool | None],
    make_rows: _MakeRows,
    force: bool,
    progress: Progress,
) -> Ledger:
    if not 1 <= seq_length <= LONGEST_SEQ_LENGTH:
        raise InputError(
            f"--seq-length must be from 1 to {LONGEST_SEQ_LENGTH:,}, not {seq_length:,}",
            fix="use the sequence length of the preset that will train on the rows",
        )
    sources = Sources(inputs)
    check_output(output, inputs, force=force)
    ledger = Ledger()
    with row_writer(output, force=force) as writer:
        with progress.track(f"preprocess {kind}", total=sources.size, unit="bytes") as meter:
            for rows in make_rows(sources.records(meter), ledger):
                writer.write(rows)
                ledger.rows += len(rows.input_ids)
                ledger.learned_tokens += int(rows.loss_mask.sum())
                meter.show(tokens=f"{ledger.tokens:,}", rows=f"{ledger.rows:,}")
        if not ledger.rows:
            raise InputError(
                f"no row came out: all {ledger.read:,} examples are longer than a row of {seq_length + 1:,} tokens",
                where=inputs[0],
                fix="raise --seq-length, or use --overlong split",
            )
        ledger.close(seq_length + 1)
        writer.finish(
            Manifest(
                kind=kind,
                seq_length=seq_length,
                columns=list(COLUMNS),
                rows=ledger.rows,
                tokenizer=TokenizerEntry(
                    path=str(Path(tokenizer.where).resolve().parent),
                    sha256=tokenizer.fingerprint,
                    vocab_size=tokenizer.vocab_size,
                    end_id=tokenizer.end_id,
                    pad_id=tokenizer.pad_id,
                ),
                options=options,
                inputs=sources.entries,
                ledger=ledger,
            )
        )
    return ledger
