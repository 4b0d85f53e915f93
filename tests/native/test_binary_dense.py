"""Every binary dense kernel that can run here, against the reference and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.native import door
from edgekit.native.packing import pack_bits, unpack_bits, words_for

RUNNABLE = [row.name for row in door.kernels() if row.family == "binary_dense" and row.supported]

# Around every boundary a kernel could have: a word, two, four, eight of them, and one bit to either side.
SIZES = sorted({max(1, 64 * words + off) for words in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17) for off in (-1, 0, 1)})
ROWS = (1, 2, 3, 4, 5, 8, 11)


def random_layer(rows: int, n: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return rng.random(n) < 0.5, rng.random((rows, n)) < 0.5


def by_numpy(x: NDArray[np.bool_], w: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.where(w, 1, -1).astype(np.int32) @ np.where(x, 1, -1).astype(np.int32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kernel", [*RUNNABLE, None])
def test_every_kernel_gives_the_sums_that_numpy_gives(kernel: str | None, n: int) -> None:
    for rows in ROWS:
        x, w = random_layer(rows, n, seed=1000 * n + rows)
        sums = door.binary_dense(pack_bits(x), pack_bits(w), n, kernel)
        np.testing.assert_array_equal(sums, by_numpy(x, w))
        assert sums.dtype == np.int32


@pytest.mark.parametrize("kernel", RUNNABLE)
@given(n=st.integers(1, 700), rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_every_kernel_agrees_with_the_reference(kernel: str, n: int, rows: int, seed: int) -> None:
    x, w = (pack_bits(values) for values in random_layer(rows, n, seed))
    np.testing.assert_array_equal(door.binary_dense(x, w, n, kernel), door.binary_dense(x, w, n, "reference"))


@pytest.mark.parametrize("kernel", RUNNABLE)
@given(n=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_bits_past_the_end_of_a_row_do_not_count(kernel: str, n: int, seed: int) -> None:
    x, w = (pack_bits(values) for values in random_layer(5, n, seed))
    past = np.uint64(0) if n % 64 == 0 else ~np.uint64((1 << n % 64) - 1)
    dirty_x, dirty_w = x.copy(), w.copy()
    dirty_x[-1] |= past
    dirty_w[::2, -1] |= past
    np.testing.assert_array_equal(
        door.binary_dense(dirty_x, dirty_w, n, kernel), door.binary_dense(x, w, n, kernel)
    )


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_equal_rows_sum_to_n_and_opposite_rows_to_minus_n(kernel: str) -> None:
    n = 100_003
    x, _ = random_layer(1, n, seed=7)
    w = pack_bits(np.stack([x, ~x]))
    assert door.binary_dense(pack_bits(x), w, n, kernel).tolist() == [n, -n]


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_a_kernel_reads_rows_at_any_word_and_writes_nothing_else(kernel: str) -> None:
    n, words = 333, words_for(333)
    x, w = random_layer(9, n, seed=3)
    held = np.zeros(words * 9 + 1, np.uint64)  # one word off, so that no row is aligned to a vector
    held[1:] = pack_bits(w).ravel()
    before = held.copy()
    sums = door.binary_dense(pack_bits(x), held[1:].reshape(9, words), n, kernel)
    np.testing.assert_array_equal(sums, by_numpy(x, w))
    np.testing.assert_array_equal(held, before)


def test_no_rows_give_no_sums() -> None:
    assert door.binary_dense(np.zeros(2, np.uint64), np.zeros((0, 2), np.uint64), 128).shape == (0,)


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_packed_bits_come_back_as_they_went_in(n: int, seed: int) -> None:
    _, values = random_layer(3, n, seed)
    packed = pack_bits(values)
    assert packed.shape == (3, words_for(n))
    np.testing.assert_array_equal(unpack_bits(packed, n), values)


def test_value_i_is_bit_i_mod_64_of_word_i_div_64() -> None:
    values = np.zeros(130, np.bool_)
    values[[0, 65, 129]] = True
    assert pack_bits(values).tolist() == [1, 2, 2]


X, W = np.zeros(2, np.uint64), np.zeros((3, 2), np.uint64)
REFUSED = [
    ((X.astype(np.int64), W, 100), "x_bits must be an array of uint64, got int64"),
    ((X, W.astype(np.float32), 100), "w_bits must be an array of uint64, got float32"),
    (([0, 0], W, 100), "x_bits must be an array of uint64, got list"),
    ((X, W, 64), "x_bits must have shape (1,) for n = 64, got (2,)"),
    ((X, W, 129), "x_bits must have shape (3,) for n = 129, got (2,)"),
    ((W, W, 100), "x_bits must have shape (2,) for n = 100, got (3, 2)"),
    ((X, X, 100), "w_bits must have shape (rows, 2) for n = 100, got (2,)"),
    ((X, W[:, :1], 100), "w_bits must have shape (rows, 2) for n = 100, got (3, 1)"),
    ((X, np.zeros((3, 4), np.uint64)[:, ::2], 100), "w_bits must be C-contiguous"),
    ((X, W, 0), "n must be an integer from 1 to 2147483647, got 0"),
    ((X, W, 2**31), "n must be an integer from 1 to 2147483647, got 2147483648"),
    ((X, W, 100.0), "n must be an integer from 1 to 2147483647, got 100.0"),
    (
        (X, W, 100, "sse9"),
        "unknown binary_dense kernel 'sse9'; known: avx2, avx512, neon, portable, reference",
    ),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        door.binary_dense(*arguments)  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


NOT_RUNNABLE = [row.name for row in door.kernels() if row.family == "binary_dense" and not row.supported]


@pytest.mark.parametrize("kernel", NOT_RUNNABLE)
def test_a_kernel_that_cannot_run_here_is_refused(kernel: str) -> None:
    with pytest.raises(BadInput, match="cannot run on this machine"):
        door.binary_dense(X, W, 100, kernel)
