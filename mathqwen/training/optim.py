"""AdamW with clipping and a warmup-decay schedule, from optax; with smaller moments from `small_moments`."""

import jax
import jax.numpy as jnp
import optax

from mathqwen.config import OptimConfig
from mathqwen.training import offload, small_moments

# The dtype of the two moments of each matrix, by optimizer.
MOMENTS = {'adamw': jnp.float32, 'adamw_bf16': jnp.bfloat16, 'adamw_8bit': small_moments.FLOAT8}


def schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
  """Learning rate of step 0, 1, ...: it rises linearly from 0 at step 0 to the peak at `warmup_steps`, then decays.

  The cosine and linear schedules reach `final_ratio` of the peak at `steps` and stay there; the constant one keeps the
  peak. Without warmup, step 0 has the peak.
  """
  peak = cfg.learning_rate
  decay_steps = max(1, steps - cfg.warmup_steps)  # a run may be shorter than the warmup of a constant schedule
  if cfg.schedule == 'cosine':
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=cfg.final_ratio)
  elif cfg.schedule == 'linear':
    decay = optax.linear_schedule(peak, peak * cfg.final_ratio, decay_steps)
  else:
    assert cfg.schedule == 'constant', cfg.schedule  # `Experiment` refuses other names
    decay = optax.constant_schedule(peak)
  if cfg.warmup_steps == 0:
    return decay
  warmup = optax.linear_schedule(0.0, peak, cfg.warmup_steps)
  return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


def decay_mask(params: dict) -> dict:
  """The tree of `params` with True where weight decay applies: on matrices, not on norms, biases and DoRA's lengths."""

  def decays(path, _):
    return not path[-1].key.endswith(('norm', 'bias', 'magnitude'))

  return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation | offload.Offloaded:
  """Clips by the global norm, then applies the AdamW of that name with the schedule of a run of `steps` steps."""
  clip = optax.clip_by_global_norm(cfg.clip_norm)
  rate = schedule(cfg, steps)
  if cfg.name == 'adamw':
    adamw = optax.adamw(rate, b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask)
    if cfg.offload:
      # The state is that of the other chain, so that a run may continue with the other setting.
      tx = optax.chain(optax.identity(), adamw)
      return offload.Offloaded(tx.init, tx.update, lambda grads: clip.update(grads, optax.EmptyState())[0])
    return optax.chain(clip, adamw)
  adam = small_moments.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, MOMENTS[cfg.name], matrices=decay_mask)
  decay = optax.add_decayed_weights(cfg.weight_decay, decay_mask)
  return optax.chain(clip, optax.chain(adam, decay, optax.scale_by_learning_rate(rate)))
