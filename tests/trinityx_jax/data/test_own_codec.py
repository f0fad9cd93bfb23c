import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinityx_jax.config import DataConfig
from trinityx_jax.data.codec import check_length, check_vocabulary
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.tokenizer import BOS, EOS, train_tokenizer
from trinityx_jax.errors import DataError

TOKENIZER = train_tokenizer(DataConfig(vocab_size=300), ["some text to train on"] * 3)
CODEC = OwnCodec(TOKENIZER, "{prompt} =")
texts = st.text(min_size=1, max_size=40).filter(lambda text: not text.isspace())


@given(texts, texts)
def test_prompt_and_response_can_be_read_back(prompt, response):
    prompt_ids, response_ids = CODEC.encode(prompt, response)
    assert prompt_ids[0] == BOS and response_ids[-1] == EOS
    assert BOS not in prompt_ids[1:] + response_ids and EOS not in prompt_ids + response_ids[:-1]
    # The tokenizer puts one space before a text that does not begin with white space.
    assert TOKENIZER.decode(prompt_ids[1:]).lstrip(" ") == f"{prompt} =".lstrip(" ")
    assert CODEC.decode(response_ids).lstrip(" ") == response.lstrip(" ")


def test_braces_in_the_prompt_are_left_alone():
    assert TOKENIZER.decode(CODEC.prompt("{prompt} {0} {x!r}")).strip() == "{prompt} {0} {x!r} ="


def test_long_prompt_keeps_its_end():
    whole = CODEC.prompt("abcdefghij" * 5)
    assert CODEC.prompt("abcdefghij" * 5, 9) == [BOS, *whole[-8:]]
    assert CODEC.prompt("abcdefghij" * 5, 1) == [BOS]
    assert CODEC.prompt("abcdefghij" * 5, len(whole)) == whole


ids = st.lists(st.integers(4, 99), min_size=1, max_size=30)


@given(ids, ids, st.integers(3, 40))
def test_shorten_keeps_the_prompt_s_end_and_the_response_s_beginning(prompt, response, length):
    prompt, response = [BOS, *prompt], [*response, EOS]
    p, r = CODEC.shorten(prompt, response, length)
    assert len(p) + len(r) == min(length, len(prompt) + len(response))
    assert p[0] == BOS and len(r) >= 1
    assert prompt[len(prompt) - len(p) + 1 :] == p[1:] and response[: len(r)] == r
    if len(prompt) + len(response) <= length:
        assert (p, r) == (prompt, response)
    elif len(response) <= length - length // 2:
        assert r == response  # only the prompt had to give way


def test_all_options_share_the_prompt_that_the_longest_leaves_room_for():
    prompt, options = "abcdefghij" * 3, ["x", "longer answer", "mid size"]
    whole, option_ids = CODEC.encode_options(prompt, options)
    assert whole == CODEC.prompt(prompt)
    assert option_ids == [CODEC.encode(prompt, option)[1] for option in options]
    longest = max(map(len, option_ids))
    short, same = CODEC.encode_options(prompt, options, max_length=30)
    assert same == option_ids and short == [BOS, *whole[longest - 29 :]]
    assert len(short) + longest == 30
    half, cut = CODEC.encode_options(prompt, [*options, "z" * 40], max_length=30)
    assert len(half) == 15 and cut[:3] == option_ids and len(cut[3]) == 15


def test_an_answer_without_tokens_names_the_row():
    with pytest.raises(DataError, match="row abc-8: an answer"):
        CODEC.encode("prompt", "", example_id="abc-8")
    with pytest.raises(DataError, match="row abc-9: option 1"):
        CODEC.encode_options("prompt", ["a", "", "b"], example_id="abc-9")


def test_checks_name_the_numbers():
    check_length([1, 2, 3], 3, "prompt 1")
    with pytest.raises(DataError, match="prompt 3 has 4 tokens, the context holds 3"):
        check_length([1, 2, 3, 4], 3, "prompt 3")
    check_vocabulary(CODEC, CODEC.vocab_size, "m")
    with pytest.raises(DataError, match=f"m: .* ids up to {CODEC.vocab_size - 1}, the model knows"):
        check_vocabulary(CODEC, CODEC.vocab_size - 1, "m")


def test_it_describes_itself():
    about = CODEC.describe()
    assert about["template"] == "{prompt} =" and about["tokenizer"] == "own"
    assert about["stop_ids"] == [EOS] == [CODEC.eos_id] and about["bos_id"] == BOS
    other = train_tokenizer(DataConfig(vocab_size=300), ["quite another text"] * 3)
    assert OwnCodec(other, "{prompt} =").describe()["tokenizer_sha256"] != about["tokenizer_sha256"]
