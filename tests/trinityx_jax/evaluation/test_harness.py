"""Our models in lm-evaluation-harness against its own Hugging Face model, and `trinityx eval`."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from arbitrage import ScoreTable
from trinityx_jax.data.hf_codec import load_hf_codec
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.evaluation.plain_text import plain_text
from trinityx_jax.language_model import LanguageModel, from_pretrained, from_run

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from trinityx_jax.commands import evaluate as command
from trinityx_jax.evaluation import harness as module
from trinityx_jax.evaluation.harness import Generation, HarnessModel, pack

QUESTIONS = [
    ("Is the sky blue?", ["Yes", "No, the sky is no sky", "the"], 0),
    ("The answer is", ["the user", "no."], 1),
    ("", ["The sky is blue.", "blue the is"], 0),  # an empty context
    ("the sky and " * 90, ["no", "the assistant is blue"], 1),  # longer than the context
    ("Ends in a space ", ["a", "bb", "ccc", "dddd"], 3),
]
TEXTS = ["The answer is no. " * 60, "Is it?", "the user and the assistant"]  # the first: 3 windows
STARTS = ["The answer is", "sky", "the user and the assistant? " * 45, "Is the"]
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "no."
generation_kwargs: {until: [UNTIL], max_gen_toks: 20, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """The harness' data sets come from files; nothing asks the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, ours) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = {
        "choices": [{"question": q, "options": o, "label": i} for q, o, i in QUESTIONS],
        "rolling": [{"text": text} for text in TEXTS],
        "answers": [{"question": text} for text in STARTS],
    }
    free = ours.generate_until([request("generate_until", STARTS[0], {"max_gen_toks": 20})])[0]
    for name, text in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}"
        body = text.replace("UNTIL", json.dumps(free[4:7]))
        (folder / f"{name}.yaml").write_text(f"{head}\ntest_split: test\n{body}")
    return folder


@pytest.fixture(scope="module")
def folder(pretrained) -> Path:
    return pretrained("llama")


@pytest.fixture(scope="module")
def llama(folder) -> LanguageModel:
    return from_pretrained(folder, batch_size=4)


@pytest.fixture(scope="module")
def ours(llama) -> HarnessModel:
    return HarnessModel(llama)


@pytest.fixture(scope="module")
def theirs(folder):
    HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def mixture(tiny_run) -> LanguageModel:
    """Experts, router and a tokenizer of our own."""
    return from_run(tiny_run.directory, batch_size=2)


def evaluated(model, tasks: Path, names, **options) -> Any:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(
        model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options
    )


def request(kind: Any, *arguments) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", 7, 1))


def replies(results, task: str):
    return [row["filtered_resps"] for row in results["samples"][task]]


def test_equals_the_harness_s_own_model(ours, theirs, tasks, caplog):
    got, want = (evaluated(model, tasks, TASKS) for model in (ours, theirs))
    for task in ("choices", "rolling"):
        assert [row["arguments"] for row in got["samples"][task]] == [
            row["arguments"] for row in want["samples"][task]
        ]
    for mine, others in zip(replies(got, "choices"), replies(want, "choices"), strict=True):
        np.testing.assert_allclose(
            [value for value, _ in mine], [value for value, _ in others], atol=1e-3
        )
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in others]
    np.testing.assert_allclose(replies(got, "rolling"), replies(want, "rolling"), rtol=1e-5)
    assert replies(got, "answers") == replies(want, "answers")
    assert len(set(map(str, replies(got, "answers")))) == len(STARTS)
    for task in TASKS:
        assert set(got["results"][task]) == set(want["results"][task])
        for name, value in want["results"][task].items():
            if isinstance(value, float):
                assert got["results"][task][name] == pytest.approx(value, rel=1e-4), name
    mine = [m for m in caplog.messages if "they lost their beginning" in m]
    assert mine == ["2 contexts do not fit 256 tokens: they lost their beginning",
                    "1 contexts do not fit 236 tokens: they lost their beginning"]  # fmt: skip


def test_chat_template_and_few_shot_prompts_equal_theirs(ours, theirs, tasks):
    options = {"limit": 2, "apply_chat_template": True, "num_fewshot": 1}
    got, want = (evaluated(model, tasks, ["choices"], **options) for model in (ours, theirs))
    sent = [row["arguments"] for row in got["samples"]["choices"]]
    assert sent == [row["arguments"] for row in want["samples"]["choices"]]
    assert sent[0][0][0].startswith("[user]") and sent[0][0][0].endswith("[assistant]")
    for mine, others in zip(replies(got, "choices"), replies(want, "choices"), strict=True):
        np.testing.assert_allclose(
            [value for value, _ in mine], [value for value, _ in others], atol=1e-3
        )


