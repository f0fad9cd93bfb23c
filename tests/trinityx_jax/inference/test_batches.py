"""Batches hold every sequence once, in few shapes."""

import math

from hypothesis import given
from hypothesis import strategies as st

from trinityx_jax.inference.batches import bucket, padded_batches

SEQUENCES = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=96), min_size=1, max_size=30)


@given(SEQUENCES, st.integers(1, 7))
def test_every_sequence_is_there_once(sequences, batch_size):
    seen = []
    batches = list(padded_batches(sequences, batch_size, 96))
    assert len(batches) == math.ceil(len(sequences) / batch_size)
    for index, tokens, real in batches:
        assert tokens.shape == real.shape and len(tokens) == batch_size
        for row, i in enumerate(index):
            n = len(sequences[i])
            assert tokens[row, :n].tolist() == sequences[i]
            assert real[row].tolist() == [True] * n + [False] * (tokens.shape[1] - n)
            seen.append(i)
        assert not real[len(index) :].any()
    assert sorted(seen) == list(range(len(sequences)))


def test_buckets_are_few_and_long_enough():
    sizes = [bucket(n, 1000) for n in range(1, 1001)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert sorted(set(sizes)) == [
        16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
        640, 768, 896, 1000,
    ]  # fmt: skip


def test_the_last_bucket_is_the_context():
    assert bucket(90, 90) == 90
    index, tokens, _ = next(padded_batches([[1] * 90], 1, 90))
    assert index.tolist() == [0] and tokens.shape == (1, 90)
