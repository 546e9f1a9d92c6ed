"""`Model`: weights, config and tokenizer in one object, wherever they come from."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mathqwen import hf
from mathqwen.chat import thinking
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.errors import UserError
from mathqwen.hardware import devices, sharding
from mathqwen.inference import budget, generate
from mathqwen.inference.sampling import AnswerRequest, Sampling
from mathqwen.model import qwen
from mathqwen.model.compute import Compute
from mathqwen.model.config import ModelConfig
from mathqwen.storage.source import Source, open_source
from mathqwen.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 512


@dataclasses.dataclass
class Model:
  """Weights with what is needed to use them: config, tokenizer, chat format, and where to compute."""

  name: str  # which weights: the Hugging Face directory, or 'WORKDIR/checkpoints/STEP'
  config: ModelConfig
  tokenizer: Tokenizer | None  # None: its directory has no tokenizer files
  params: dict | None  # None until read, in what `open_model` returns
  dtype: str = 'bfloat16'  # of weights and activations
  weights: str | None = None  # 'int8': how matrices and tables are held, one scale for each row; None: in `dtype`
  mesh: jax.sharding.Mesh | None = None
  chat: ChatFormat = ChatFormat()  # what prompts are made with
  saved_as: tuple[ChatFormat | None, str] = (None, '')  # the `chat` and `system_prompt` of `hf.save`

  @property
  def precision(self) -> str:
    """For records: 'bfloat16', or 'bfloat16, int8 weights'."""
    return self.dtype if self.weights is None else f'{self.dtype}, {self.weights} weights'

  @property
  def system_prompt(self) -> str:
    """The system turn that is put before questions; '' means none but the template's own."""
    return self.chat.system_prompt

  def asked_with(self, template: str | None = None, system: str | None = None) -> 'Model':
    """The same model, asked with another template ('chatml', 'own' or a Jinja file) or system turn; None keeps its own.

    UserError: when the template cannot be loaded, or renders no system turn and is to.
    """
    if template is None and system is None:
      return self
    self._check_tokenizer()
    return dataclasses.replace(self, chat=self.chat.changed(self.tokenizer, template, system))

  def logits(
    self, tokens_BT: ArrayLike, segment_ids: ArrayLike | None = None, positions: ArrayLike | None = None
  ) -> jax.Array:
    """float32 [B, T, V] of int32 [B, T]. Attention stays within a segment; positions count from 0 unless given.

    UserError: when the ids are not integers [B, T] that the model knows.
    """
    tokens = np.asarray(tokens_BT)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
      raise UserError(f'logits takes integers [B, T], not {tokens.dtype} {list(tokens.shape)}')
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
      raise UserError(f'ids from {tokens.min()} to {tokens.max()}: the model knows 0 to {self.config.vocab_size - 1}')
    arrays = [None if x is None else jnp.asarray(x, jnp.int32) for x in (tokens_BT, segment_ids, positions)]
    return _compute_logits(self.params, *arrays, cfg=self.config, dtype=self.dtype)

  def generate(
    self,
    questions: Sequence[str],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system_prompt: str | None = None,
  ) -> list[str]:
    """The assistant's answer to each question, asked as in training, and a published chat model in its own template.

    system_prompt: None takes the model's own, '' none.
    max_new_tokens: by default 512, or what the model's positions leave. temperature, top_p, top_k: as in `Sampling`.
    UserError: when a setting is out of range, or a question does not fit the model's positions.
    """
    if isinstance(questions, str):
      raise UserError('generate takes a list of questions: write generate([question])')
    prompts = [self.prompt([{'role': 'user', 'content': question}], system_prompt) for question in questions]
    answers = self.generate_ids(prompts, max_new_tokens, temperature, top_p, top_k, seed)
    return [self.text(ids) for ids in answers]

  def text(self, ids: list[int]) -> str:
    """The text of an answer, without the stop id at its end."""
    # A declared stop id need not be a special token, which `decode` would leave out.
    stopped = len(ids) > 0 and ids[-1] in self.chat.stop_ids(self.tokenizer)
    return self.tokenizer.decode(ids[:-1] if stopped else ids)

  def prompt(self, messages: Sequence[dict], system_prompt: str | None = None) -> list[int]:
    """Ids that ask for the next turn of a conversation, after the system prompt. UserError without a tokenizer."""
    self._check_tokenizer()
    chat = self.chat if system_prompt is None else dataclasses.replace(self.chat, system_prompt=system_prompt)
    return chat.prompt(messages, self.tokenizer)

  def _check_tokenizer(self):
    if self.tokenizer is None:
      raise UserError(f'{self.name} has no tokenizer files: copy those of its model there, or use logits(ids)')

  def new_tokens(self, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that an answer may have by default: 512, or what the longest prompt leaves of the model's positions."""
    longest = max(map(len, prompts), default=0)
    return max(1, min(MAX_NEW_TOKENS, self.config.longest - longest))

  def check(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
  ):
    """UserError where `generate_ids` would refuse these arguments; needs no weights."""
    request = self._request(prompts, max_new_tokens, Sampling(temperature, top_p, top_k), seed)
    generate.check(self.config, prompts, request)

  def generate_ids(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    on_done: Callable[[int, list[int]], None] | None = None,
    stop_texts: tuple[str, ...] = (),
    numbers: Sequence[int] | None = None,
    cache_dtype: str | None = None,
    max_thinking_tokens: int | None = None,
    on_cut: Callable[[int], None] | None = None,
  ) -> list[list[int]]:
    """The ids of each answer, up to a stop id, or up to the first id with which its text holds one of `stop_texts`.

    max_new_tokens and the four after it: as in `generate`; max_new_tokens may be one limit for each prompt.
    numbers: which of the seed's random streams each answer draws from, by default its index. batch_size, cache_dtype:
    as in `generate.Execution`. on_done(index, ids): called as answers end.
    max_thinking_tokens: thinking that is still open after so many tokens of an answer is closed there, and the answer
    is asked for (`chat.thinking`); the ids hold that too. on_cut(index): called then. UserError as in
    `generate.generate`, and when the limits leave no room for an answer behind the thinking.
    """
    request = self._request(prompts, max_new_tokens, Sampling(temperature, top_p, top_k), seed, numbers)
    execution = generate.Execution(batch_size, self.dtype, cache_dtype, self.mesh)
    answers: list[list[int]] = [[] for _ in prompts]

    def holds_stop_text(ids):
      return any(text in self.tokenizer.decode(ids) for text in stop_texts)

    def done(index, ids):
      # The decoding loop looks at texts only every few tokens, so it may have gone past the stop text.
      answers[index] = _up_to(holds_stop_text, ids) if stop_texts else ids
      if on_done is not None:
        on_done(index, answers[index])

    def close(index, ids):
      return None if holds_stop_text(ids) else thinking.close(prompts[index], ids, self.tokenizer)

    ended = holds_stop_text if stop_texts else None
    limited = None
    if max_thinking_tokens is not None:
      self.check_budget(max_thinking_tokens, max(request.limits(prompts), default=0))
      limited = budget.Budget(max_thinking_tokens, close, on_cut)
    generate.generate(self.params, self.config, prompts, request, execution, ended, done, limited)
    return answers

  def check_budget(self, max_thinking_tokens: int, max_new_tokens: int):
    """UserError: when a budget of thinking leaves no room for an answer behind it."""
    self._check_tokenizer()
    most = max_new_tokens - thinking.longest_close(self.tokenizer) - 1
    if not 1 <= max_thinking_tokens <= most:
      raise UserError(
        f'max_thinking_tokens is {max_thinking_tokens}: with max_new_tokens {max_new_tokens}, it must be from 1 to '
        f'{most}, so that an answer fits behind the thinking; set max_new_tokens higher'
      )

  def _request(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] | None,
    sampling: Sampling,
    seed: int,
    streams: Sequence[int] | None = None,
  ) -> AnswerRequest:
    """The request for these arguments of `generate_ids`."""
    return AnswerRequest(
      max_new_tokens=self.new_tokens(prompts) if max_new_tokens is None else max_new_tokens,
      vocab_size=self.config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size,
      stop_ids=() if self.tokenizer is None else self.chat.stop_ids(self.tokenizer),
      sampling=sampling,
      seed=seed,
      streams=streams,
    )

  def save_hf(self, directory: str, dtype: str | None = None, layout: str | None = None, card: str = ''):
    """Writes a Hugging Face directory. dtype: of the files, by default that of the weights. layout: as in `hf.save`.

    UserError: when the weights are held in int8, which no longer are those of the model.
    """
    if self.weights is not None:
      raise UserError(f'{self.name} is loaded with weights={self.weights!r}: to save it, load it without')
    hf.save(directory, self.params, self.config, self.tokenizer, dtype, layout, card, *self.saved_as)


