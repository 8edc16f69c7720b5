"""Each rule's message: what is wrong, where it was written, and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from spark13b.config import Preset, SparkConfig, TrainConfig, load_preset, notes, preset_names
from spark13b.config.explain import nearest_key
from spark13b.config.preset import known_keys
from spark13b.errors import InputError


def refused(name: str | Path, *assignments: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_preset(name, assignments=assignments)
    return caught.value


# preset, assignments, the message, a part of the cure
BROKEN: list[tuple[str, list[str], str, str]] = [
    # wrong keys
    ("800-sft", ["model.seq_lenght=4096"], "model.seq_lenght: not a known key", "'model.seq_length'"),
    ("800-sft", ["seq_length=4096"], "seq_length: not a known key", "'model.seq_length'"),
    ("800-sft", ["train.lr=1e-4"], "train.lr: not a known key", "'schedule.lr'"),
    ("800-sft", ["modell.seq_length=1"], "modell: not a known key", "'model'"),
    ("800-sft", ["train.zzz=1"], "train.zzz: not a known key", "--resolved"),
    # wrong types
    ("800-sft", ["model.seq_length=long"], "model.seq_length: expected a whole number, got the text 'long'", "32768"),
    (
        "800-sft",
        ["model.seq_length='4096'"],
        "model.seq_length: expected a whole number, got the text '4096'",
        "quotes",
    ),
    ("800-sft", ["model.seq_length=4096.0"], "model.seq_length: expected a whole number, got 4096.0", "whole number"),
    ("800-sft", ["train.steps=true"], "train.steps: expected a whole number, got true", "whole number"),
    ("800-sft", ["schedule.lr=fast"], "schedule.lr: expected a number, got the text 'fast'", "3e-05"),
    ("800-sft", ["schedule.lr=.nan"], "schedule.lr: expected a finite number, got nan", "finite"),
    ("800-sft", ["train.recompute=1"], "train.recompute: expected true or false, got 1", "true or false"),
    ("800-sft", ["train.seed=null"], "train.seed: expected a whole number, got null", "0"),
    ("800-sft", ["generation.stop=hello"], "generation.stop: expected a list, got the text 'hello'", "[hello]"),
    ("800-sft", ["Extends=cpu-tiny-sft"], "Extends: not a known key", "by 'extends'"),
    ("800-sft", ["train.seed=[1]"], "train.seed: expected a whole number, got a list", "0"),
    ("800-sft", ["model=3"], "model: expected a section of keys, got 3", "model.num_layers"),
    ("800-sft", ["task=sf"], "task: the text 'sf' is not one of the choices", "did you mean 'sft'?"),
    ("800-sft", ["schedule.kind=step"], "schedule.kind: the text 'step' is not one of the choices", "constant, linear"),
    # bounds
    ("800-sft", ["train.batch_size=0"], "train.batch_size: 0 is out of bounds", "at least 1"),
    ("800-sft", ["schedule.lr=0"], "schedule.lr: 0 is out of bounds", "above 0"),
    ("800-sft", ["optimizer.beta2=1.0"], "optimizer.beta2: 1.0 is out of bounds", "below 1"),
    ("800-sft", ["generation.top_p=1.5"], "generation.top_p: 1.5 is out of bounds", "at most 1"),
    ("800-sft", ["train.seed=-1"], "train.seed: -1 is out of bounds", "at least 0"),
    ("800-sft", ["optimizer.weight_decay=-0.1"], "optimizer.weight_decay: -0.1 is out of bounds", "at least 0"),
    (
        "cpu-tiny-sft",
        ["model.weight_bits=4"],
        "model.weight_bits: weights of 4 bits are for answers and LoRA on a CPU",
        "null",
    ),
    (
        "800-infer",
        ["model.weight_bits=8"],
        "model.weight_bits: weights of 8 bits are for answers and LoRA on a CPU",
        "null",
    ),
    # rules inside a section
    ("cpu-tiny-sft", ["model.num_heads=3"], "model.num_heads: 3 does not divide hidden_size 128", "divisor"),
    ("cpu-tiny-sft", ["model.hidden_size=60", "model.num_heads=4"], "model.num_heads: the head size", "even"),
    ("cpu-tiny-sft", ["model.ffn_hidden_size=1023"], "model.ffn_hidden_size: 1023 is odd", "even"),
    ("800-sft", ["machine.chip=none"], "machine.chip: an Ascend machine has a chip", "910A"),
    ("cpu-tiny-sft", ["machine.chip=910B"], "machine.chip: 910B is an Ascend chip", "none"),
    (
        "800-sft",
        ["machine.devices=12", "parallel.data_parallel=3", "parallel.model_parallel=4"],
        "machine.devices: 12 devices do not fill machines of 8",
        "multiple",
    ),
    ("800-sft", ["schedule.lr_end=1"], "schedule.lr_end: 1 is above lr 3e-05", "no greater"),
    (
        "800-pretrain",
        ["schedule.total_steps=1000"],
        "schedule.warmup_steps: 1020 leaves nothing of total_steps 1000",
        "fewer",
    ),
    ("800-lora", ["lora.targets=("], "lora.targets: '(' is not a regular expression", "q_proj|v_proj"),
    ("800-lora", ["lora.targets=w_pack"], "lora.targets: 'w_pack' matches no layer", "q_proj"),
    ("800-infer", ["generation.prompt_template=hello"], "generation.prompt_template: has 0 places {}", "exactly one"),
    ("800-infer", ["generation.prompt_template={} {}"], "generation.prompt_template: has 2 places {}", "exactly one"),
    # rules between sections
    (
        "800-sft",
        ["parallel.data_parallel=4"],
        "parallel.data_parallel: 4 x model_parallel 8 is 32 devices, but machine.devices is 16",
        "machine.devices: 32",
    ),
    (
        "cpu-tiny-sft",
        ["parallel.model_parallel=8", "machine.devices=8"],
        "parallel.model_parallel: 8 does not divide model.num_heads, 4",
        "divisor of 4",
    ),
    (
        "cpu-tiny-sft",
        ["parallel.model_parallel=2", "machine.devices=2", "model.vocab_size=8001"],
        "parallel.model_parallel: 2 does not divide model.vocab_size, 8001",
        "divisor of 8001",
    ),
    (
        "cpu-tiny-sft",
        ["parallel.model_parallel=2", "machine.devices=2", "model.ffn_hidden_size=1026"],
        "parallel.model_parallel: 2 does not divide model.ffn_hidden_size / 2, 513",
        "divisor of 513",
    ),
    (
        "800-sft",
        ["model.seq_length=32764"],
        "parallel.model_parallel: 8 does not divide model.seq_length, 32764",
        "of 8",
    ),
    ("800-sft", ["model.param_init_type=bfloat16"], "model.param_init_type: the 910A has no bfloat16", "float16"),
    (
        "cpu-tiny-sft",
        ["model.compute_type=float16"],
        "train.loss_scale: float16 gradients vanish without a loss scale",
        "dynamic",
    ),
    ("cpu-tiny-sft", ["model.attention_backend=ascend"], "model.attention_backend: ascend is a kernel of", "blocked"),
    ("800-sft", ["model.attention_backend=ascend"], "model.attention_backend: the kernel behind ascend", "acctransf"),
    (
        "800T-A2-infer",
        ["model.attention_backend=ascend", "model.hidden_size=800"],
        "model.attention_backend: ascend needs a head size that is a multiple of 16 up to 512;",
        "auto",
    ),
    (
        "800T-A2-infer",
        ["model.attention_backend=ascend", "model.hidden_size=8192", "model.num_heads=512"],
        "model.attention_backend: ascend takes at most 256 heads a device, not 512",
        "auto",
    ),
    (
        "800T-A2-infer",
        ["model.attention_backend=ascend", "model.compute_type=float32"],
        "model.attention_backend: ascend computes in float16 or bfloat16",
        "auto",
    ),
    (
        "800-infer",
        ["model.attention_backend=acctransformer", "model.sparse_local_size=8000"],
        "model.sparse_local_size: 8000 is not a multiple of 128",
        "8064",
    ),
    (
        "800-infer",
        ["model.attention_backend=acctransformer", "model.seq_length=1000"],
        "model.seq_length: 1000 is not a multiple of 128",
        "1024",
    ),
    (
        "cpu-tiny-pretrain",
        ["train.steps=5"],
        "schedule.warmup_steps: 5 leaves nothing of the run's 5 steps",
        "fewer",
    ),
    # adapters
    ("cpu-tiny-lora", ["lora.rank=128"], "lora.rank: 128 is no low rank for matrices of 128", "smaller rank"),
]


@pytest.mark.parametrize(("name", "assignments", "what", "fix"), BROKEN, ids=[" ".join(case[1]) for case in BROKEN])
def test_a_broken_rule_says_what_where_and_how_to_mend_it(
    name: str, assignments: list[str], what: str, fix: str
) -> None:
    error = refused(name, *assignments)
    assert error.what.startswith(what)
    assert error.where in {f"--set {assignment}" for assignment in assignments}
    assert error.fix is not None and fix in error.fix
    assert "\n" not in error.what


def test_the_last_written_key_of_a_rule_is_the_one_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("extends: cpu-tiny-sft\n\nmodel:\n  num_heads: 3\n", encoding="utf-8")
    error = refused(file)
    assert (error.where, error.line) == (str(file), 4)
    error = refused("800-sft", "parallel={data_parallel: 3}")
    assert error.where == "--set parallel={data_parallel: 3}"


def test_all_errors_of_a_file_are_listed_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "extends: cpu-tiny-sft\ntask: train\nmodel:\n  num_heads: four\n  seq_lenght: 9\nlora:\n  rank: 0\n",
        encoding="utf-8",
    )
    error = refused(file)
    first, *rest = error.what.splitlines()
    assert first == "4 values of the preset are wrong"
    assert [line.split("; ")[0] for line in rest] == [
        f"  1. task: the text 'train' is not one of the choices [{file}:2]",
        f"  2. model.num_heads: expected a whole number, got the text 'four' [{file}:4]",
        f"  3. model.seq_lenght: not a known key [{file}:5]",
        f"  4. lora.rank: 0 is out of bounds [{file}:7]",
    ]
    assert error.where == str(file)
    assert error.fix == f"mend them, then run 'spark13b preset check {file}'"


def test_broken_rules_are_listed_together_too() -> None:
    error = refused("cpu-tiny-sft", "model.num_heads=3", "model.ffn_hidden_size=7", "schedule.lr_end=1")
    assert error.what.startswith("3 values of the preset are wrong")


def test_what_a_preset_must_say_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("task: sft\n", encoding="utf-8")
    error = refused(file)
    assert [line.split()[1] for line in error.what.splitlines()[1:]] == ["description:", "model:", "machine:"]
    file.write_text("extends: parts/model-tiny\ndescription: d\ntask: sft\n", encoding="utf-8")
    assert refused(file).message() == (
        f"machine: missing\n  at: {file}\n  fix: write it, or extend a preset or part that has it"
    )


def test_command_options_are_checked_like_everything_else() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size: 0 is out of bounds") as caught:
        load_preset("cpu-tiny-sft", options={"train.batch_size": 0})
    assert caught.value.where == "the command's options"


def test_a_model_made_in_python_names_all_its_broken_rules() -> None:
    with pytest.raises(ValidationError) as caught:
        SparkConfig(hidden_size=64, num_heads=3, ffn_hidden_size=7)
    assert "num_heads: 3 does not divide hidden_size 64" in str(caught.value)
    assert "ffn_hidden_size: 7 is odd" in str(caught.value)


def test_presets_never_change_after_loading() -> None:
    preset = load_preset("cpu-tiny-sft")
    with pytest.raises(ValidationError):
        preset.train.seed = 3  # type: ignore[misc]


def test_a_training_section_made_in_python_is_one_epoch_long() -> None:
    assert (TrainConfig().epochs, TrainConfig(steps=5).epochs, TrainConfig(epochs=2).steps) == (1, None, None)


def test_float16_inference_needs_no_loss_scale() -> None:
    assert load_preset("cpu-tiny-infer", assignments=["model.compute_type=float16"]).train.loss_scale == "none"


@pytest.mark.parametrize(
    ("name", "assignments", "note"),
    [
        ("cpu-tiny-sft", ["model.sparse_local_size=1024"], "beyond seq_length 512"),
        ("cpu-tiny-sft", ["train.recompute_slice_activations=true"], "does nothing without train.recompute"),
        ("800-sft", ["train.loss_scale=fixed"], "is where a dynamic scale starts; fixed, it overflows"),
        ("cpu-tiny-sft", ["parallel.sequence_parallel=true"], "does nothing with model_parallel 1"),
        ("cpu-tiny-infer", ["generation.max_new_tokens=512"], "leaves no room for a prompt"),
        ("cpu-tiny-infer", ["generation.top_k=5"], "do nothing without generation.do_sample"),
        ("cpu-tiny-lora", ["optimizer.master_weights=true"], "does nothing for adapters"),
        ("800-sft", ["train.steps=10"], "ends before the schedule's total_steps 300000"),
    ],
)
def test_what_may_not_be_meant_is_a_note(name: str, assignments: list[str], note: str) -> None:
    (found,) = notes(load_preset(name, assignments=assignments))
    assert note in found


def test_every_key_of_a_preset_is_known_and_the_nearest_to_itself() -> None:
    keys = known_keys()
    assert {"model.seq_length", "machine", "generation.prompt_template"} <= set(keys)
    for key in keys:
        found = nearest_key(key)
        assert found is not None and found.rpartition(".")[2] == key.rpartition(".")[2]


def test_one_letter_too_few_still_finds_every_key() -> None:
    for key in known_keys():
        section, _, name = key.rpartition(".")
        if len(name) > len("top_k"):  # `top_` may be top_k or top_p
            typo = f"{section}.{name[:-1]}".lstrip(".")
            if typo not in known_keys():
                assert nearest_key(typo) == key


def test_every_preset_can_be_rebuilt_from_its_values() -> None:
    for name in preset_names():
        preset = load_preset(name)
        assert Preset.model_validate(preset.model_dump()) == preset
