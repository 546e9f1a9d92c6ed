"""A model that knows its answers by heart, for tests of everything around the model."""

import json
import types

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.evals import run

QUESTIONS = [('1+1=', '2', 'add'), ('2*3=', '6', 'multiply'), ('1-5=', '-4', 'add'), ('7/2=', '3.5', 'divide')]


class ByteTokenizer:
  """Ids 0..255 are bytes; the three ChatML specials follow."""

  special = {'<|im_start|>': 256, '<|im_end|>': 257, '<|endoftext|>': 258}
  im_start, im_end, endoftext = 256, 257, 258
  stop_ids = (257, 258)
  vocab_size = 259
  bos = None

  def encode(self, text):
    return list(text.encode())

  def encode_batch(self, texts):
    return [self.encode(text) for text in texts]

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode(errors='replace')


class RecitingModel:
  """Answers `answers[question]`; `stops_after` answers it is killed. A limit of new tokens cuts the stop token off."""

  def __init__(self, answers, name='reciting', positions=512, stops_after=None, system_prompt=''):
    self.tokenizer = ByteTokenizer()
    self.config = types.SimpleNamespace(max_position_embeddings=positions, longest=positions)
    self.name, self.precision, self.system_prompt = name, 'float32', system_prompt
    self.chat = ChatFormat(system_prompt=system_prompt)
    self.answers, self.stops_after, self.asked, self.given = answers, stops_after, [], 0

  def generate_ids(self, prompts, max_new_tokens, batch_size=32, on_done=None, stop_texts=(), **settings):
    self.asked.append(len(prompts))
    self.settings = settings
    self.batch_size = batch_size
    done = {}
    for index in reversed(range(len(prompts))):  # answers do not end in the order of the questions
      if self.given == self.stops_after:
        raise KeyboardInterrupt
      text = self.tokenizer.decode(prompts[index])
      question = max(self.answers, key=text.rfind)  # the last one that is asked
      done[index] = [*self.tokenizer.encode(self.answers[question]), 257][:max_new_tokens]
      self.given += 1
      on_done(index, done[index])
    return [done[index] for index in range(len(prompts))]


def lines(out):
  return [json.loads(line) for line in (out / 'arithmetic' / 'records.jsonl').read_text().splitlines()]


def evaluate(model, out, data_dir, names='arithmetic', batch_size=64, **ask):
  ask = run.Ask(data_dir=data_dir, **ask)
  return run.evaluate(model, names, ask, out=out, batch_size=batch_size, progress=False)