def _up_to(holds: Callable[[list[int]], bool], ids: list[int]) -> list[int]:
  """The shortest prefix of `ids` for which `holds` is true, or all of them."""
  # Text only grows with more ids, so `holds` stays true once it is.
  length = bisect.bisect_left(range(len(ids)), True, key=lambda length: holds(ids[:length]))
  return ids[:length]


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def _compute_logits(params, tokens, segment_ids, positions, *, cfg, dtype):
  return qwen.unembed(params, qwen.forward(params, cfg, tokens, segment_ids, positions, Compute(dtype=dtype)))


def load(
  path: str,
  mesh: jax.sharding.Mesh | None = None,
  dtype: str = 'bfloat16',
  platform: str | None = None,
  weights: str | None = None,
) -> Model:
  """A model from a Hugging Face directory, a name on the hub, or a checkpoint directory of ours.

  mesh: where its weights go; None is one device. dtype: of weights and activations.
  platform: 'tpu', 'gpu' or 'cpu'; None takes what JAX_PLATFORMS names, else the TPU or GPU of this machine.
  weights: 'int8' holds the matrices, the embedding and the head so, with one scale for each row; None: in `dtype`.
  UserError: when `path` is not a complete model, or the devices cannot be used.
  """
  devices.choose(platform)
  devices.start()
  model, read = open_model(path, mesh, dtype, weights)
  model.params = read()
  return model


