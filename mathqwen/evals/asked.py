"""How a model was asked, as settings, scores and records say it: the prompt, the template and the system turn."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.errors import UserError
from mathqwen.evals import prompts

if TYPE_CHECKING:
  from mathqwen.inference.model import Model

FIELDS = ('prompt', 'template', 'template_sha256', 'system_prompt')
DEFAULT = 'chatml'  # the prompt that asks with the model's own template and system turn
_SHOWN = 60  # characters of a system turn


class AskedModel(Protocol):
  """What an evaluation needs from a model: `inference.model.Model` has it, and so has `endpoint.Endpoint`."""

  name: str
  precision: str | None
  chat: ChatFormat | None  # None: the server's own template applies
  system_prompt: str

  def generate_ids(
    self, prompts: list, *, max_new_tokens: int, batch_size: int, on_done: Callable, stop_texts: tuple[str, ...], **more
  ) -> object:
    """Calls `on_done(position, answer)` once for each prompt.

    more: `numbers` of the prompts, the fields DRAWN, and with a budget `max_thinking_tokens` and `on_cut`.
    """


def of(model: AskedModel, prompt_name: str) -> dict:
  """FIELDS of what a model is asked. None where the prompt is a text, or the server's own template decides."""
  record = {'template': None, 'template_sha256': None}
  if model.chat is not None and prompts.get(prompt_name).messages is not None:
    record = model.chat.record()
  system = None  # every other prompt has its own system turn, or none
  if prompt_name == DEFAULT:
    system = model.system_prompt if model.chat is None else model.chat.system_turn(model.tokenizer)
  return {'prompt': prompt_name, **record, 'system_prompt': system}


def check(prompt_name: str, template: str | None, system: str | None) -> None:
  """UserError: when --template or --system is given and this prompt does not read it."""
  if template is not None and prompts.get(prompt_name).messages is None:
    raise UserError(f'--template {template}: prompt {prompt_name} is a text without chat turns; leave it out')
  if system is not None and prompt_name != DEFAULT:
    raise UserError(f'--system: prompt {prompt_name} does not read it; leave it out, or ask with --prompt {DEFAULT}')


def describe(model: 'Model', prompt_name: str) -> str:
  """How a model of ours is asked, in a line for people."""
  if prompts.get(prompt_name).messages is None:
    return f'prompt {prompt_name}: a text, without a chat template'
  if prompt_name == DEFAULT:
    return f'prompt {prompt_name}: {model.chat.describe(model.tokenizer)}'
  return f"prompt {prompt_name}: template {model.chat.template.name}, the prompt's own system turn"


def differ(a: Mapping, b: Mapping) -> bool:
  """Whether two runs asked in different ways. The same template may go by two names."""
  return any(a[key] != b[key] for key in FIELDS if key != 'template')


def text(scores: Mapping) -> str | None:
  """'chatml', or 'chatml, template own (1c8a9b27), system turn "Be brief."': how scores were asked; None: unknown."""
  parts = [scores.get('prompt')]
  if scores.get('template') not in (None, 'chatml'):
    parts.append(f'template {scores["template"]} ({scores["template_sha256"][:8]})')
  if system := scores.get('system_prompt'):
    parts.append(f'system turn {json.dumps(system[:_SHOWN], ensure_ascii=False)}')
  return ', '.join(filter(None, parts)) or None
