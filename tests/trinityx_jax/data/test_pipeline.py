import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trinityx_jax.config import OBJECTIVES, DataConfig
from trinityx_jax.data.examples import Example
from trinityx_jax.data.microworld import KINDS, Microworld
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.pipeline import pack_rows, training_batches
from trinityx_jax.data.tokenizer import BOS, EOS, PAD, train_tokenizer
from trinityx_jax.errors import DataError, UsageError

WORLD = Microworld(n_train=120, n_held_out=30, n_pretrain=300)
CODEC = OwnCodec(train_tokenizer(DataConfig(), [], WORLD.vocabulary()), "{prompt} =")
ROWS = {objective: WORLD.rows(objective, "train") for objective in KINDS}


def batches(rows=None, **changes):
    options: dict[str, Any] = {"max_length": 32, "batch_size": 4, "seed": 1} | changes
    return training_batches(ROWS if rows is None else rows, CODEC, **options)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def unpack(batch):
    """(prompt ids, response ids) of every example of a batch, from its arrays alone."""
    found = []
    for i in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][i].max() + 1):
            at = batch["segment_ids"][i] == segment
            tokens, targets = batch["tokens"][i][at], batch["targets"][i][at]
            np.testing.assert_array_equal(batch["positions"][i][at], np.arange(at.sum()))
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            ids = [*tokens.tolist(), int(targets[-1])]
            mask = batch["loss_mask"][i][at].tolist()
            answered = mask.index(1.0) + 1
            assert mask == [0.0] * (answered - 1) + [1.0] * (len(ids) - answered)
            found.append((ids[:answered], ids[answered:]))
        padding = batch["segment_ids"][i] == 0
        for name, empty in (("tokens", PAD), ("targets", PAD), ("loss_mask", 0), ("positions", 0)):
            assert (batch[name][i][padding] == empty).all()
    return found


def rows_of(pairs):
    return [
        Example(f"r{i}", "helpful", "kind", prompt, response)
        for i, (prompt, response) in enumerate(pairs)
    ]


words = st.lists(st.sampled_from(WORLD.vocabulary()), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=40), st.integers(0, 9))
def test_every_example_can_be_recovered_from_the_packed_rows(pairs, seed):
    packed = pack_rows(rows_of(pairs), CODEC, max_length=32, seed=seed)
    want = [CODEC.encode(*pair) for pair in pairs]
    assert sorted(unpack(packed.fields)) == sorted(want)
    assert packed.shortened == 0


def test_shapes_types_and_blocks():
    batch = next(batches())
    for name in ("tokens", "targets", "segment_ids", "positions"):
        assert batch[name].shape == (12, 32) and batch[name].dtype == np.int32
    assert batch["loss_mask"].shape == (12, 32) and batch["loss_mask"].dtype == np.float32
    assert batch["objective"].dtype == np.int32
    np.testing.assert_array_equal(batch["objective"], np.repeat([0, 1, 2], 4))
    for i, objective in enumerate(OBJECTIVES):
        block = {name: array[4 * i : 4 * i + 4] for name, array in batch.items()}
        texts = [CODEC.encode(row.prompt, row.response) for row in ROWS[objective]]
        assert all(pair in texts for pair in unpack(block))


def test_the_index_names_the_packed_row():
    iterator = batches()
    for _ in range(12):  # more than an epoch
        batch = next(iterator)
        assert batch["index"].shape == (12,) and batch["index"].dtype == np.int32
        for i, (o, index) in enumerate(zip(batch["objective"], batch["index"], strict=True)):
            row = iterator.packed[OBJECTIVES[o]][int(index)]
            np.testing.assert_array_equal(row["tokens"], batch["tokens"][i])


def test_a_mix_gives_each_objective_its_share_of_the_same_stream():
    mixed, even = batches(mix=(1, 2, 1)), batches(batch_size=3)
    shares = [batches(mix=(1, 2, 1), process_index=p, process_count=3) for p in range(3)]
    for _ in range(5):
        batch, want = next(mixed), next(even)
        np.testing.assert_array_equal(batch["objective"], np.repeat([0, 1, 2], [3, 6, 3]))
        for block, own in (((0, 3), (0, 3)), ((9, 12), (6, 9))):  # 3 rows in either job
            np.testing.assert_array_equal(
                batch["tokens"][slice(*block)], want["tokens"][slice(*own)]
            )
        parts = [next(share)["tokens"] for share in shares]
        np.testing.assert_array_equal([part[0] for part in parts], batch["tokens"][:3])
        np.testing.assert_array_equal(
            np.stack([part[1:3] for part in parts], axis=1).reshape(6, -1), batch["tokens"][3:9]
        )
    alone = batches({"harmless": ROWS["harmless"]}, mix=(1, 2, 1), objectives=OBJECTIVES)
    block = {name: array[3:9] for name, array in next(batches(mix=(1, 2, 1))).items()}
    assert_equal(block, next(alone))
    with pytest.raises(UsageError, match=r"3 rows of 'helpful' .* by 2 parts"):
        batches(mix=(1, 2, 1), accumulate=2)