def open_model(
  path: str, mesh: jax.sharding.Mesh | None = None, dtype: str = 'bfloat16', weights: str | None = None
) -> tuple[Model, Callable[[], dict]]:
  """(model without its weights, read): everything small is read and checked now; `read() -> params` reads the weights.

  UserError as in `load`.
  """
  if dtype not in hf.DTYPES:
    raise UserError(f'dtype {dtype!r} is not one of {", ".join(hf.DTYPES)}')
  if weights not in (None, 'int8'):
    raise UserError(f'weights {weights!r} is not int8: leave it out for weights in {dtype}')
  # Logits need no chat template, so one that cannot be used is an error of the first prompt that is made with it.
  return model_of(open_source(path), mesh, dtype, at_once=False, weights=weights)


def model_of(
  source: Source,
  mesh: jax.sharding.Mesh | None,
  dtype: str,
  template: str | None = None,
  system: str | None = None,
  at_once: bool = True,
  weights: str | None = None,
) -> tuple[Model, Callable[[], dict]]:
  """`open_model` of a source that is open already. template, system: as `Model.asked_with` takes them.

  at_once: as `Source.chat` takes it. weights: as in `load`.
  """
  if mesh is not None:
    sharding.check(dict(mesh.shape), source.config)
  chat = ChatFormat()
  if source.tokenizer is not None or template is not None or system is not None:
    chat = source.chat(template, system, at_once)
  saved_as = (source.trained_chat(), source.system_prompt)
  model = Model(source.name, source.config, source.tokenizer, None, dtype, weights, mesh, chat, saved_as)
  return model, functools.partial(source.read, mesh, dtype, weights)
