"""A Hugging Face folder's codec against transformers and lm-evaluation-harness' convention."""

import json
import sys

import pytest
from hf_folders import CHAT, SPECIAL, TEXTS, byte_level, metaspace, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trinityx_jax.data.hf_codec import load_hf_codec
from trinityx_jax.errors import DataError, UsageError

AutoTokenizer = pytest.importorskip("transformers").AutoTokenizer
TOKENIZERS = {"byte_level": byte_level, "metaspace": metaspace}
SPECIAL_IDS = set(range(len(SPECIAL)))


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("hf") / request.param, TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def plain(folder):
    return load_hf_codec(folder, "{prompt} =")


@pytest.fixture(scope="module")
def chat(folder):
    return load_hf_codec(folder, "chat")


words = st.lists(
    st.sampled_from("the fox yes no ? 1 2 3 quick = zebra é".split()), min_size=1, max_size=8
).map(" ".join)
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@once
@given(words, words)
def test_prompt_and_answer_are_the_harness_s(plain, theirs, prompt, answer):
    """Its `_encode_pair`: the joint ids behind as many as the context alone has."""
    context = f"{prompt} ="
    context_ids = theirs(context).input_ids
    want = theirs(f"{context} {answer}").input_ids[len(context_ids) :]
    assert plain.prompt(prompt) == context_ids
    assert plain.encode(prompt, answer) == (context_ids, [*want, 2])
    assert plain.encode_options(prompt, [answer, "yes"])[1][0] == want
    assert plain.decode(want) == theirs.decode(want, skip_special_tokens=True).removeprefix(" ")


@once
@given(words, words)
def test_white_space_at_the_prompt_s_end_goes_to_the_answer(folder, theirs, prompt, answer):
    codec = load_hf_codec(folder, "Q: {prompt}\nA:\n\n")
    context = f"Q: {prompt}\nA:"
    context_ids = theirs(context).input_ids
    want = theirs(f"{context}\n\n{answer}").input_ids[len(context_ids) :]
    assert codec.encode_options(prompt, [answer]) == (context_ids, [want])
    bare = load_hf_codec(folder, "{prompt}")
    with_space, without = bare.encode_options("fox", [" the", "the"])[1]
    assert with_space == without  # an answer that brings its own space gets no second one


@once
@given(words, words)
def test_chat_prompts_are_transformers(chat, theirs, prompt, answer):
    """The template's BOS comes once, although the post-processor would add one."""
    turn = [{"role": "user", "content": f" {prompt}\n"}]
    want = theirs.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert chat.prompt(f" {prompt}\n") == want and want.count(1) == 1
    prompt_ids, answer_ids = chat.encode(prompt, answer)
    text = theirs.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) + answer
    assert prompt_ids + answer_ids == [*theirs(text, add_special_tokens=False).input_ids, 2]


def test_a_chat_template_without_bos_gets_none(tmp_path):
    folder = write_folder(tmp_path, byte_level(), chat=CHAT.replace("{{ bos_token }}", ""))
    theirs = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(
        [{"role": "user", "content": "fox"}], add_generation_prompt=True, return_dict=False
    )
    assert load_hf_codec(folder, "chat").prompt("fox") == theirs and 1 not in theirs


def test_joint_ids_need_not_begin_with_the_prompt_s(tmp_path):
    """Merges reach over the border: the answer is what lies behind the prompt's length."""
    tokenizer = metaspace()
    codec = load_hf_codec(write_folder(tmp_path, tokenizer), "{prompt}")
    alone, joint = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in ("fox", "fox  the")
    )
    assert joint[: len(alone)] != alone
    assert codec.encode_options("fox  ", ["the"]) == ([1, *alone], [joint[len(alone) :]])


@pytest.mark.parametrize("text", [*SPECIAL, "a</s>b", "<|user|><|end|>", "</s", "s>"])
def test_special_tokens_in_a_row_s_text_stay_text(plain, chat, text):
    for codec in (plain, chat):
        empty = [i for i in codec.prompt("x") if i in SPECIAL_IDS]
        ids = codec.prompt(text)
        assert [i for i in ids if i in SPECIAL_IDS] == empty
        response = codec.encode(f"ask {text}", f"say {text}")[1]
        assert not SPECIAL_IDS & set(response[:-1]) and response[-1] == 2
        assert codec.decode(response).replace(" ", "") == f"say {text}".replace(" ", "")


def test_special_tokens_are_not_made_where_texts_meet(folder):
    codec = load_hf_codec(folder, "{prompt}<|assistant|>s>")
    assert [i for i in codec.prompt("ask </") if i in SPECIAL_IDS] == [1, 4]
    assert [i for i in codec.prompt("ask <") if i in SPECIAL_IDS] == [1, 4]
    behind = load_hf_codec(folder, "<|user|></{prompt}")
    assert [i for i in behind.prompt("s> x") if i in SPECIAL_IDS] == [1, 3]
    bare = load_hf_codec(folder, "{prompt}</")
    assert not SPECIAL_IDS & set(bare.encode("x", "s>")[1][:-1])


def test_special_tokens_of_a_template_are_special_and_bos_comes_once(folder, theirs):
    template = "<s><|user|>\n{prompt}<|end|>\n<|assistant|>"
    ids = load_hf_codec(folder, template).prompt("fox")
    text = template.replace("{prompt}", "fox")
    assert ids == theirs(text, add_special_tokens=False).input_ids and ids[0] == 1 != ids[1]


