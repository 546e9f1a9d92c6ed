"""AdamW with clipping and a warmup-decay schedule, from optax."""

import jax
import optax

from mathqwen.config import OptimConfig


def schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, ...: 0 at step 0, the peak at `warmup_steps`, `final_ratio` of it at `steps`."""
  warmup = optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup_steps)
  last = cfg.learning_rate * cfg.final_ratio
  rest = max(1, steps - cfg.warmup_steps)
  decay = {
    'cosine': lambda: optax.cosine_decay_schedule(cfg.learning_rate, rest, alpha=cfg.final_ratio),
    'linear': lambda: optax.linear_schedule(cfg.learning_rate, last, rest),
    'constant': lambda: optax.constant_schedule(cfg.learning_rate),
  }[cfg.schedule]()
  return optax.join_schedules([warmup, decay], [cfg.warmup_steps]) if cfg.warmup_steps else decay


def decay_mask(params):
  """True where weight decay applies: matrices, not norms and biases."""

  def decays(path, _):
    name = path[-1].key
    return not (name.endswith('norm') or name.endswith('bias'))

  return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm),
    optax.adamw(
      schedule(cfg, steps), b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask
    ),
  )
