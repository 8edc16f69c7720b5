"""The `spark13b` group: a table of commands whose modules are imported only when they run."""

from __future__ import annotations

import importlib
import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spark13b import __version__

# name: (module with an `app`, panel of the help page, one-line summary). The order is that of the help page.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "Start here", "Train a small model from nothing and let it answer, on this machine."),
    "preset": ("preset", "Start here", "List, show, check, compare and import presets."),
    "tokenizer": ("tokenizer", "Data", "Train or check a SentencePiece tokenizer."),
    "preprocess": ("preprocess", "Data", "Turn text or instructions into MindRecord training rows."),
    "persona": ("persona", "Data", "Give a model its own name and character, and judge whether it keeps them."),
    "convert": ("convert", "Model", "Convert weights between torch and MindSpore, and between number formats."),
    "ckpt": ("ckpt", "Model", "Convert, inspect, verify, compare, split and merge checkpoints."),
    "train": ("train", "Model", "Pretrain or fine-tune from a preset."),
    "lora": ("lora", "Model", "Train LoRA adapters beside a model that stays as it is."),
    "eval": ("eval", "Model", "Measure loss, perplexity and accuracy of a model on rows."),
    "infer": ("infer", "Model", "Answer prompts with a trained model."),
    "chat": ("chat", "Model", "Talk with a model in the terminal."),
    "serve": ("serve", "Model", "Serve a model over HTTP as OpenAI's API does, with a chat page."),
    "export": ("export", "Model", "Write a model as MindIR graphs, or as safetensors for other tools."),
    "rank-table": ("rank_table", "Machines", "Make, merge, check and show rank tables of Ascend machines."),
    "native": ("native", "Machines", "Build the library that makes answers on a CPU fast."),
    "doctor": ("doctor", "Machines", "Say what this machine has and lacks, and what to do about it."),
}

# what other tools, or a guess, call a command of ours
_ELSEWHERE = {
    **dict.fromkeys(("generate", "run", "ask", "predict", "batch"), "infer"),
    **dict.fromkeys(("api", "api-server", "server", "webui", "web", "webchat"), "serve"),
    **dict.fromkeys(("finetune", "fine-tune", "sft", "pretrain"), "train"),
    **dict.fromkeys(("evaluate", "perplexity"), "eval"),
    **{name: f"ckpt {name}" for name in ("quantize", "merge", "merge-lora", "extract-lora", "split", "info", "diff")},
    "help": "--help",
    "version": "--version",
}

_EPILOG = (
    'Example: spark13b demo, then spark13b infer "你是谁？"\n\nPresets: spark13b preset list. '
    "A command's options: spark13b COMMAND --help."
)


class SparingFlags:
    """A flag that was not given is False, not None: typer loads pydantic (0.1 s) to turn None into None."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the class that this is mixed into
        for param in params:
            if param.type_descriptor.annotation is bool and param.default is None:
                param.default = False
        return params


class LazyGroup(SparingFlags, TyperGroup):
    """Imports a command's module when it is asked for by name; the help page is drawn from the table alone."""

    _drawing_help = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module_name, panel, summary = COMMANDS[cmd_name]
            if self._drawing_help:
                return TyperCommand(cmd_name, help=summary, rich_help_panel=panel)
            module = importlib.import_module(f"spark13b.cli.{module_name}")
            command = typer.main.get_command(module.app)
            command.name = cmd_name
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._drawing_help = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._drawing_help = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from spark13b.errors import InputError, nearest

            near = _ELSEWHERE.get(args[0]) or nearest(args[0], COMMANDS)
            fix = f"did you mean '{near}'? " if near else ""
            raise InputError(f"there is no command '{args[0]}'", fix=f"{fix}see 'spark13b --help'")
        return super().resolve_command(ctx, args)


def debug_wanted() -> bool:
    """Whether tracebacks are shown: `--debug`, or SPARK13B_DEBUG in the environment."""
    return os.environ.get("SPARK13B_DEBUG", "") not in ("", "0")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spark13b {__version__}")
        raise typer.Exit()


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the choices that 'auto' made.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """The whole life of the iFlytekSpark-13B language model on MindSpore: data, training, answers, cluster."""
    if debug:
        os.environ["SPARK13B_DEBUG"] = "1"  # worker processes inherit it


def build_app() -> Any:
    """The root command, ready to be called with an argument list."""
    app = typer.Typer(
        name="spark13b",
        cls=LazyGroup,
        no_args_is_help=True,
        rich_markup_mode="rich",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return typer.main.get_command(app)
