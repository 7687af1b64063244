"""How answers are found in chats, one at a time, under templates of each kind."""

from typing import Any

import pytest

from tests.support.chats import (
    TOOLS,
    assistant,
    byte_tokenizer,
    call,
    chat,
    result,
    system,
    user,
)
from trainables.chat.asking import settle_asking
from trainables.chat.templates import Asking, pin_date, template_digest
from trainables.chat.tokens import EncodedExample, Encoder
from trainables.errors import DataError
from trainables.files.formats import ChatExample

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
GLM = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>"
    "{% else %}</think>{% endif %}{% endif %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
    "{% endif %}"
)
MISTRAL = (  # the system text goes into the last turn of a user
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set told = '' %}{% set turns = messages %}"
    "{% endif %}{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (told if loop.last else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ENDLESS = (  # no token behind the last answer: the next turn's opens where it ends
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
DATED = "{{ '<|system|>' + strftime_now('%d %b %Y') + '<|end|>' }}" + PHI3
CALLS = (
    "{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{%- for m in messages %}<|{{ m['role'] }}|>{{ m['content'] or '' }}"
    "{%- for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] + ' ' }}"
    "ARGUMENTS</call>{% endfor %}<|end|>{% endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
AS_MAPPING = CALLS.replace("ARGUMENTS", "{{ c['function']['arguments'] | tojson }}")
AS_TEXT = CALLS.replace("' }}ARGUMENTS", "' + c['function']['arguments'] }}")
PRINTED = CALLS.replace("ARGUMENTS", "{{ c['function']['arguments'] }}")

NEEDS_TOOLS = (  # cannot be rendered without tools; a last result ends otherwise
    "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}"
    "</call>{% endfor %}{{ '\n' if m['role'] == 'tool' and not loop.last }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHANNELS = (  # thoughts before a call are dropped once a final answer follows
    "{% for m in messages %}{% set later = messages[loop.index:] | selectattr('role', 'eq', "
    "'assistant') | list %}{% if m['role'] != 'assistant' %}<|start|>{{ m['role'] }}<|message|>"
    "{{ m['content'] }}<|end|>{% else %}{% if m['reasoning_content'] and not later %}<|start|>"
    "assistant<|channel|>analysis of what was asked<|message|>{{ m['reasoning_content'] }}<|end|>"
    "{% endif %}{% if m['tool_calls'] %}{% for c in m['tool_calls'] %}<|start|>assistant to="
    "{{ c['function']['name'] }}<|message|>{{ c['function']['arguments'] | tojson }}<|call|>"
    "{% endfor %}{% else %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ENDS_EARLY = (  # an empty turn before the turn of a call
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% for c in m['tool_calls'] or [] %}<|tool|>{{ c['function']['name'] }} "
    "{{ c['function']['arguments'] | tojson }}<|end|>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ALWAYS_OPEN = (  # the opening of an answer stands at the end of every conversation
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}"
    "<|end|>{% endfor %}<|start|>assistant<|message|>"
)
OPENS_PART = (  # as Command R7B: prompts open more than stands at the end of every conversation
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{% if m['role'] == 'assistant' %}"
    "<|answer|>{{ m['content'] }}<|answered|>{% else %}{{ m['content'] }}{% endif %}<|end|>"
    "{% endfor %}<|start|>assistant<|message|>"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
OPEN_WORDS = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{{ '### assistant:\n' }}"
)
JUDGED = (  # a conversation to judge, not to continue
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "Was the last turn safe? Say yes or no.\n"
)
SPACED = (  # one more newline before the opening, and one behind it, than in a conversation
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}"
    "<|end|>{{ '\n' if loop.last }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
