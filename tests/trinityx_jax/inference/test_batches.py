"""Batches hold every sequence once, in few shapes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trinityx_jax.inference.batches import Tokens, bucket, padded_batches

SEQUENCES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=30
).map(
    lambda sizes: (
        [Tokens(list(range(1, p + 1)), list(range(101, r + 101))) for p, r in sizes if p + r <= 97]
        or [Tokens([1], [101])]
    )
)


@given(SEQUENCES, st.integers(1, 7))
def test_every_sequence_is_there_once(sequences, batch_size):
    seen = []
    for index, batch in padded_batches(sequences, batch_size, 96):
        assert batch["tokens"].shape == batch["targets"].shape
        assert len(batch["tokens"]) == batch_size
        for row, i in enumerate(index):
            ids = [*sequences[i].prompt, *sequences[i].response]
            n = len(ids) - 1
            assert batch["tokens"][row, :n].tolist() == ids[:-1]
            assert batch["targets"][row, :n].tolist() == ids[1:]
            assert batch["token_mask"][row].tolist() == [1] * n + [0] * (
                len(batch["tokens"][row]) - n
            )
            marked = batch["targets"][row][batch["loss_mask"][row] == 1]
            assert marked.tolist() == sequences[i].response
            seen.append(i)
        assert not batch["token_mask"][len(index) :].any()
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
    index, batch = next(padded_batches([Tokens([1] * 90, [2])], 1, 90))
    assert index.tolist() == [0] and batch["tokens"].shape == (1, 90)
    assert np.count_nonzero(batch["loss_mask"]) == 1
