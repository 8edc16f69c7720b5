"""What the seats of a 13B model need on its machines."""

from __future__ import annotations

import pytest

from spark13b.config import load_preset
from spark13b.errors import InputError
from spark13b.infer.room import check_room, seat_bytes, weight_bytes


def test_a_seat_holds_keys_and_values_of_the_window_in_16_bits() -> None:
    assert seat_bytes(load_preset("800T-A2-infer")) == 2 * 40 * 8192 * 5120 * 2
    assert seat_bytes(load_preset("800T-A2-infer"), context=1024) == 2 * 40 * 1024 * 5120 * 2
    assert seat_bytes(load_preset("800-infer")) == 40 * 8192 * 5120 * 2  # two devices share it
    assert weight_bytes(load_preset("800T-A2-infer")) == pytest.approx(2 * 13.3e9, rel=0.03)


def test_seats_that_do_not_fit_are_refused_with_the_number_that_does() -> None:
    preset = load_preset("800T-A2-infer")
    with pytest.raises(
        InputError, match=r"9 caches of 6.2 GiB do not fit beside 24.8 GiB of weights in 59 GB"
    ) as caught:
        check_room(preset, seats=8)
    most = int(str(caught.value.fix).rpartition(" ")[2])
    check_room(preset, seats=most)
    with pytest.raises(InputError):
        check_room(preset, seats=most + 1)
    check_room(preset, seats=8, context=2048)
    check_room(load_preset("cpu-tiny-infer"), seats=200)
