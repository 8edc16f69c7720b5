"""What the commands that answer share: the plan of a model, and the model, loaded once it is certain that it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark13b.cli import console, sharing
from spark13b.cli.app import debug_wanted
from spark13b.errors import InputError

if TYPE_CHECKING:
    from spark13b.config import Preset
    from spark13b.infer.session import FoundModel, Session
    from spark13b.progress import Progress
    from spark13b.train.answering_files import AnsweringFiles

SEATS = 8  # answers at once, unless the user says otherwise


def planned_model(
    name: str | None,
    load: Path | None,
    adapter: Path | None,
    fold: bool,
    options: Mapping[str, Any],
    assignments: Sequence[str],
    nproc: int | None,
) -> tuple[Preset, AnsweringFiles]:
    """The preset to plan answers with, and what its files tell: those of the model that would answer, or of a preset
    alone none.

    `nproc` processes share the model. Raises InputError when there is no model, or a value breaks a rule.
    """
    from spark13b.config import load_preset
    from spark13b.run_folder import preset_for
    from spark13b.train.answering_files import answering_files

    layout = sharing.options_for(nproc if name or nproc else 1)  # a run's layout is that of its training
    if name is None and load is None:
        from spark13b.infer.session import demo_model

        try:
            load = demo_model()
        except InputError as error:
            fix = f"{error.fix}; --preset NAME plans without a model"
            raise InputError(error.what, where=error.where, fix=fix) from None
        tell_of_demo(load, console.TerminalProgress())
    if load is not None:
        name, _ = preset_for(name, load, adapter)
    assert name is not None
    preset = load_preset(name, options={**options, **layout}, assignments=assignments)
    return preset, answering_files(load, adapter, preset.model, fold)


def seats_for(wanted: int | None, most: int, preset: Preset, context: int | None, files: AnsweringFiles) -> int:
    """Answers at once: those wanted, else as many as fit, at most `most`; all beams of one need a seat."""
    from spark13b.train.plan import seats_that_fit

    return max(wanted or seats_that_fit(preset, most, context, files), preset.generation.num_beams)


def tell_of_demo(model: Path, progress: Progress) -> None:
    """Say that nobody chose the model."""
    progress.note(f"no --load given: the model of 'spark13b demo' answers ({model})")


def open_session(
    found: FoundModel,
    part: sharing.Part,
    seats: int | None = None,
    most: int = SEATS,
    context: int | None = None,
    fold: bool = False,
    reuse: bool = False,
) -> Session:
    """Load the model, and tell what is in doubt. `seats`: those wanted, else at most `most`, see `seats_for`.

    `fold`: adapters are added to the weights. Raises InputError before weights are read when the memory does not hold
    them and the seats.
    """
    from spark13b.infer.session import Session
    from spark13b.train.answering_files import files_of
    from spark13b.train.plan import check_answering

    with found.weights.open(found.preset.model) as opened:
        files = files_of(opened, found.preset.model, fold)
        seats = seats_for(seats, most, found.preset, context, files)
        check_answering(found.preset, seats, context, files)
        session = Session(found, seats, context, part.mesh, fold, reuse, opened)
    if session.doubt:
        part.progress.note(f"note: {session.doubt}")
    if debug_wanted():
        part.progress.note(session.choices())
    part.lead(session)
    return session
