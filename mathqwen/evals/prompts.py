"""How problems are asked, by name. One entry each.

A chat prompt makes turns, which `mathqwen.data.chatml` turns into ids as in training; any other makes plain text, for
base models and for systems with a form of their own.
"""

import dataclasses
import difflib
from collections.abc import Callable

from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompt:
  """`messages(example, the model's own system prompt)` or `text(example)`; exactly one of them is given."""

  about: str  # whose prompt it is
  messages: Callable[[object, str], list[dict]] | None = None  # {'role', 'content'} turns, the last one the user's
  text: Callable[[object], str] | None = None
  stop: tuple[str, ...] = ()  # texts at which an answer ends, besides the model's stop tokens
  max_new_tokens: int | None = None  # as the system used it; None takes the benchmark's


def _chatml(example, system_prompt: str) -> list[dict]:
  system = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
  return [*system, {'role': 'user', 'content': example.question}]


def _qwen_chat(example, system_prompt: str) -> list[dict]:
  return _chatml(example, 'You are a helpful assistant.')


PROMPTS: dict[str, Prompt] = {
  'chatml': Prompt("the question as the user's turn, after the model's own system prompt if it has one", _chatml),
  'qwen-chat': Prompt("Qwen-Chat, zero-shot: the question as the user's turn after Qwen's system prompt", _qwen_chat),
}


def get(name: str) -> Prompt:
  if name not in PROMPTS:
    near = difflib.get_close_matches(name.lower(), PROMPTS, n=1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise UserError(f'unknown prompt {name!r}; {hint}there are: {", ".join(PROMPTS)}')
  return PROMPTS[name]