SPACED_THOUGHTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}<think>"
    "{{ parts[0] | replace('<think>', '') | trim if parts[1:] }}</think>{{ parts[-1] | trim }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}<|end|>{{ '\n' if loop.last }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
)
WIDE = (  # as DeepSeek's in servers: each indented line of the template writes its spaces
    "{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}"
    "      <|Assistant|>    </think>      {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}  <|Assistant|>  </think>{% endif %}"
)
OTHER_ROLE = (  # prompts name the role otherwise
    "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant: {% endif %}"
)
CALLS_ALONE = (  # no words beside a call; a last question is told how to call
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ 'Call a tool. ' if loop.last }}"
    "{{ m['content'] }}<|assistant|>{% elif m['tool_calls'] %}<call>"
    "{{ m['tool_calls'][0]['function']['name'] }}</call><|end|>{% else %}{{ m['content'] }}<|end|>"
    "{% endif %}{% endfor %}"
)
ONE_OPENING = (  # calls, results and the answer are one turn, but each prompt opens a turn
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|end|>"
    "{% elif m['role'] == 'tool' %}[{{ m['content'] }}]{% else %}"
    "{{ '<|assistant|>' if loop.previtem['role'] == 'user' }}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['arguments'] | tojson }}"
    "{{ c['function']['name'] }}</call>{% endfor %}"
    "{{ '<|end|>' if not m['tool_calls'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALL_KEYS = CALLS.replace("{{ c['function']['name'] + ' ' }}ARGUMENTS", "{{ c | tojson }}")

TWO = (user("one?"), assistant("two"), user("three?"), assistant("four"))


def learn(
    tokenizer: Any, *chats: ChatExample, stops: tuple[str, ...] = (), **args: Any
) -> tuple[Asking, list[list[str]]]:
    """The settings, and for each sequence its pieces as text; prompts are kept, too."""
    ids = tokenizer.convert_tokens_to_ids(list(stops))
    asking = settle_asking(chats, tokenizer, template_args=args, stops=ids)
    encoder = Encoder(tokenizer, asking, ids)
    encoded = [encoder.encode(one, "data.train: row 1") for one in chats]
    return asking, [texts for one in encoded for texts in texts_of(one, tokenizer)]


def texts_of(encoded: EncodedExample, tokenizer: Any) -> list[list[str]]:
    return [[tokenizer.decode(list(piece)) for piece in one] for one in encoded.sequences]


def test_an_answer_ends_as_the_template_ends_turns_and_not_with_the_tokenizers_end():
    tokenizer = byte_tokenizer(CHATML, "<|endoftext|>")
    _, (pieces,) = learn(tokenizer, chat(*TWO), stops=("<|endoftext|>",))
    assert pieces[1::2] == ["two<|im_end|>", "four<|im_end|>"]
    encoded = Encoder(tokenizer, Asking()).encode(chat(*TWO), "row 1")
    assert encoded.ends == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize("stops", [(), ("<|end|>", "<|endoftext|>"), ("<|endoftext|>",)])
def test_a_token_that_closes_the_whole_conversation_ends_no_answer(stops):
    tokenizer = byte_tokenizer(PHI3, "<|endoftext|>", ("<|user|>", "<|assistant|>"))
    _, (pieces,) = learn(tokenizer, chat(*TWO), stops=stops)
    assert pieces[1::2] == ["two<|end|>", "four<|end|>"]


def test_an_answer_without_an_end_ends_with_what_opens_the_next_turn():
    tokenizer = byte_tokenizer(ENDLESS, controls=("<|user|>", "<|assistant|>"))
    _, (pieces,) = learn(tokenizer, chat(*TWO))
    assert pieces[1::2] == ["two\n<|user|>", "four\n<|user|>"]


def test_an_end_token_is_appended_where_a_template_writes_none():
    _, sequences = learn(byte_tokenizer(PLAIN_WORDS), chat(*TWO))
    assert [pieces[1] for pieces in sequences] == ["two</s>", "four</s>"]
    assert sequences[1][0].endswith("two\n\n### user:\nthree?\n\n### assistant:\n")


def test_an_opened_thought_is_cut_off_prompts_of_rows_without_thoughts():
    tokenizer = byte_tokenizer(R1, controls=("<think>", "</think>", "<|User|>", "<|Assistant|>"))
    asking, (pieces,) = learn(tokenizer, chat(*TWO))
    assert asking.prefill_cut == "<think>\n"
    assert pieces == [
        "<|User|>one?<|Assistant|>", "two</s>", "<|User|>three?<|Assistant|>", "four</s>",
    ]  # fmt: skip


def test_an_opening_of_another_width_is_not_cut_off_prompts():
    controls = ("</think>", "<|User|>", "<|Assistant|>")
    tokenizer = byte_tokenizer(WIDE, "<|end|>", controls)
    asking, (pieces,) = learn(tokenizer, chat(*TWO[:2]))
    assert asking.prefill_cut == ""
    assert pieces == ["<|User|>one?  <|Assistant|>  </think>", "      two<|end|>"]


def test_the_role_of_an_answer_is_not_cut_off_prompts():
    tokenizer = byte_tokenizer(OTHER_ROLE)
    one = chat(*TWO[:2])
    assert settle_asking([one], tokenizer).prefill_cut == ""
    with pytest.raises(DataError, match="does not render it as its prompt with an answer behind"):
        learn(tokenizer, one)


def test_thoughts_go_on_from_the_prompt_that_opens_them():
    tokenizer = byte_tokenizer(R1, controls=("<think>", "</think>", "<|User|>", "<|Assistant|>"))
    written = chat(user("one?"), assistant("<think>\nlook\n</think>\n\ntwo"))
    beside = chat(user("one?"), assistant("two", reasoning_content="look"))
    asking, sequences = learn(tokenizer, written, beside)
    assert asking.prefill_cut == ""
    right = ["<|User|>one?<|Assistant|><think>\n", "look\n</think>\n\ntwo</s>"]
    assert sequences == [right, right]


def test_a_thinking_argument_is_switched_where_prompts_then_fit_the_answers():
    controls = ("<think>", "</think>", "<|user|>", "<|assistant|>")
    tokenizer = byte_tokenizer(GLM, controls=controls)
    asking, (pieces,) = learn(tokenizer, chat(user("one?"), assistant("two")))
    assert asking.template_args == {"enable_thinking": False}
    assert pieces == ["<|user|>one?<|assistant|></think>", "two<|user|>"]
    thought = chat(user("one?"), assistant("two", reasoning_content="look"))
    asking, (pieces,) = learn(tokenizer, thought)
    assert asking.template_args == {}
    assert pieces == ["<|user|>one?<|assistant|><think>", "look</think>two<|user|>"]


def test_words_are_moved_behind_a_prompt_that_the_rendered_chat_does_not_begin_with():
    tokenizer = byte_tokenizer(MISTRAL, controls=("[INST]", "[/INST]"))
    _, sequences = learn(tokenizer, chat(system("Rule."), *TWO))
    assert sequences == [
        ["<s>[INST] Rule.\n\none?[/INST]", " two</s>"],
        ["<s>[INST] one?[/INST] two</s>[INST] Rule.\n\nthree?[/INST]", " four</s>"],
    ]


def test_a_written_day_is_pinned():
    tokenizer = byte_tokenizer(DATED, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>"))
    one = chat(user("one?"), assistant("two"))
    asking, (pieces,) = learn(tokenizer, one)
    assert pieces[0].startswith("<|system|>26 Jul 2024<|end|>")
    other, (pieces,) = learn(tokenizer, one, strftime_now="2026-01-31")
    assert pieces[0].startswith("<|system|>31 Jan 2026<|end|>")
    assert template_digest(tokenizer, asking) != template_digest(tokenizer, other)


def test_a_day_that_is_none_is_refused():
    with pytest.raises(DataError, match=r"template_args.strftime_now: got 'soon'; allowed: a day"):
        pin_date(DATED, "soon")


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("template", [AS_MAPPING, AS_TEXT, PRINTED])
def test_calls_are_learned_with_their_arguments_as_json(template, arguments):
    tokenizer = byte_tokenizer(template, "<|end|>", ("<|user|>", "<|assistant|>", "<|tool|>"))
    turns = (user("warm?"), call(arguments, content=None), result("yes"), assistant("It is."))
    _, (pieces,) = learn(tokenizer, chat(*turns, tools=TOOLS))
    assert pieces[1::2] == ['<call>get_weather {"city": "Paris"}</call><|end|>', "It is.<|end|>"]
    assert '"description": "Weather of a city"' in pieces[0]


def test_an_answer_to_a_result_is_learned_where_the_template_needs_tools():
    tokenizer = byte_tokenizer(NEEDS_TOOLS, "<|end|>", ("<|user|>", "<|assistant|>", "<|tool|>"))
    turns = (user("warm?"), call({}), result("yes"), assistant("It is."))
    _, (pieces,) = learn(tokenizer, chat(*turns, tools=TOOLS))
    assert pieces[1::2] == ["<call>get_weather</call><|end|>", "It is.<|end|>"]
    assert pieces[2] == "<|tool|>yes<|end|><|assistant|>"


@pytest.mark.parametrize("filters", ["", " | tojson"])
def test_a_thought_after_a_call_is_learned_where_the_template_drops_the_one_before(filters):
    template = CHANNELS.replace("['content'] }}<|end|>", f"['content']{filters} }}}}<|end|>")
    tokenizer = byte_tokenizer(template, "<|return|>", ("<|call|>",))
    turns = (
        user("warm?"), call({}, reasoning_content="look it up"), result('{"warm": "yes"}'),
        assistant("It is.", reasoning_content="the result says so"),
    )  # fmt: skip
    _, (pieces,) = learn(tokenizer, chat(*turns), stops=("<|call|>",))
    assert pieces[1::2] == [
        "<|channel|>analysis of what was asked<|message|>look it up<|end|>"
        "<|start|>assistant to=get_weather<|message|>{}<|call|>",
        "<|channel|>analysis of what was asked<|message|>the result says so<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is.<|return|>",
    ]


def test_an_end_token_that_the_template_writes_within_an_answer_is_its_own_reason():
    tokenizer = byte_tokenizer(ENDS_EARLY, "<|end|>", ("<|user|>", "<|assistant|>", "<|tool|>"))
    with pytest.raises(DataError, match=r"message 2: the chat template writes '<\|end\|>', which"):
        learn(tokenizer, chat(user("warm?"), call({})))


@pytest.mark.parametrize("stops", [(), ("<|endoftext|>",)])
def test_an_opening_that_a_template_always_writes_ends_no_answer(stops):
    tokenizer = byte_tokenizer(ALWAYS_OPEN, "<|endoftext|>")
    turns = (user("a"), call({}), result("yes"), assistant("It is."), *TWO[2:])
    _, (pieces,) = learn(tokenizer, chat(*turns), stops=stops)
    assert pieces[1::2] == ["<call>get_weather</call><|end|>", "It is.<|end|>", "four<|end|>"]


def test_a_part_of_an_opening_that_a_template_always_writes_ends_no_answer():
    _, (pieces,) = learn(byte_tokenizer(OPENS_PART, "<|endoftext|>"), chat(*TWO))
    assert pieces[1::2] == ["two<|answered|>", "four<|answered|>"]


@pytest.mark.parametrize("template", [OPEN_WORDS, JUDGED])
def test_words_that_a_template_writes_behind_every_conversation_are_not_learned(template):
    _, sequences = learn(byte_tokenizer(template), chat(*TWO))
    assert [pieces[1] for pieces in sequences] == ["two</s>", "four</s>"]


def test_a_thought_in_the_content_is_learned_where_an_answer_is_put_behind_its_prompt():
    words = "<think>\nlook\n</think>\n\ntwo"
    _, sequences = learn(byte_tokenizer(JUDGED), chat(user("one?"), assistant(words)))
    assert sequences[0][1] == f"{words}</s>"


def test_a_prompt_may_differ_from_the_conversation_in_white_space():
    controls = ("<|user|>", "<|assistant|>", "<|tool|>", "<call>", "</call>")
    tokenizer = byte_tokenizer(SPACED, "<|end|>", controls)
    turns = (user("warm?"), call({}), result("yes"), assistant("It is."))
    _, sequences = learn(tokenizer, chat(*turns))
    assert [pieces[1] for pieces in sequences] == [
        "<call>get_weather</call><|end|>", "It is.<|end|>",
    ]  # fmt: skip
    assert sequences[0][0] == "<|user|>\nwarm?<|end|>\n<|assistant|>\n\n"


def test_thoughts_in_the_content_of_a_call_are_found_behind_such_a_prompt():
    controls = ("<|user|>", "<|assistant|>", "<think>", "</think>")
    tokenizer = byte_tokenizer(SPACED_THOUGHTS, "<|end|>", controls)
    turn = call({}, "<think>\nlook it up\n</think>\n\n")
    _, (pieces,) = learn(tokenizer, chat(user("warm?"), turn))
    assert pieces == [
        "<|user|>warm?<|end|>\n<|assistant|>\n<think>",
        "look it up</think><call>get_weather</call><|end|>",
    ]


def test_a_call_is_found_where_the_template_writes_no_words_beside_it():
    tokenizer = byte_tokenizer(CALLS_ALONE, "<|end|>", ("<|user|>", "<|assistant|>"))
    _, (pieces,) = learn(tokenizer, chat(user("warm?"), call({})))
    assert pieces == [
        "<|user|>Call a tool. warm?<|assistant|>", "<call>get_weather</call><|end|>",
    ]  # fmt: skip


def test_a_second_call_is_found_where_the_template_goes_on_with_the_turn_of_the_first():
    tokenizer = byte_tokenizer(ONE_OPENING, "<|end|>", ("<|user|>", "<|assistant|>"))
    turns = (
        user("warm?"), call({"city": "Paris"}), result("yes"), call({"city": "Oslo"}),
        result("no"), assistant("Paris is."),
    )  # fmt: skip
    _, sequences = learn(tokenizer, chat(*turns))
    learned = [answer for pieces in sequences for answer in pieces[1::2]]
    assert learned == [
        '<call>{"city": "Paris"}get_weather</call><|end|>',
        '<call>{"city": "Oslo"}get_weather</call><|end|>',
        "Paris is.<|end|>",
    ]
    assert sequences[1][0].endswith("</call>[yes]<|assistant|>")


def test_keys_of_a_call_keep_their_order():
    tokenizer = byte_tokenizer(ALL_KEYS, "<|end|>", ("<|user|>", "<|assistant|>"))
    _, (pieces,) = learn(tokenizer, chat(user("warm?"), call({})))
    assert pieces[1].startswith('<call>{"id": "abcdef123", "type": "function", "function": {"na')


def test_a_call_that_the_template_leaves_out_is_refused_with_the_reason():
    tokenizer = byte_tokenizer(CHATML)
    one = chat(user("warm?"), call({"city": "Paris"}))
    with pytest.raises(DataError, match=r"message 2: .* render its call of 'get_weather'"):
        learn(tokenizer, one)


def test_a_thought_that_the_template_leaves_out_is_refused_with_the_reason():
    one = chat(user("one?"), assistant("two", reasoning_content="look"))
    with pytest.raises(DataError, match=r"message 2: .* does not render its thought, so"):
        learn(byte_tokenizer(CHATML), one)


def test_an_earlier_answer_that_cannot_be_learned_is_context_and_counted():
    tokenizer = byte_tokenizer(CHATML)
    turns = (user("one?"), assistant("two", reasoning_content="look"), *TWO[2:])
    encoded = Encoder(tokenizer, Asking()).encode(chat(*turns), "row 1")
    assert [piece[1] for piece in texts_of(encoded, tokenizer)] == ["four<|im_end|>"]
    assert encoded.answers == 1
    assert len(encoded.unlearned) == 1
    assert "message 2: the chat template does not render its thought" in encoded.unlearned[0]


def test_a_system_turn_that_the_template_leaves_out_is_refused():
    silent = CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}", 1)
    with pytest.raises(DataError, match=r"message 1: .* leaves this system turn out"):
        learn(byte_tokenizer(silent), chat(system("Rule."), *TWO))


def test_an_end_token_within_an_answer_is_refused():
    one = chat(user("one?"), assistant("two<|im_end|> more"))
    with pytest.raises(DataError, match=r"message 2: holds '<\|im_end\|>', which ends an ans"):
        learn(byte_tokenizer(CHATML), one)


def test_whatever_a_template_raises_is_one_sentence():
    broken = CHATML.replace("m['content']", "m['content'] + 1")
    with pytest.raises(DataError, match="the chat template refuses the conversation up to mess"):
        learn(byte_tokenizer(broken), chat(*TWO))


def test_a_developer_is_the_system_where_the_template_knows_none():
    tokenizer = byte_tokenizer(CHATML)
    turns = ({"role": "developer", "content": "Rule."}, *TWO[:2])
    _, (pieces,) = learn(tokenizer, chat(*turns))
    assert pieces[0].startswith("<|im_start|>system\nRule.<|im_end|>")


def test_parts_of_text_are_joined_and_other_parts_refused():
    text = {"type": "text", "text": "one?"}
    _, (pieces,) = learn(byte_tokenizer(CHATML), chat(user([text, text]), *TWO[1:2]))
    assert "one?\none?<|im_end|>" in pieces[0]
    with pytest.raises(DataError, match=r"part of type 'image' in 'messages\[0\].content\[0\]'"):
        chat(user([{"type": "image"}]), *TWO[1:2])


def test_a_template_is_chosen_by_its_name():
    tokenizer = byte_tokenizer({"rag": PHI3, "plain": CHATML}, controls=("<|user|>",))
    with pytest.raises(DataError, match=r"data.template: got None, .* plain, rag; allowed: one"):
        settle_asking([chat(*TWO)], tokenizer)
    asking = settle_asking([chat(*TWO)], tokenizer, template="plain")
    encoded = Encoder(tokenizer, asking).encode(chat(*TWO), "row 1")
    assert texts_of(encoded, tokenizer)[0][1] == "two<|im_end|>"
    tokenizer.chat_template = {"default": CHATML, "tool_use": AS_MAPPING}
    asking = settle_asking([chat(*TWO)], tokenizer)
    turns = (user("warm?"), call({"city": "Paris"}))
    encoded = Encoder(tokenizer, asking).encode(chat(*turns, tools=TOOLS), "row 1")
    assert texts_of(encoded, tokenizer)[0][1].startswith("<call>get_weather")
