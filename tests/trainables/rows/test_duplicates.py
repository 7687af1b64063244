"""Rows that say the same, or nearly the same, whatever else they hold."""

import random
import time

from trainables.files.formats import ChatExample, PlainExample
from trainables.rows.duplicates import content_of, find_clusters, unite

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def text(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def clusters_of(*texts: str):
    return find_clusters([content_of(PlainExample(prompt=one, answer="x")) for one in texts])


def test_white_space_and_case_make_no_other_row():
    found = clusters_of("Name it.", " name\n IT. ", "Name its.")
    assert found.same == (0, 0, 1)


def test_border_of_prompt_and_answer_counts():
    one, other = (
        content_of(PlainExample(prompt=prompt, answer=answer))
        for prompt, answer in (("a b", "c"), ("a", "b c"))
    )
    assert one.key != other.key


def test_chats_are_the_same_by_their_turns():
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "B"})
    more = ({**turns[0], "name": "clerk"}, {**turns[1], "content": "b "})
    other = ({**turns[0], "role": "system"}, turns[1])
    keys = [content_of(ChatExample(turns=one)).key for one in (turns, more, other)]
    assert keys[0] == keys[1] != keys[2]


def test_long_rows_with_a_few_other_words_are_nearly_the_same():
    first = text(1)
    second = first.replace(first.split()[10], "zzz", 1).replace(first.split()[70], "qqq", 1)
    found = clusters_of(first, text(2), second, text(3))
    assert len(set(found.same)) == 4
    assert found.near[0] == found.near[2]
    assert len(set(found.near)) == 3


def test_short_rows_are_the_same_or_not():
    found = clusters_of("what is 17 plus 18", "what is 17 plus 19", "what is 17 plus 1")
    assert len(set(found.near)) == 3


def test_long_instruction_that_all_rows_share_makes_them_not_alike():
    shared = text(1, 400)
    found = clusters_of(*(f"{shared} {text(n, 30)}" for n in range(10, 60)))
    assert len(set(found.near)) == 50


def test_rows_are_alike_under_an_instruction_that_all_share():
    shared = text(1, 400)
    texts = [f"{shared} {text(n, 60)}" for n in range(10, 60)]
    found = clusters_of(*texts, texts[7].replace(texts[7].split()[-5], "zzz"))
    assert found.near[50] == found.near[7]
    assert len(set(found.near)) == 50


def test_order_of_rows_does_not_change_who_is_alike():
    texts = [text(n // 2) + (" zzz" if n % 2 else "") for n in range(40)]
    order = random.Random(0).sample(range(40), 40)
    straight, mixed = clusters_of(*texts), clusters_of(*(texts[n] for n in order))
    pairs = {frozenset((order[a], order[b])) for a in range(40) for b in range(a)
             if mixed.near[a] == mixed.near[b]}  # fmt: skip
    assert pairs == {frozenset((a, b)) for a in range(40) for b in range(a)
                     if straight.near[a] == straight.near[b]}  # fmt: skip
    assert len(pairs) == 20


def test_labels_of_any_kind_unite_rows():
    assert unite([[1, 2, 3, 1], ["a", "b", "b", "c"]]) == [0, 1, 1, 0]


def test_many_rows_take_no_more_than_milliseconds_each():
    contents = [content_of(PlainExample(prompt=text(n), answer="x")) for n in range(3000)]
    started = time.process_time()
    assert len(set(find_clusters(contents).near)) == 3000
    assert time.process_time() - started < 6.0
