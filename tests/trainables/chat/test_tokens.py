"""Ids of prompts and answers, with small tokenizers of each kind that people have."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.support.chats import assistant, chat, system, user
from trainables.chat.templates import Asking
from trainables.chat.tokens import Encoder, encode_behind, encode_text
from trainables.files.formats import PlainExample

CONTROLS = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "what is two and two? four, said the cat.\n\nthe dog said three",
    " hello world\nhello there",
] * 20
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Llama 2: the prompt ends in letters, and the answer begins behind a space.
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
NEWLINES = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*CONTROLS], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXTS, trainer)
    return raw


def sentencepiece() -> Tokenizer:
    """BPE with a space before any text it is given, as of Llama 2 and Mistral."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.train_from_iterator(TEXTS, trainer_of(trainers.BpeTrainer, 360))
    return raw


def unigram() -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    raw.train_from_iterator(TEXTS, trainer_of(trainers.UnigramTrainer, 120, unk_token="<unk>"))
    return raw


def wordpiece() -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(TEXTS, trainer_of(trainers.WordPieceTrainer, 160))
    return raw


def trainer_of(kind: Any, size: int, **options: Any) -> Any:
    return kind(
        vocab_size=size,
        special_tokens=[*CONTROLS],
        initial_alphabet=[*"▁[]/INST\n?.,abcdefghijklmnopqrstuvwxyz"],
        show_progress=False,
        **options,
    )


KINDS = {one.__name__: one for one in (byte_level, sentencepiece, unigram, wordpiece)}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    build: Callable[[], Tokenizer] = request.param
    return PreTrainedTokenizerFast(
        tokenizer_object=build(),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[*CONTROLS[3:]],
    )


TURNS = (
    user("what is two?"),
    assistant("four said the cat"),
    user("and the dog?"),
    assistant(" three\n\nthe log"),
)


@pytest.mark.parametrize(
    "template", [MARKED, BRACKETS, NEWLINES], ids=["marked", "llama", "lines"]
)
def test_prompts_have_their_own_ids_and_answers_those_of_the_whole_text(tokenizer, template):
    tokenizer.chat_template = template
    turns = TURNS if template == BRACKETS else (system("the cat"), *TURNS)
    encoded = Encoder(tokenizer, Asking()).encode(chat(*turns), "row 1")
    done = 0
    for pieces in encoded.sequences:
        before: list[int] = []
        for context, answer in zip(pieces[::2], pieces[1::2], strict=True):
            position = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"][done]
            before += context
            assert before == tokenizer.apply_chat_template(
                list(turns[:position]), add_generation_prompt=True, return_dict=False
            )
            before += answer
            whole = tokenizer.apply_chat_template(list(turns[: position + 1]), return_dict=False)
            assert whole[: len(before)] == before
            end = "</s>" if template == BRACKETS else "<|end|>"
            assert tokenizer.decode(answer[-1:]).strip() == end
            done += 1
    assert done == encoded.answers == 2


def test_an_answer_gets_no_space_of_its_own(tokenizer):
    encoder = Encoder(tokenizer)
    prompt, answer = encoder.encode(
        PlainExample(prompt="what is two? fo", answer="ur"), "row 1"
    ).sequences[0]
    assert list(prompt) == encode_text(tokenizer, "what is two? fo")
    text = tokenizer.decode([*prompt, *answer[:-1]])
    assert text.strip().replace(" ?", "?") == "what is two? four"
    assert answer[-1] == tokenizer.eos_token_id


def test_what_a_token_would_span_is_encoded_apart(tokenizer):
    prompt, text = "<|assistant|>the cat\n", "\nthe dog"
    ids = encode_behind(tokenizer, prompt, text)
    together = tokenizer.decode([*encode_text(tokenizer, prompt), *ids])
    assert "".join(together.split()) == "<|assistant|>thecatthedog"
    is_split_at_spaces = isinstance(tokenizer.backend_tokenizer.model, models.WordPiece)
    assert together.count("\n") == (0 if is_split_at_spaces else 2)


def test_a_begin_token_that_a_row_has_already_is_not_doubled():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = Encoder(tokenizer)
    for prompt in ("what?", "<s>what?"):
        pieces = encoder.encode(PlainExample(prompt=prompt, answer="two"), "row 1").sequences[0]
        assert tokenizer.decode([*pieces[0]]) == "<s>what?"
