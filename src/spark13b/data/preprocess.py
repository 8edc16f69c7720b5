"""Text and instructions to MindRecord training rows: the two jobs behind `spark13b preprocess`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spark13b.config.template import PROMPT_TEMPLATE
from spark13b.data.encoding import Kind, Recipe
from spark13b.data.engine import EngineName, encoding
from spark13b.data.fields import Format
from spark13b.data.job_folder import JobFolder, State
from spark13b.data.making import Making
from spark13b.data.manifest import WORK_SUFFIX, Manifest, TokenizerEntry, files_of
from spark13b.data.overlong import Overlong
from spark13b.data.packing import Packing, Shape
from spark13b.data.report import Report, length_ranges, repeated
from spark13b.data.shards import check_output, errors_path, prepare, publish, remove_output
from spark13b.data.sources import Sources
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError
from spark13b.files import disk_error, refuse_folder
from spark13b.progress import SILENT, Progress

DEFAULT_SEQ_LENGTH = 32768
LONGEST_SEQ_LENGTH = 1 << 20  # a row must fit a page of a MindRecord file, 32 MiB
_SMALL = 1 << 23  # bytes of input that are not worth starting processes for
_TOLERANCE = ("on_error", "max_errors")  # may change while a job is half done
_PREPARED, _OUT, _OUT_HELD = "prepared", "out", "out-held"


@dataclass(frozen=True)
class Options:
    """What decides on the rows.

    `form`: how records hold text, None: found out for each. `names`: for a field of ours that of the files.
    `held_out`: the share of the records that goes into rows of its own, by a hash of their text. `documents`: rows tell
    which document each token is of.
    """

    form: Format | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    template: str = PROMPT_TEMPLATE
    packing: Packing = "greedy"
    overlong: Overlong = "error"
    documents: bool = False
    deduplicate: bool = False
    held_out: float = 0.0
    on_error: Literal["fail", "skip"] = "fail"
    max_errors: int = 1000  # bad records that may be skipped
    shard_bytes: int = 256 << 20  # of an output file, about


@dataclass(frozen=True)
class Way:
    """How a job is done, which changes nothing in its rows. `workers` 0: one a core."""

    workers: int = 0
    engine: EngineName = "local"
    ray_address: str | None = None
    resume: bool | None = None  # True: go on or fail; False: begin anew; None: go on when the same job is half done


def preprocess_pretrain(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: SparkTokenizer,
    seq_length: int = DEFAULT_SEQ_LENGTH,
    *,
    options: Options = Options(),
    way: Way = Way(),
    held_out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write the texts of `inputs`, each with `<end>` behind it, as rows of `seq_length + 1` tokens.

    Columns `input_ids` and `loss_mask` (int32); the mask is 1 but for the padding of the last row. Memory is bounded
    by a few blocks of rows. `held_out` is the output of the rows for evaluation. Raises InputError for what cannot be
    read or written, before anything is written if it can be known; the output appears whole or not at all. A job that
    was stopped goes on from its last finished file when it is begun again.
    """
    job = _Job("pretrain", Sources(inputs), tokenizer, seq_length, options, way, _outputs(output, held_out, options))
    return _run(job, force, progress)


