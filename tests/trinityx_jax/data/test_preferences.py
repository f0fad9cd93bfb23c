"""Pairs in batches: what they hold, that they resume, and which rows can be paired."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from trinityx_jax.config import OBJECTIVES, DataConfig
from trinityx_jax.data.examples import Example
from trinityx_jax.data.microworld import Microworld
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.preferences import pair_rows, preference_batches
from trinityx_jax.data.tokenizer import train_tokenizer
from trinityx_jax.errors import UsageError

WORLD = Microworld(n_train=40, n_held_out=12, n_pretrain=40)
CODEC = OwnCodec(train_tokenizer(DataConfig(), [], WORLD.vocabulary()), "{prompt} =")
ROWS = {objective: WORLD.rows(objective, "train") for objective in OBJECTIVES}


def batches(rows=None, **changes):
    options: dict[str, Any] = {"max_length": 32, "batch_size": 4, "seed": 1} | changes
    return preference_batches(ROWS if rows is None else rows, CODEC, **options)


def sequence(batch, i, side):
    """(prompt ids, response ids) of one side, from the arrays alone."""
    mask = batch["loss_mask"][i, side]
    first, last = np.flatnonzero(mask)[[0, -1]]
    ids = [*batch["tokens"][i, side, : last + 1].tolist(), int(batch["targets"][i, side, last])]
    np.testing.assert_array_equal(batch["targets"][i, side, :last], ids[1 : last + 1])
    assert mask.sum() == last - first + 1 and not batch["tokens"][i, side, last + 1 :].any()
    return ids[: first + 1], ids[first + 1 :]


def test_a_batch_holds_both_responses_of_rows_of_the_block_s_objective():
    batch = next(batches())
    assert batch["tokens"].shape == batch["targets"].shape == (12, 2, 32)
    assert batch["tokens"].dtype == np.int32 and batch["loss_mask"].dtype == np.float32
    np.testing.assert_array_equal(batch["objective"], np.repeat([0, 1, 2], 4))
    for i in range(12):
        row = ROWS[OBJECTIVES[i // 4]][batch["index"][i]]
        assert sequence(batch, i, 0) == CODEC.encode(row.prompt, row.response)
        assert sequence(batch, i, 1) == CODEC.encode(row.prompt, row.rejected)


def test_an_epoch_shows_every_pair_once():
    iterator = batches({"honest": ROWS["honest"]}, batch_size=5)
    shown = np.concatenate([next(iterator)["index"] for _ in range(8)])
    assert sorted(shown) == list(range(40)) and list(shown) != sorted(shown)


def test_it_resumes_at_the_next_batch_and_is_shared_by_processes():
    iterator = batches(mix=(1, 2, 1))
    for _ in range(5):
        next(iterator)
    fresh = batches(mix=(1, 2, 1))
    fresh.set_state(json.loads(json.dumps(iterator.get_state())))
    parts = [batches(mix=(1, 2, 1), process_index=p, process_count=3) for p in range(3)]
    for part in parts:
        part.set_state(iterator.get_state())
    want, got = next(iterator), next(fresh)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)
    np.testing.assert_array_equal(np.bincount(want["objective"]), [3, 6, 3])
    index = [next(part)["index"] for part in parts]  # 1, 2 and 1 rows of each objective
    np.testing.assert_array_equal(
        np.ravel([[x[0] for x in index], *[[x[k] for x in index] for k in (1, 2)],
                  [x[3] for x in index]]), want["index"],
    )  # fmt: skip


def test_a_long_pair_keeps_one_prompt_that_leaves_room_for_the_longer_response():
    row = Example("r", "honest", "k", " ".join(["dog"] * 30), "cat", rejected="cat " * 12)
    packed = pair_rows([row], CODEC, max_length=16, seed=0)
    (chosen, good), (rejected, bad) = (sequence(packed.fields, 0, side) for side in (0, 1))
    assert packed.shortened == 1 and chosen == rejected
    assert len(chosen) == 8 and len(bad) == 9  # half of the room, and the rest of 16 + 1
    assert good == CODEC.encode(row.prompt, "cat")[1]


def test_an_objective_without_pairs_is_named():
    alone = [dataclasses.replace(row, rejected="") for row in ROWS["honest"]]
    with pytest.raises(UsageError, match=r"'honest' has no preference pairs.*experts.loss: sft"):
        batches(ROWS | {"honest": alone})
    mixed = batches({"honest": [*alone[:9], ROWS["honest"][0]]}, batch_size=1)
    row = ROWS["honest"][0]
    assert sequence(next(mixed), 0, 1) == CODEC.encode(row.prompt, row.rejected)