def test_a_cut_prompt_keeps_what_stands_before_it(plain, chat):
    long = "fox dog " * 40
    for codec, kept in ((plain, 1), (chat, len(chat.head))):
        whole, short = codec.prompt(long), codec.prompt(long, 30)
        assert len(short) == 30 and short[:kept] == whole[:kept] == list(codec.head)
        assert short[kept:] == whole[len(whole) - 30 + kept :]
    assert 1 in chat.head and 3 in chat.head  # <s> and <|user|>
    prompt, options = chat.encode_options(long, ["yes", "no " * 9], max_length=60)
    assert prompt[: len(chat.head)] == list(chat.head)
    assert len(prompt) + max(map(len, options)) == 60


def test_bos_where_only_the_configuration_asks_for_it(tmp_path):
    """DeepSeek's way: no post-processor, and transformers 4 obeyed `add_bos_token`."""
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    files = {"tokenizer_config": config}
    asks = write_folder(tmp_path / "a", byte_level(), post_processor=False, files=files)
    ids = load_hf_codec(asks, "{prompt}").prompt("fox")
    config["add_bos_token"] = False
    none = write_folder(tmp_path / "b", byte_level(), post_processor=False, files=files)
    assert ids == [1, *load_hf_codec(none, "{prompt}").prompt("fox")]
    with pytest.raises(DataError, match="row r1: the prompt has no tokens"):
        load_hf_codec(none, "{prompt}").encode("", "yes", example_id="r1")


def test_what_a_post_processor_appends_does_not_come(tmp_path):
    from tokenizers import processors

    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    folder = write_folder(tmp_path, tokenizer, post_processor=False)
    ids = load_hf_codec(folder, "{prompt}").prompt("fox")
    assert ids[0] == 1 and 2 not in ids


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    codec = load_hf_codec(write_folder(tmp_path, tokenizer), "{prompt}")
    assert 20 < len(codec.prompt("zebra " * 10)) < 100 and 0 not in codec.prompt("zebra " * 10)


@pytest.mark.parametrize(
    ("files", "stop", "pad"),
    [
        ({}, (2,), 0),
        ({"config": {"eos_token_id": [5, 2]}}, (2, 5), 0),
        ({"generation_config": {"eos_token_id": [2, 5]}, "config": {"eos_token_id": 3}}, (2, 5), 0),
        (
            {"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "<|end|>"}}},
            (5, 2),
            5,
        ),
        ({"tokenizer_config": {}, "config": {"eos_token_id": 3, "pad_token_id": -1}}, (3,), 3),
        ({"tokenizer_config": {"eos_token": "</s>", "pad_token": "[new]"}}, (2,), 2),
    ],
)
def test_special_ids_come_from_every_file(tmp_path, files, stop, pad):
    codec = load_hf_codec(write_folder(tmp_path, byte_level(), files=files), "{prompt}")
    assert (codec.stop_ids, codec.eos_id, codec.pad_id) == (stop, stop[0], pad)


def test_it_describes_itself(folder):
    codec = load_hf_codec(folder, "chat", source="org/name", revision="v1")
    about = codec.describe()
    assert (about["template"], about["tokenizer"], about["revision"]) == ("chat", "org/name", "v1")
    assert about["rendered"] == "<s><|user|>\n{prompt}<|end|>\n<|assistant|>\n"
    assert (about["bos_id"], about["eos_id"], about["pad_id"]) == (1, 2, 0)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values()
    assert about["vocab_size"] == max(ids) + 1


def test_mistakes_are_one_clear_line(tmp_path, monkeypatch):
    def fails(error, words, folder, template="{prompt}"):
        with pytest.raises(error, match=words) as caught:
            load_hf_codec(folder, template)
        assert "\n" not in str(caught.value)

    fails(UsageError, "neither tokenizer.json nor tokenizer.model", tmp_path)
    bare = write_folder(tmp_path / "bare", byte_level(), chat=None)
    fails(UsageError, "has no chat template", bare, "chat")
    odd = write_folder(tmp_path / "odd", byte_level(), chat=CHAT.replace("trim", "upper"))
    fails(DataError, "does not simply insert the prompt", odd, "chat")
    broken = write_folder(tmp_path / "broken", byte_level(), chat="{% if %}")
    fails(DataError, "chat template of .*broken", broken, "chat")
    refuses = "{{ raise_exception('no\nuser') }}"
    fails(DataError, "no user", write_folder(tmp_path / "r", byte_level(), chat=refuses), "chat")
    (bare / "tokenizer.json").write_text("{")
    fails(DataError, r"tokenizer.json: damaged", bare)
    files = {"tokenizer_config": {}, "config": {"eos_token_id": "2"}}
    bad_id = write_folder(tmp_path / "c", byte_level(), files=files)
    fails(DataError, "eos_token_id must be an id", bad_id)
    files = {"tokenizer_config": {}, "config": {}}
    fails(
        DataError, "no end-of-text token", write_folder(tmp_path / "d", byte_level(), files=files)
    )
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    fails(UsageError, r'sentencepiece; pip install "trinityx-jax\[hf\]"', tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    fails(UsageError, r'pip install "trinityx-jax\[hf\]"', odd, "chat")


def test_a_row_without_an_answer_is_named(plain):
    with pytest.raises(DataError, match="row r7: option 1 has no tokens"):
        plain.encode_options("fox", ["yes", ""], example_id="r7")
    with pytest.raises(DataError, match="row r8: an answer has no tokens"):
        plain.encode("fox", "", example_id="r8")


def test_a_sentencepiece_model_alone_will_do(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(TEXTS).replace("\n\n", " "))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=320,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    prompt, answer = load_hf_codec(tmp_path, "{prompt} =").encode("the quick dog", "yes or no")
    assert prompt == [1, *model.encode("the quick dog =")]
    assert prompt[1:] + answer == [*model.encode("the quick dog = yes or no"), 2]