def preprocess_sft(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: SparkTokenizer,
    seq_length: int = DEFAULT_SEQ_LENGTH,
    *,
    options: Options = Options(),
    way: Way = Way(),
    held_out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write the instruction examples of `inputs`, packed, as rows of `seq_length + 1` tokens.

    The mask is 1 on every answer and its `<end>`. Otherwise like `preprocess_pretrain`.
    """
    job = _Job("sft", Sources(inputs), tokenizer, seq_length, options, way, _outputs(output, held_out, options))
    return _run(job, force, progress)


def held_out_path(output: Path) -> Path:
    """Where the rows for evaluation go when nothing else is said: `rows.eval.mindrecord`."""
    return output.with_name(f"{output.stem}.eval{output.suffix}")


@dataclass(frozen=True)
class _Job:
    """What one of the two commands was asked for. `outputs`: that of the rows, then that of those held out."""

    kind: Kind
    sources: Sources
    tokenizer: SparkTokenizer
    seq_length: int
    options: Options
    way: Way
    outputs: Sequence[Path]

    @property
    def output(self) -> Path:
        return self.outputs[0]

    @property
    def held_out(self) -> Path | None:
        return self.outputs[1] if len(self.outputs) > 1 else None

    def identity(self) -> dict[str, Any]:
        """What a job must have in common with the one that it goes on with."""
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources.paths]
        values = {"command": self.kind, "tokenizer": self.tokenizer.fingerprint, "--seq-length": self.seq_length}
        named = {
            name: value for name, value in _values(self.options, all_of_them=True).items() if name not in _TOLERANCE
        }
        named |= {"held_out_output": None if self.held_out is None else str(self.held_out.resolve())}
        return (
            values | {name.replace("_", " "): value for name, value in named.items()} | {"list of input files": files}
        )

    def tokenizer_entry(self) -> TokenizerEntry:
        """The tokenizer as a manifest names it."""
        return TokenizerEntry(
            path=str(Path(self.tokenizer.where).resolve().parent),
            sha256=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            end_id=self.tokenizer.end_id,
            pad_id=self.tokenizer.pad_id,
        )


def _outputs(output: Path, held_out: Path | None, options: Options) -> list[Path]:
    """The output of the rows, and that of those held out if any are. Raises InputError for a folder."""
    for path in filter(None, (output, held_out)):  # first of all: '.' has no name that others can be made of
        refuse_folder(path)
    return [output, held_out or held_out_path(output)] if options.held_out else [output]


def _run(job: _Job, force: bool, progress: Progress) -> Report:
    if not 1 <= job.seq_length <= LONGEST_SEQ_LENGTH:
        raise InputError(
            f"--seq-length must be from 1 to {LONGEST_SEQ_LENGTH:,}, not {job.seq_length:,}",
            fix="use the sequence length of the preset that will train on the rows",
        )
    output, held_out = job.output, job.held_out
    if held_out is not None and held_out.resolve() == output.resolve():
        raise InputError("both outputs are one file", where=held_out, fix="give --eval-output another name")
    if not (output.with_name(output.name + WORK_SUFFIX) / _PREPARED).exists():  # else it was killed moving its files
        for path in job.outputs:
            check_output(path, job.sources.paths, force=force)
    repetition = job.sources.repetition()
    if repetition is not None and not job.options.deduplicate:
        progress.note(f"note: {repetition}, and its records are in the rows as often; --deduplicate keeps each once")
    folder = JobFolder(output, job.identity())
    state = folder.open(anew=job.way.resume is False, resume=job.way.resume is True)
    keep = True
    try:
        if state.blocks:
            progress.note(f"going on: {state.ledger.read:,} records are in {len(state.shards)} finished files")
        shape = Shape(job.seq_length + 1, job.tokenizer.pad_id, job.options.documents)
        with closing(Making(folder, state, job.kind, shape, job.options)) as making:
            if not state.finished:
                _make(job, making, state, progress)
            report = _publish(job, making, folder, state)
        keep = False
    except OSError as error:
        raise disk_error(error, output) from error
    finally:
        keep = keep and folder.has_work
        if keep:
            progress.note(f"what is done is kept in {folder.path}; the same command goes on from there")
        folder.close(keep=keep)
    return report


def _make(job: _Job, making: Making, state: State, progress: Progress) -> None:
    """Encode, pack and write everything that is not in finished files yet."""
    sources, options, way = job.sources, job.options, job.way
    sources.entries, sources.ends = list(state.entries), list(state.ends)
    digests = options.deduplicate or bool(options.held_out)
    recipe = Recipe(job.kind, job.tokenizer.model, options.template, options.form, dict(options.names), digests)
    workers = way.workers or (len(os.sched_getaffinity(0)) if sources.size > _SMALL else 1)
    with (
        progress.track(f"preprocess {job.kind}", total=sources.size, unit="bytes") as meter,
        encoding(recipe, workers, way.engine, way.ray_address) as encode,
    ):
        told = 0
        for size in making.take(encode, sources):
            meter.show(tokens=f"{state.ledger.tokens:,}", rows=f"{state.ledger.rows:,}")
            meter.advance(min(size, sources.size - 1) - told)  # the last byte is when all is written
            told = min(size, sources.size - 1)
        making.finish(sources)
        meter.show(tokens=f"{state.ledger.tokens:,}", rows=f"{state.ledger.rows:,}")
        meter.advance(sources.size - told)


def _values(options: Options, all_of_them: bool = False) -> dict[str, Any]:
    """The options as a manifest lists them: those that are not as usual."""
    plain, names = (
        Options(),
        {"form": "format", "names": "map", "held_out": "eval_fraction", "shard_bytes": "shard_size"},
    )
    found = {name: value for name, value in vars(options).items() if all_of_them or value != getattr(plain, name)}
    return {names.get(name, name): dict(value) if name == "names" else value for name, value in found.items()}


def _publish(job: _Job, making: Making, folder: JobFolder, state: State) -> Report:
    """Let the outputs appear."""
    output, held_out = job.output, job.held_out
    report = Report(
        kind=job.kind,
        output=[path.name for path in files_of(output, len(making.shards.rows))],
        ledger=state.ledger,
        formats=dict(state.formats),
        lengths=length_ranges(state.lengths),
        characters_per_token=round(state.ledger.characters / max(1, making.tokens), 4),
        bad_records=errors_path(output).name if state.ledger.bad else None,
        repeated=[] if job.options.deduplicate else repeated(state.entries),
    )
    parts = [(making.shards, output, state.ledger, _OUT)]
    if held_out is not None:
        assert making.held_shards is not None
        report.held_out = [path.name for path in files_of(held_out, len(making.held_shards.rows))]
        report.held_out_ledger = state.held_out
        parts.append((making.held_shards, held_out, state.held_out, _OUT_HELD))
    marker = folder.path / _PREPARED
    if not marker.exists():
        for shards, path, ledger, place in parts:
            manifest = Manifest(
                kind=job.kind,
                seq_length=job.seq_length,
                columns=list(making.columns),
                rows=ledger.rows,
                tokenizer=job.tokenizer_entry(),
                options=_values(job.options),
                inputs=state.entries,
                ledger=ledger,
                shards=shards.rows if len(shards.rows) > 1 else [],
            )
            prepare(shards, path, manifest, report.model_dump_json(indent=2) + "\n", folder.path / place)
        for path in job.outputs:
            remove_output(path)
        marker.touch()
    making.publish_bad(output)
    for _, path, _, place in reversed(parts):
        publish(folder.path / place, path)
    return report
