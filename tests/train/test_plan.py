"""The plan of every preset, without MindSpore: steps, memory, collectives, and plans that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from spark13b.config import Preset, load_preset, preset_names
from spark13b.errors import InputError
from spark13b.model import native_choice
from spark13b.native.library import Found, Library
from spark13b.train.answering_files import AnsweringFiles
from spark13b.train.answering_memory import answering_memory
from spark13b.train.communication import Collectives
from spark13b.train.plan import make_plan, plan_answering, seats_that_fit

WIDER = {"parallel.model_parallel": "8", "machine.devices": "16"}
ROWS = 32768 * 5120 * 2  # bytes of the residual stream of a context, in 16 bits


def preset(name: str, **changes: Any) -> Preset:
    return load_preset(name, options={key.replace("__", "."): value for key, value in changes.items()})


def collectives(name: str, **changes: Any) -> dict[tuple[str, str], Collectives]:
    return {(one.what, one.kind): one for one in make_plan(preset(name, **changes)).collectives}


@pytest.fixture
def there(native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native library, which presets of quantised weights need."""
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))


@pytest.mark.parametrize("name", preset_names())
def test_every_built_in_preset_fits_its_machine(name, there):
    plan = make_plan(preset(name))
    assert plan.memory_limit is not None
    assert plan.memory.total < plan.memory_limit
    if plan.task == "infer":
        assert (plan.steps, plan.trained_parameters, plan.memory.gradients) == (None, 0, 0)
        assert plan.memory.cache > 0
    else:
        assert plan.memory.activations_with_recompute < plan.memory.activations_without_recompute
    assert bool(plan.collectives) == (plan.devices > 1)


def test_steps_are_known_without_rows_when_the_length_is_in_steps_or_tokens():
    assert make_plan(preset("800T-A2-sft", train__steps=7)).steps == 7
    assert make_plan(preset("800T-A2-sft", train__tokens=10 * 65536)).steps == 10
    assert make_plan(preset("800T-A2-sft")).steps is None
    assert make_plan(preset("800T-A2-sft"), rows=101, row_length=32769).steps == 505  # ten epochs, two rows a step


def test_accumulated_batches_count_into_a_step():
    plan = make_plan(preset("800T-A2-sft", train__accumulation_steps=3))
    assert (plan.batch_size, plan.tokens_per_step) == (6, 6 * 32768)


def test_tensor_parallel_sums_the_residual_stream_twice_a_layer_each_way_and_recomputation_sums_one_again():
    found = collectives("800T-A2-sft")
    assert found["residual stream, forward", "AllReduce"].count == 3 * 40 + 1
    assert found["residual stream, backward", "AllReduce"].count == 2 * 40 + 1
    assert found["residual stream, backward", "AllReduce"].bytes == 81 * ROWS
    assert found["loss", "AllReduce"].bytes == 3 * 32768 * 4
    assert collectives("800T-A2-lora")["residual stream, backward", "AllReduce"].count == 2 * 40
    kept = collectives("800T-A2-sft", train__recompute=False, model__seq_length=4096)
    assert kept["residual stream, forward", "AllReduce"].count == 2 * 40 + 1


def test_sequence_parallel_gathers_and_scatters_instead_and_sums_the_norms_gradients():
    found = collectives("800-sft")
    assert found["rows into attention and MLP, forward", "AllGather"].count == 2 * 2 * 40 + 1
    assert found["rows out of embedding, attention and MLP, forward", "ReduceScatter"].count == 3 * 40 + 1
    assert found["rows into attention and MLP, backward", "ReduceScatter"].count == 2 * 40 + 1
    assert found["rows out of embedding, attention and MLP, backward", "AllGather"].count == 2 * 40 + 1
    assert found["partial gradients", "AllReduce"].count == 40 * (2 + 4) + 2  # biases of out_proj and fc2, norms
    assert ("residual stream, forward", "AllReduce") not in found


def test_optimizer_sharding_scatters_gradients_and_gathers_parameters():
    found, whole = collectives("800T-A2-sft"), collectives("800T-A2-sft", parallel__optimizer_shard=False)
    gradients = make_plan(preset("800T-A2-sft")).memory.gradients
    assert found["gradients", "ReduceScatter"].bytes == found["updated parameters", "AllGather"].bytes == gradients
    assert whole["gradients", "AllReduce"].bytes == gradients
    assert not {("gradients", "ReduceScatter"), ("updated parameters", "AllGather")} & whole.keys()


def test_accumulated_gradients_are_summed_once_a_step_in_float32():
    once, four = (collectives("800T-A2-lora", train__accumulation_steps=steps) for steps in (1, 4))
    assert four["gradients", "AllReduce"] == once["gradients", "AllReduce"]  # adapters are float32 anyway
    assert (
        four["residual stream, forward", "AllReduce"].count == 4 * once["residual stream, forward", "AllReduce"].count
    )
    sft = collectives("800T-A2-sft", train__accumulation_steps=4)["gradients", "ReduceScatter"]
    assert sft.bytes > 1.9 * collectives("800T-A2-sft")["gradients", "ReduceScatter"].bytes


