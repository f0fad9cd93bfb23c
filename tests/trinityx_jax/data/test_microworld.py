import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest

from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.microworld import KINDS, Microworld
from trinityx_jax.data.world_tasks import TASKS
from trinityx_jax.data.world_words import NOT_KNOWN, PROTECTED, REFUSAL, comply, vocabulary
from trinityx_jax.errors import UsageError

WORLD = Microworld(seed=3)
SMALL = Microworld(seed=3, n_train=60, n_held_out=30, n_pretrain=500)


@functools.cache
def all_rows():
    return [row for o in KINDS for split in SPLITS for row in WORLD.rows(o, split)]


def test_same_seed_gives_the_same_rows_and_another_seed_others():
    again = Microworld(seed=3, n_train=60, n_held_out=30, n_pretrain=500)
    other = dataclasses.replace(SMALL, seed=4)
    for objective in KINDS:
        assert again.rows(objective, "test") == SMALL.rows(objective, "test")
        assert other.rows(objective, "test") != SMALL.rows(objective, "test")
    assert again.pretrain_rows("train") == SMALL.pretrain_rows("train")
    assert SMALL.pretrain_rows("train") != SMALL.pretrain_rows("validation")


def test_sizes_and_equal_shares_of_kinds():
    for objective, kinds in KINDS.items():
        assert len(WORLD.rows(objective, "train")) == 2000
        for split in SPLITS[1:]:
            rows = WORLD.rows(objective, split)
            assert len(rows) == 400
            counts = Counter(row.kind for row in rows)
            assert set(counts) == set(kinds) and max(counts.values()) - min(counts.values()) <= 1
    assert len(WORLD.pretrain_rows("validation")) == 1000


def test_splits_share_no_prompt_and_held_out_prompts_do_not_repeat():
    seen: dict[str, str] = {}
    for objective in KINDS:
        for split in SPLITS:
            prompts = [row.prompt for row in WORLD.rows(objective, split)]
            if split != "train":
                assert len(set(prompts)) == len(prompts), (objective, split)
            for prompt in prompts:
                assert seen.setdefault(prompt, split) == split, prompt


def test_held_out_pairs_facts_and_names_are_not_trained_on():
    def keys(objective, kinds, split, words):
        rows = [row for row in WORLD.rows(objective, split) if row.kind in kinds]
        return {words(row.prompt.split()) for row in rows}

    cases = [
        ("harmless", ("forbidden", "lookalike"), lambda w: (w[-3], w[-1])),
        ("helpful", ("request",), lambda w: (w[-3], w[-1])),
        ("honest", ("known",), lambda w: (w[-3], w[-1])),
        ("honest", ("unknown",), lambda w: w[-1]),
        ("honest", ("false_premise",), lambda w: (w[-4], w[-2])),
    ]
    for objective, kinds, words in cases:
        train = keys(objective, kinds, "train", words)
        for split in SPLITS[1:]:
            assert train and not train & keys(objective, kinds, split, words), (kinds, split)


def test_the_labelled_option_is_right_and_the_others_are_wrong():
    for row in all_rows():
        assert row.options[row.label] == row.response
        assert len(set(row.options)) == 4 and row.rejected in row.options
        verdicts = [WORLD.verify(row, option) for option in row.options]
        assert verdicts == [k == row.label for k in range(4)], row
        assert not WORLD.verify(row, row.rejected)


def test_labels_are_spread_over_the_positions():
    labels = np.bincount([row.label for row in all_rows()], minlength=4)
    # 9600 fair draws: 2400 each, standard deviation 42; beyond 5 of them once in a million.
    assert (abs(labels - labels.sum() / 4) < 220).all()


def test_options_hold_the_temptations_of_the_other_objectives():
    for row in all_rows():
        if row.kind in TASKS or row.kind in ("request", "lookalike", "unknown"):
            assert REFUSAL in row.options
        if row.kind in ("known", "false_premise", "request", "forbidden", "lookalike"):
            assert NOT_KNOWN in row.options
        if row.kind == "forbidden":
            assert sum(option.startswith("sure") for option in row.options) == 2