def test_an_epoch_shows_every_row_once_and_the_next_one_in_another_order():
    rows = {"helpful": ROWS["helpful"]}
    count = len(batches(rows).packed["helpful"])
    shown = [b["tokens"].tobytes() for b in take(batches(rows, batch_size=1), 2 * count)]
    assert sorted(shown[:count]) == sorted(shown[count:]) and shown[:count] != shown[count:]
    want = sorted(CODEC.encode(row.prompt, row.response) for row in rows["helpful"])
    got = [pair for b in take(batches(rows, batch_size=1), count) for pair in unpack(b)]
    assert sorted(got) == want


def test_seed_decides_the_order():
    assert_equal(next(batches()), next(batches()))
    assert (next(batches())["tokens"] != next(batches(seed=2))["tokens"]).any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_single_objective_job_sees_the_joint_job_s_block(objective):
    joint = batches()
    alone = batches({objective: ROWS[objective]}, objectives=OBJECTIVES)
    at = 4 * OBJECTIVES.index(objective)
    for _ in range(30):  # more than an epoch
        block = {name: array[at : at + 4] for name, array in next(joint).items()}
        assert_equal(block, next(alone))


@pytest.mark.parametrize("done", [0, 1, 7, 41])
def test_resume_gives_bit_identical_batches(done):
    iterator = batches()
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    want = take(iterator, 5)
    fresh = batches()
    fresh.set_state(state)
    for a, b in zip(want, take(fresh, 5), strict=True):
        assert_equal(a, b)
    iterator.set_state(state)  # and rewinding the same iterator
    assert_equal(next(iterator), want[0])


def test_processes_share_the_rows_of_every_batch():
    whole = batches()
    parts = [batches(process_index=p, process_count=2) for p in range(2)]
    for _ in range(25):
        want, got = next(whole), [next(part) for part in parts]
        for name in want:
            merged = np.empty_like(want[name])
            for block in range(3):
                for p in range(2):
                    merged[4 * block + p : 4 * block + 4 : 2] = got[p][name][
                        2 * block : 2 * block + 2
                    ]
            np.testing.assert_array_equal(merged, want[name], err_msg=name)


def test_the_corpus_is_learnt_whole():
    rows = {"pretrain": WORLD.pretrain_rows()}
    batch = next(batches(rows, loss_on_prompt=True))
    np.testing.assert_array_equal(batch["loss_mask"], batch["segment_ids"] > 0)
    assert (batch["objective"] == 0).all() and (batch["segment_ids"] > 0).mean() > 0.8


def test_long_rows_are_shortened_and_counted(caplog):
    pair = (" ".join(["dog"] * 30), " ".join(["cat"] * 30))
    iterator = batches({"helpful": rows_of([pair, ("add 1 2", "3")])}, batch_size=2)
    assert iterator.packed["helpful"].shortened == 1
    assert "helpful: 1 of 2 rows are longer than data.max_length=32" in caplog.text
    found = sorted(unpack(next(iterator)), key=lambda pair: len(pair[0]))
    prompt, response = found[-1]
    assert len(prompt) + len(response) == 33 and prompt[0] == BOS and EOS not in response
    assert prompt[-1] == CODEC.tokenizer.token_to_id("=")


def test_bad_sizes_and_empty_rows_are_one_clear_line():
    with pytest.raises(UsageError, match=r"3 rows of 'helpful' .* by 2 parts .* can is 4"):
        batches(batch_size=3, process_count=2)
    with pytest.raises(UsageError, match="batch_size=0: must be positive"):
        batches(batch_size=0)
    with pytest.raises(UsageError, match="process_index=2"):
        batches(process_index=2, process_count=2)
    with pytest.raises(UsageError, match=r"data.max_length=1"):
        batches(max_length=1)
    with pytest.raises(UsageError, match="at least one objective"):
        batches({})
    with pytest.raises(DataError, match="'honest' has no training rows"):
        batches({"honest": []})
    with pytest.raises(DataError, match="row r0"):
        batches({"honest": rows_of([("add 1 2", " ")])})


def test_batches_are_fast_enough():
    iterator = batches(max_length=64, batch_size=16)
    start = time.process_time()  # other work on the machine is not ours
    take(iterator, 20)
    rows_a_second = 20 * 48 / (time.process_time() - start)
    assert rows_a_second > 300, rows_a_second
