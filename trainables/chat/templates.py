"""Text of messages: a tokenizer's chat template under an adapter's prompt settings.

`registry/flavor.py`, which stands alone, renders prompts in the same way; tests compare both
renderings.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from trainables.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Mapping[str, Any]]

DATE_ARG = "strftime_now"
"""Template argument that sets the day in templates that write today's date."""

PINNED_DATE = "2024-07-26"
"""The default day of such templates: the fallback day of Llama 3.

The day is constant, so that training, a resume on another day, evaluation and serving have the
same prompt.
"""

PROBE = "qXvZprobeZvXq"
"""A word that no template writes by itself."""

_DIRECTIVES = "aAbBdHIjmMpSUwWyYZcxX"


class TemplateRefusalError(DataError):
    """A chat template does not render a conversation; the message gives the template's reason."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Prompt settings of an adapter; part of a bundle's manifest.

    Attributes:
        template: Name of the chat template, where a tokenizer has several; `None` leaves the
            choice to transformers (`tool_use` for rows with tools, else `default`).
        template_args: Arguments of the template; `strftime_now` holds the pinned day.
        prefill_cut: Text removed from the end of a rendered prompt, such as an opened thought.
        arguments: Whether the template takes the arguments of calls as a mapping or JSON text.
        content: Whether the template takes contents as text or as a list of parts.
        has_developer: The template knows the role `developer`; otherwise the role becomes
            `system`.
    """

    template: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)
    prefill_cut: str = ""
    arguments: Literal["mapping", "text"] = "mapping"
    content: Literal["text", "parts"] = "text"
    has_developer: bool = False

    def to_record(self) -> dict[str, Any]:
        """Plain values for the manifest's `data`."""
        return {
            "template": self.template,
            "template_args": dict(self.template_args),
            "prefill_cut": self.prefill_cut,
            "message_form": {
                "arguments": self.arguments,
                "content": self.content,
                "has_developer": self.has_developer,
            },
        }

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> Asking:
        """Rebuild the settings from a manifest's `data`; older manifests give the defaults."""
        return cls(
            template=data.get("template"),
            template_args=data.get("template_args") or {},
            prefill_cut=data.get("prefill_cut") or "",
            **data.get("message_form", {}),
        )


class ChatTemplate:
    """A tokenizer's chat template under an adapter's prompt settings.

    Args:
        tokenizer: Tokenizer of the base.
        asking: The prompt settings.

    Attributes:
        text: Text of the tokenizer's template.
        args: Arguments of the template, without the pinned day.
        controls: Pattern of the control tokens; `None` where the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, asking: Asking) -> None:
        """Raises `DataError` where the template does not exist."""
        self.tokenizer = tokenizer
        self.asking = asking
        self.text = chat_template(tokenizer, asking.template)
        names = {str(one) for one in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens)}
        # Some bases add runs of spaces and newlines as tokens; these are not control tokens.
        words = sorted((name for name in names if name.strip()), key=len, reverse=True)
        self.controls = re.compile("|".join(map(re.escape, words))) if words else None
        self.args = dict(asking.template_args)
        self._day = self.args.pop(DATE_ARG, None)
        self._texts: dict[bool, str] = {}

    @property
    def pinned(self) -> str:
        """The template for chats without tools, with a fixed day."""
        return self._text_for(has_tools=False)

    def render(
        self, turns: Turns, tools: Turns = (), *, is_prompt: bool = False, is_whole: bool = False
    ) -> str:
        """Rendered text of a conversation.

        Args:
            turns: Messages, as `trainables.files.formats` makes them.
            tools: JSON schemas of the tools on offer.
            is_prompt: Add the opening of the next answer, without the recorded cut.
            is_whole: Keep the text that the cut would remove.

        Raises:
            TemplateRefusalError: The template raised an error.
        """
        text = self._text_for(has_tools=bool(tools))
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                [self._formed(turn) for turn in turns],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=text,
                tokenize=False,
                add_generation_prompt=is_prompt,
                **self.args,
            )
        except Exception as error:
            # A template is a program that comes with the base and may raise any exception.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TemplateRefusalError(reason) from error
        cut = self.asking.prefill_cut
        if is_prompt and cut and not is_whole and rendered.endswith(cut):
            return rendered[: -len(cut)]
        return rendered

    def asked_behind(self, turns: Turns, tools: Turns = (), *, is_whole: bool = False) -> str:
        """Text of a prompt behind the words of the last turn; all text if the words are missing.

        Args:
            turns: Messages through the one that is answered.
            tools: JSON schemas of the tools on offer.
            is_whole: Keep the text that the cut would remove.

        Raises:
            TemplateRefusalError: The template raised an error.
        """
        # A probe, since templates escape contents, and short words occur in other text, too.
        probed = [*turns[:-1], {**turns[-1], "content": PROBE}]
        return self.render(probed, tools, is_prompt=True, is_whole=is_whole).rpartition(PROBE)[2]

    def find_control(self, text: str, start: int = 0) -> list[tuple[int, int, str]]:
        """Start, end and text of each control token in a text, from position `start` on."""
        if not self.controls:
            return []
        found = self.controls.finditer(text, start)
        return [(match.start(), match.end(), match.group()) for match in found]

    def _text_for(self, *, has_tools: bool) -> str:
        if has_tools not in self._texts:
            text = chat_template(self.tokenizer, self.asking.template, has_tools=has_tools)
            self._texts[has_tools] = text if self._day is None else pin_date(text, self._day)
        return self._texts[has_tools]

    def _formed(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A message in the form that the template takes: role, content and arguments."""
        formed = dict(turn)
        if formed["role"] == "developer" and not self.asking.has_developer:
            formed["role"] = "system"
        if self.asking.content == "parts" and isinstance(formed.get("content"), str):
            formed["content"] = [{"type": "text", "text": formed["content"]}]
        if formed.get("tool_calls"):
            calls = []
            for call in formed["tool_calls"]:
                arguments = call["function"]["arguments"]
                if self.asking.arguments == "text" and not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                elif self.asking.arguments == "mapping" and isinstance(arguments, str):
                    # `trainables.files.formats` accepts only JSON as text.
                    arguments = json.loads(arguments)
                calls.append({**call, "function": {**call["function"], "arguments": arguments}})
            formed["tool_calls"] = calls
        return formed