@pytest.mark.parametrize("text", ["", "sky", " the  sky ", "<s>[user] no", "no</s>", "Ünï→\n\n"])
def test_token_ids_are_theirs(ours, theirs, text):
    assert ours.tok_encode(text) == theirs.tok_encode(text)
    for added in (False, True):
        want = theirs.tok_encode(text, add_special_tokens=added)
        assert ours.tok_encode(text, add_special_tokens=added) == want
    assert ours.text.decode(want) == theirs.tok_decode(want)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, 1)
    assert ours.max_length == theirs.max_length


def test_an_empty_context_is_bos_only_where_the_tokenizer_s_files_name_it(folder, tmp_path):
    """config.json names one too, which transformers' tokenizer does not know of."""
    transformers = pytest.importorskip("transformers")
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": None}))
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).bos_token_id is None
    text = plain_text(load_hf_codec(tmp_path, "{prompt}"), {path.name: path})
    assert (text.start_id, text.prefix) == (1, ())


def test_routings_differ(mixture, tasks):
    found = {}
    for routing in ("", "helpful"):
        results = evaluated(HarnessModel(mixture, routing), tasks, ["choices"], limit=1)
        assert results["config"]["routing"] == (routing or "mixture")
        assert results["config"]["tokenizer"]["tokenizer"] == "own"
        found[routing] = np.array(
            [[value for value, _ in row] for row in replies(results, "choices")]
        )
    assert found[""].shape == (1, 3)
    assert np.abs(found[""] - found["helpful"]).min() > 1e-4


def test_a_run_with_its_own_tokenizer(mixture):
    """Against one full forward pass of the ids, written out."""
    ours = HarnessModel(mixture, "harmless")
    encode = ours.text.tokenizer.encode
    context, option = "who is the", " the"
    n, both = len(encode(context).ids), encode(context + option).ids
    assert both[:n] == encode(context).ids and len(both) > n  # else the text does not fit the test
    logits = np.asarray(mixture(np.array([[1, *both]]), routing="harmless"))[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = sum(log_p[j, token] for j, token in enumerate(both) if j >= n)
    [(got, _)] = ours.loglikelihood([request("loglikelihood", context, option)])
    assert got == pytest.approx(want, abs=1e-4)
    with pytest.raises(UsageError, match="no chat template"):
        ours.chat_template(True)


def test_options_of_one_context_share_it():
    a, b = [1, 2], [3]
    requests = [(None, a, [5]), (None, b, [6, 7]), (None, a, [8, 9]), (None, b, [6, 7])]
    packed = pack(requests)
    assert packed.questions == [(a, [[5], [8, 9]]), (b, [[6, 7], [6, 7]])]
    assert packed.question.tolist() == [0, 1, 0, 1] and packed.option.tolist() == [0, 0, 1, 1]


def test_a_question_takes_so_many_tokens(monkeypatch):
    monkeypatch.setattr(module, "PREDICTED", 3)
    packed = pack([(None, [1], ids) for ids in ([2], [3, 4], [5], [6, 7, 8, 9])])
    assert packed.questions == [([1], [[2], [3, 4]]), ([1], [[5]]), ([1], [[6, 7, 8, 9]])]
    assert packed.question.tolist() == [0, 0, 1, 2] and packed.option.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repetition_penalty": 2}, "'repetition_penalty' is not supported; known are until"),
        ({"num_beams": 4}, "num_beams"),
        ({"do_sample": True, "temperature": -1}, "temperature=-1"),
        ({"max_gen_toks": 256}, "asks for 256 new tokens, the model's context is 256"),
    ],
)
def test_bad_generation_arguments_are_named(ours, arguments, message):
    with pytest.raises(UsageError, match=message):
        ours.generate_until([request("generate_until", "a", arguments)])


