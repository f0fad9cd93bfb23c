"""Any of our models as a model of lm-evaluation-harness; needs the extra `eval`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from trinityx_jax.data.frame import auto_tokenizer
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.evaluation.plain_text import plain_text
from trinityx_jax.inference.generate import generate
from trinityx_jax.inference.packing import Question
from trinityx_jax.inference.sampling import Chooser, chooser
from trinityx_jax.inference.score import score_options
from trinityx_jax.language_model import LanguageModel

PREDICTED = 256  # tokens asked of one question: bounds the logits of a batch
WATCH_EVERY = 8  # steps between two looks at the text
MAX_GEN_TOKS = 256  # the harness' default

# ((context, continuation) or None, ids of the context, ids of the continuation)
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(TemplateLM):
    """A `LanguageModel` under one routing, for `lm_eval.simple_evaluate`.

    Prompts are the harness' own: the model's template is not used, its chat template only where the
    harness asks for it. Token ids are those of the harness' Hugging Face model; a context that is
    too long loses its beginning, as there. Generation uses the task's arguments alone, not
    generation_config.json's. `seed` is that of sampled answers.

    Raises UsageError for a routing that the model does not have.
    """

    def __init__(self, model: LanguageModel, routing: str = "", seed: int = 0):
        super().__init__()
        self.model, self.seed = model, seed
        self.routing = routing or model.default_routing
        model.setup.routing(self.routing, 1)
        self._files = {n: path for n, path in model.files.items() if isinstance(path, Path)}
        self.text = plain_text(model.setup.codec, self._files)

    @property
    def eot_token_id(self) -> int:
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text.start_id

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads."""
        return self.model.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        return self.model.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness' results tell about the model, of JSON types."""
        about = self.model.setup.codec.describe()
        unused = ("template", "rendered")  # the harness writes the prompts
        return {
            "model": self.model.name,
            "revision": about["revision"],
            "routing": self.routing,
            "tokenizer": {key: value for key, value in about.items() if key not in unused},
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self.text.encode(string, add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source. Raises UsageError where the model has none."""
        return self._chat.get_chat_template() if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model's chat template renders it.

        A template that refuses the system's turn gets the conversation without it, as in the
        harness' own models. Raises UsageError where there is no template.
        """
        import jinja2

        def render(turns: list[dict[str, str]]) -> str:
            return self._chat.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return render(chat_history)
        except jinja2.TemplateError:
            return render([turn for turn in chat_history if turn["role"] != "system"])

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each request's continuation.

        Raises DataError for a continuation without tokens and for one that does not fit the
        context.
        """
        for request in requests:
            if not any(request.arguments):
                raise DataError(
                    f"task {request.task_name}, row {request.doc_id}: an option is empty; mend it"
                )
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        packed = pack([self._fitted(*request) for request in requests])
        _report_cuts(
            sum(len(ids) + len(more) > self.max_length + 1 for _, ids, more in requests),
            self.max_length,
        )
        scores = score_options(
            self.model.setup, self.model.parameters, packed.questions, [self.routing]
        )[self.routing]
        at = (packed.question, packed.option)
        pairs = zip(scores.log_likelihood[at], scores.greedy[at], strict=True)
        return [(float(value), bool(greedy)) for value, greedy in pairs]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, in windows of the model's context."""
        windows: list[Request] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owner.append(i)
        total = np.zeros(len(requests))
        scores = self._loglikelihood_tokens(windows)
        np.add.at(total, np.array(owner, int), [value for value, _ in scores])
        return total.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, cut where the first of its `until` strings appears.

        Raises UsageError for generation arguments that are out of range or not known here.
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.arguments[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        for members in groups.values():
            how = Generation.read(
                requests[members[0]].arguments[1], self.text.token(self.text.eos_id)
            )
            contexts = [requests[i].args[0] for i in members]
            for i, text in zip(members, self._continue(contexts, how), strict=True):
                texts[i] = text
        return texts

    def _continue(self, contexts: Sequence[str], how: Generation) -> list[str]:
        room = self.max_length - how.tokens
        if room < 1:
            raise UsageError(
                f"the task asks for {how.tokens} new tokens, the model's context is "
                f"{self.max_length}; set max_gen_toks in its generation_kwargs"
            )
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text in contexts]
        _report_cuts(sum(len(ids) > room for ids in prompts), room)
        with tqdm(desc="answers", unit="token", disable=None) as bar:
            answers = generate(
                self.model.setup,
                self.model.parameters,
                [ids[-room:] for ids in prompts],
                self.routing,
                max_new_tokens=how.tokens,
                chooser=how.chooser,
                seed=self.seed,
                watch=_until(how.until, self.text.decode, bar),
                watch_every=WATCH_EVERY,
            )
        return [
            postprocess_generated_text(self.text.decode(answer.ids), how.until, None)
            for answer in answers
        ]

    def _fitted(self, pair: tuple[str, str] | None, context: list[int], ids: list[int]) -> Request:
        """The request with a context that fits."""
        option = f"the option {pair[1][:60]!r}" if pair else "a window"
        if not ids:
            raise DataError(f"{option} has no tokens behind its context; mend the task")
        if len(ids) > self.max_length:
            raise DataError(
                f"{option} has {len(ids)} tokens, the context holds {self.max_length}; leave its "
                "row out"
            )
        context = context or [self.prefix_token_id]
        return pair, context[-(self.max_length + 1 - len(ids)) :], ids

    @cached_property
    def _chat(self) -> Any:
        """transformers' tokenizer, which renders the template."""
        folders = {path.parent for path in self._files.values()}
        tokenizer = auto_tokenizer(folders.pop(), "the chat template") if folders else None
        if tokenizer is None or not tokenizer.chat_template:
            raise UsageError(f"{self.model.name}: no chat template; evaluate it without one")
        return tokenizer


class Packed(NamedTuple):
    """Questions, and which option of which question each request became, (N,) int each."""

    questions: list[Question]
    question: np.ndarray
    option: np.ndarray


def pack(requests: Sequence[Request]) -> Packed:
    """Continuations of the same context become options of one question, so it is read once.

    A question takes options up to `PREDICTED` tokens together; the next ones begin another.
    """
    questions: list[Question] = []
    newest: dict[tuple[int, ...], int] = {}
    places = np.zeros((len(requests), 2), int)
    for i, (_, context, ids) in enumerate(requests):
        q = newest.get(tuple(context))
        if q is None or questions[q].predicted + len(ids) > PREDICTED:
            q = newest[tuple(context)] = len(questions)
            questions.append(Question(context, []))
        places[i] = q, len(questions[q].options)
        questions[q] = Question(context, [*questions[q].options, ids])
    return Packed(questions, places[:, 0], places[:, 1])


class Generation(NamedTuple):
    """A task's generation arguments: strings that end an answer, most tokens, how to choose."""

    until: list[str]
    tokens: int
    chooser: Chooser

    @classmethod
    def read(cls, arguments: Mapping[str, Any], eos: str) -> Generation:
        """Raises UsageError for a value out of range and an argument not known here."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), MAX_GEN_TOKS))
        until = handle_stop_sequences(given.pop("until"), eos)
        tokens, sampled = given.pop("max_gen_toks"), given.pop("do_sample")
        temperature = float(given.pop("temperature", 0.0))
        top_k, top_p = int(given.pop("top_k", 0) or 0), float(given.pop("top_p", 1.0))
        if given.pop("num_beams", 1) != 1:
            raise UsageError("num_beams: answers are sampled or greedy, without beams; set it to 1")
        if given:
            raise UsageError(
                f"generation argument {min(given)!r} is not supported; known are until, "
                "max_gen_toks, do_sample, temperature, top_k and top_p"
            )
        return cls(until, tokens, chooser(temperature if sampled else 0.0, top_k, top_p))


def _until(
    until: Sequence[str], decode: Callable[[Sequence[int]], str], bar: tqdm
) -> Callable[[int, list[int]], bool]:
    """A watcher that ends an answer once one of the strings is in its text."""
    found: dict[int, list[int]] = {}

    def watch(row: int, new: list[int]) -> bool:
        bar.update(len(new))
        mine = found.setdefault(row, [])
        mine.extend(new)
        text = decode(mine)
        return any(stop and stop in text for stop in until)

    return watch


def _report_cuts(count: int, length: int) -> None:
    if count:
        logging.getLogger(__name__).warning(
            "%d contexts do not fit %d tokens: they lost their beginning", count, length
        )