def test_rows_that_cannot_be_divided_are_refused_with_the_key_that_divides_them():
    with pytest.raises(InputError, match=r"parallel\.sequence_parallel divides a batch of 1 x 1001 tokens over 8"):
        make_plan(preset("800-sft"), rows=10, row_length=1002)
    with pytest.raises(InputError, match=r"train\.recompute_slice_activations divides a batch of 1 x 1001"):
        make_plan(preset("800-lora"), rows=10, row_length=1002)
    with pytest.raises(InputError, match="the rows hold 40000 tokens, the model's context 32768"):
        make_plan(preset("800T-A2-sft"), rows=10, row_length=40001)
    assert make_plan(preset("800T-A2-sft"), rows=10, row_length=1002).tokens == 1001


def proposals(error: InputError) -> list[dict[str, str]]:
    """The values of each proposed change, by key."""
    lines = error.fix.removeprefix("add ").split("\n") if error.fix else []
    return [dict(re.findall(r"--set ([\w.]+)=(\w+)", line)) for line in lines]


@pytest.mark.parametrize(
    ("name", "changes", "helps"),
    [
        ("800T-A2-sft", {"train.recompute": False}, {"train.recompute": "true"}),
        (
            "800T-A2-sft",
            {"machine.max_device_memory_gb": 30},
            {"parallel.model_parallel": "8", "machine.devices": "16"},
        ),
        ("800T-A2-sft", {"parallel.optimizer_shard": False, "machine.max_device_memory_gb": 50}, None),
        ("800-infer", {"machine.max_device_memory_gb": 16}, {"model.seq_length": "4096"}),
        ("cpu-tiny-sft", {"train.batch_size": 4096}, None),
    ],
)
def test_a_plan_that_exceeds_the_memory_names_its_parts_and_changes_that_are_enough(name, changes, helps):
    with pytest.raises(
        InputError, match=r"a device needs [\d.]+ GiB of memory and may use [\d.]+ GiB.*activ"
    ) as raised:
        make_plan(load_preset(name, options=changes))
    proposed = proposals(raised.value)
    assert proposed
    assert helps is None or helps in proposed
    for values in proposed:  # they hold what they promise
        make_plan(load_preset(name, options=changes, assignments=[f"{key}={value}" for key, value in values.items()]))


def test_when_no_change_is_enough_it_says_so():
    with pytest.raises(InputError, match="no change of this preset is enough"):
        make_plan(preset("800T-A2-sft", machine__max_device_memory_gb=3))


def test_answers_at_once_that_do_not_fit_are_refused_with_the_number_that_does():
    values = preset("800T-A2-infer")
    with pytest.raises(InputError, match=r"8 answers at once need .* may use 59.00 GiB: weights 2\d") as raised:
        plan_answering(values, seats=8)
    most = int(re.findall(r"at most (\d+) at once", str(raised.value.fix))[0])
    assert 1 < most < 8
    assert plan_answering(values, seats=most).seats == seats_that_fit(values, 8) == most
    with pytest.raises(InputError):
        plan_answering(values, seats=most + 1)
    assert plan_answering(values, seats=8, context=2048).tokens == 2048


@pytest.mark.parametrize(("bits", "weights"), [(4, 6.74), (8, 13.07)])
def test_13b_of_rounded_weights_answers_within_24_gib(bits, weights, there):
    """By hand: the layers' at bits + 16/64, the embedding at 8.25 or 16 bits, norms and biases in float32."""
    values = load_preset(f"cpu-13b-int{bits}-infer")
    memory = answering_memory(values)
    layers, embedding, vectors = 40 * (4 * 5120**2 + 3 * 5120 * 14336), 60000 * 5120, 40 * (9 * 5120 + 2 * 14336)
    expected = layers * (bits + 0.25) + embedding * (8.25 if bits == 4 else 16) + (vectors + 2 * 5120) * 32
    assert memory.weights == expected / 8
    assert memory.weights / 2**30 == pytest.approx(weights, abs=0.005)
    assert memory.cache == 2 * 40 * 8192 * 5120 * 2
    assert memory.total < 22 * 2**30
    assert answering_memory(values, files=AnsweringFiles(10**9, rounded=True)).weights == 10**9


def test_without_the_library_nobody_trains_in_bfloat16_on_a_cpu(monkeypatch):
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(None, "it is not built"))
    with pytest.raises(InputError, match="MindSpore has no bfloat16 matrix products on a CPU"):
        make_plan(preset("cpu-tiny-sft", model__compute_type="bfloat16"))


def test_without_the_library_nobody_trains_beside_rounded_weights(monkeypatch):
    """As 'spark13b doctor --preset' says it; 'lora --dry-run' names the file, too."""
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(None, "it is not built"))
    with pytest.raises(InputError, match="only the native library trains adapters beside a quantised base") as raised:
        make_plan(preset("cpu-13b-int4-lora"))
    assert "spark13b native build" in str(raised.value.fix)