def chat_template(
    tokenizer: PreTrainedTokenizerBase, name: str | None = None, *, has_tools: bool = False
) -> str:
    """Jinja text of a chat template.

    Args:
        tokenizer: Tokenizer of the base.
        name: Name of the template, where the tokenizer has several.
        has_tools: Tools are on offer; some tokenizers have a separate template for tools.

    Raises:
        DataError: The tokenizer has no template, or none of that name.
    """
    known = tokenizer.chat_template
    if isinstance(known, Mapping):
        usual = "tool_use" if has_tools and "tool_use" in known else "default"
        chosen = usual if name is None else name
        if chosen not in known:
            raise DataError(
                f"data.template: got {name!r}, and the base's tokenizer has the chat templates "
                f"{', '.join(sorted(known))}; allowed: one of these. Correct the name."
            )
        return str(known[chosen])
    if name is not None:
        raise DataError(
            f"data.template: got {name!r}, but the base's tokenizer has "
            f"{'one chat template without a name' if known else 'no chat template'}; allowed: the "
            "name of one of several. Leave it out."
        )
    if not known:
        raise DataError(
            "base.model: its tokenizer has no chat template, and data.train holds messages; "
            "allowed: an instruction-tuned base, or rows with prompt and completion as text. "
            "Change one of the two."
        )
    return str(known)


def template_digest(tokenizer: PreTrainedTokenizerBase, asking: Asking) -> str:
    """Digest `sha256:...` of the chat template and all prompt settings.

    Raises:
        DataError: The template does not exist.
    """
    text = chat_template(tokenizer, asking.template)
    tool_text = chat_template(tokenizer, asking.template, has_tools=True)
    settings = asking.to_record()
    settings.pop("message_form")
    if tool_text != text:
        settings["tool_use"] = tool_text
    if any(settings.values()):
        text = json.dumps({"text": text, **settings}, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def pin_date(text: str, day: str) -> str:
    """Text of a chat template that writes `day` (such as `2024-07-26`) in place of today's date.

    Raises:
        DataError: `day` is not a date.
    """
    try:
        date = datetime.datetime.fromisoformat(day)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data.template_args.{DATE_ARG}: got {day!r}; allowed: a day such as {PINNED_DATE}. "
            "Write a date as YYYY-MM-DD."
        ) from error
    steps = "".join(f"|replace('%{one}','{date.strftime('%' + one)}')" for one in _DIRECTIVES)
    # transformers accepts no function as an argument; a macro of the same name hides its own. The
    # empty expression keeps a newline at the start of the template.
    macro = f"{{% macro {DATE_ARG}(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}"
    return f"{macro}{{{{ '' }}}}{text}"


def common_start(one: str, other: str) -> int:
    """Number of leading characters that two texts have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def with_forms(tokenizer: PreTrainedTokenizerBase, asking: Asking) -> Asking:
    """Prompt settings with the pinned day, if the template writes a date, and accepted forms.

    Raises:
        DataError: The template does not exist.
    """
    text = chat_template(tokenizer, asking.template)
    text += chat_template(tokenizer, asking.template, has_tools=True)
    if DATE_ARG in text and DATE_ARG not in asking.template_args:
        asking = replace(asking, template_args={**asking.template_args, DATE_ARG: PINNED_DATE})
    asking = replace(asking, has_developer=re.search("['\"]developer['\"]", text) is not None)
    user = {"role": "user", "content": PROBE}
    parts = replace(asking, content="parts")
    if not _writes(tokenizer, asking, [user]) and _writes(tokenizer, parts, [user]):
        asking = parts
    arguments = {f"{PROBE}key": PROBE}
    function = {"name": "probe_call", "arguments": arguments}
    call = {"id": "probeid00", "type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    turns: Turns = [{**user, "content": "x"}, answer]
    texts = replace(asking, arguments="text")
    # A template that prints a mapping writes Python notation instead of JSON.
    is_json = not _writes(tokenizer, asking, turns, repr(arguments))
    if not (is_json and _writes(tokenizer, asking, turns)) and _writes(tokenizer, texts, turns):
        asking = texts
    return asking


def _writes(
    tokenizer: PreTrainedTokenizerBase, asking: Asking, turns: Turns, word: str = PROBE
) -> bool:
    try:
        return word in ChatTemplate(tokenizer, asking).render(turns)
    except TemplateRefusalError:
        return False