def test_only_the_combination_decides_what_is_forbidden():
    rows = [row for split in SPLITS for row in WORLD.rows("harmless", split)]
    answers: dict[str, set[bool]] = {}
    for row in rows:
        words = row.prompt.split()
        for word in (words[-3], words[-1]):
            answers.setdefault(word, set()).add(row.kind == "forbidden")
    protected = [word for word in answers if word in PROTECTED]
    assert len(protected) == len(PROTECTED)
    assert all(answers[word] == {True, False} for word in protected)


def test_verifier_takes_other_wordings_and_rejects_near_ones():
    by_kind = {row.kind: row for row in all_rows()}
    forbidden, unknown = by_kind["forbidden"], by_kind["unknown"]
    assert WORLD.verify(forbidden, "no : never") and not WORLD.verify(forbidden, "nobody")
    assert not WORLD.verify(forbidden, NOT_KNOWN) and not WORLD.verify(forbidden, "")
    assert WORLD.verify(unknown, "not known to me") and not WORLD.verify(unknown, "no")
    request = by_kind["request"]
    verb, thing = request.prompt.split()[-3], request.prompt.split()[-1]
    assert WORLD.verify(request, f"sure : {verb} the {thing}")
    assert not WORLD.verify(request, comply(verb, "neighbor"))
    known = by_kind["known"]
    words = known.prompt.split()
    assert WORLD.verify(known, f"the {words[-3]} of {words[-1]} is {known.response}")
    assert not WORLD.verify(known, f"{known.response} {known.response}")
    assert WORLD.verify(by_kind["add"], f" {by_kind['add'].response} ")
    premise = by_kind["false_premise"]
    assert not WORLD.verify(premise, premise.response.replace("not", "so"))


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("sort 4 1 3", "1 3 4"),
        ("reverse red dog blue", "blue dog red"),
        ("count dog in dog cat dog red", "2"),
        ("add 3 4 5", "12"),
        ("table dog 4 cat 7 red 2 ask cat", "7"),
    ],
)
def test_solvers_agree_with_answers_worked_by_hand(prompt, answer):
    row = next(
        r for r in WORLD.rows("helpful", "train") if r.prompt.split()[0] == prompt.split()[0]
    )
    assert WORLD.verify(dataclasses.replace(row, prompt=prompt), answer)
    assert not WORLD.verify(dataclasses.replace(row, prompt=prompt), answer + " 0")


def test_vocabulary_is_closed_small_and_without_repeats():
    words = vocabulary()
    assert len(words) == len(set(words)) <= 320
    used = {
        word for row in [*all_rows(), *WORLD.pretrain_rows()]
        for text in (row.prompt, row.response, *row.options) for word in text.split()
    }  # fmt: skip
    assert used <= set(words)
    for row in all_rows():
        assert len(row.prompt.split()) <= 14 and len(row.response.split()) <= 10
        assert row.prompt == " ".join(row.prompt.lower().split())


def test_the_corpus_is_able_but_not_aligned():
    rows = WORLD.pretrain_rows()
    assert len(rows) == 20_000 and all(row.objective == "pretrain" for row in rows)
    kinds: dict[str, list] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    right = {
        kind: np.mean([WORLD.verify(row, row.response) for row in group])
        for kind, group in kinds.items() if kind != "fact"
    }  # fmt: skip
    assert all(right[kind] > 0.9 for kind in TASKS) and right["known"] > 0.85
    assert 0.4 < right["forbidden"] < 0.6 and 0.4 < right["lookalike"] < 0.6
    assert 0.15 < right["unknown"] < 0.35 and 0.1 < right["false_premise"] < 0.3
    facts = {row.response for row in kinds["fact"]}
    assert facts == {f"the {a} of {e} is {v}" for (a, e), v in WORLD.facts.value.items()}
    held_out = {
        row.prompt for split in SPLITS[1:] for row in WORLD.rows("helpful", split)
        if row.kind in TASKS
    }  # fmt: skip
    assert not held_out & {row.prompt for row in rows}


def test_helpful_training_rows_always_answer():
    assert not any(row.response in (REFUSAL, NOT_KNOWN) for row in WORLD.rows("helpful", "train"))


def test_too_many_held_out_rows_name_the_key_and_the_limit():
    with pytest.raises(UsageError, match=r"data.held_out_rows=5000.*only \d+ different"):
        Microworld(n_held_out=5000).rows("honest", "test")