def test_generation_arguments():
    how = Generation.read({"until": "\n", "temperature": 0.7, "top_p": 0.9, "max_tokens": 5}, "E")
    assert how.until == ["\n", "E"] and how.tokens == 5
    assert how.chooser == module.chooser(0.7, 0, 0.9)
    greedy = Generation.read({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, "E")
    assert greedy.chooser == module.chooser() and greedy.tokens == 256


def test_an_answer_ends_where_a_stop_string_appears():
    """Also one that reaches over two looks, and each row by itself."""
    from tqdm import tqdm

    watch = module._until(["xy", ""], lambda ids: "".join(map(chr, ids)), tqdm(disable=True))
    steps = [(0, "ax"), (1, "y"), (1, "x"), (0, "yb"), (1, "z")]
    assert [watch(i, list(map(ord, new))) for i, new in steps] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_sampled_repeats_differ_and_follow_the_seed(llama):
    asked = [request("generate_until", "sky", {"do_sample": True, "temperature": 2.0,
                                               "max_gen_toks": 20})] * 3  # fmt: skip
    first, again, other = (HarnessModel(llama, seed=s).generate_until(asked) for s in (1, 1, 2))
    assert len(set(first)) == 3 and first == again and first != other


def test_bad_options_are_named(ours):
    with pytest.raises(DataError, match="task task, row 7: an option is empty"):
        ours.loglikelihood([request("loglikelihood", "", "")])
    with pytest.raises(DataError, match="the option '' has no tokens behind its context"):
        ours.loglikelihood([request("loglikelihood", "a", "")])
    with pytest.raises(DataError, match=r"the option ' no no .* tokens, the context holds 256"):
        ours.loglikelihood([request("loglikelihood", "a", " no" * 300)])
    with pytest.raises(UsageError, match="has no experts"):
        HarnessModel(ours.model, "helpful")


def test_imports_without_torch_and_transformers():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None);"
        "import trinityx_jax.evaluation.harness, lm_eval.evaluator"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def own_tasks_only(monkeypatch):
    """The harness reads its ten thousand task files otherwise."""
    import lm_eval.tasks

    only = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", only)


def test_command_writes_results_and_samples(
    folder, tasks, ours, own_tasks_only, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "open_model", lambda options: ours.model)
    options = command.Options(
        model=str(folder), tasks=("cho*", "rolling"), include_path=tasks, seed=3, log_samples=True,
        output=tmp_path / "results.json", limit=3,
    )  # fmt: skip
    command.run(options)
    printed = capsys.readouterr().out
    assert "|choices|" in printed and "word_perplexity" in printed
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["model"] == str(folder) and found["routing"] == "backbone"
    assert (
        found["codec"]["tokenizer_sha256"] == ours.model.setup.codec.describe()["tokenizer_sha256"]
    )
    assert found["versions"]["jax"] == jax.__version__ and found["lm_eval_version"]
    assert found["config"]["limit"] == 3 and found["config"]["random_seed"] == 3
    table = ScoreTable.read(tmp_path / "samples_choices.jsonl")
    want = ours.loglikelihood(
        [request("loglikelihood", q, f" {o}") for q, options, _ in QUESTIONS[:3] for o in options]
    )
    np.testing.assert_allclose(table.scores[table.mask], [value for value, _ in want], atol=1e-5)
    np.testing.assert_array_equal(np.array(table.label), [label for *_, label in QUESTIONS[:3]])
    accuracy = np.mean(table.scores.argmax(axis=1) == table.label)
    assert found["results"]["choices"]["acc,none"] == pytest.approx(accuracy)
    with pytest.raises(UsageError, match=r"results.json already exists: pass --overwrite"):
        command.run(options)
    (tmp_path / "results.json").unlink()
    with pytest.raises(UsageError, match=r"samples_choices.jsonl already exists"):
        command.run(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("nosuch",)}, "--tasks nosuch: lm-eval knows no such task"),
        ({"tasks": ()}, "--tasks: name one or more"),
        ({"template": "chat"}, "--template: the harness writes the prompts"),
        ({"limit": 0}, "--limit 0: at least 1"),
        ({"num_fewshot": -1}, "--num-fewshot -1: at least 0"),
        ({"log_samples": True}, "--log-samples: give --output"),
        ({"routing": "kind"}, "routing 'kind': this model has no experts"),
        ({"include_path": Path("nowhere")}, "--include-path nowhere: no such folder"),
    ],
)
def test_command_names_bad_options(folder, tasks, own_tasks_only, changes, message):
    options = command.Options(model=str(folder), tasks=("choices",), include_path=tasks)
    with pytest.raises(UsageError, match=message):
        command.run(dataclasses.replace(options, **changes))


def test_command_without_the_harness(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "trinityx-jax\[eval\]"'):
        command.run(command.Options(model="m", tasks=("t",)))


def test_command_names_a_task_that_cannot_be_loaded(ours, own_tasks_only, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "open_model", lambda options: ours.model)
    missing = tmp_path / "missing.jsonl"
    (tmp_path / "broken.yaml").write_text(
        f"task: broken\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {missing}}}}}\n"
        f"test_split: test\n{TASKS['choices']}"
    )
    with pytest.raises(DataError, match=r"task broken: cannot be loaded \(.*missing.jsonl"):
        command.run(command.Options(model="m", tasks=("broken",), include_path=tmp_path))


@pytest.mark.parametrize("flag", ["UNSAFE_CODE", "MULTIMODAL"])
def test_tasks_that_eval_does_not_do_are_refused(flag):
    task = SimpleNamespace(task_name="odd", **{flag: True})
    manager = SimpleNamespace(load=lambda names: {"tasks": {"odd": task}})
    with pytest.raises(UsageError, match="task odd"):
        command._load(manager, ["odd"])  # pyright: ignore[reportArgumentType]
