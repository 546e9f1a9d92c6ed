"""Direct preference optimization (Rafailov et al., arXiv 2305.18290): the loss of pairs of a better and a worse answer.

  reward of an answer   beta * (log P(answer) - log P_reference(answer))
  loss of a pair        -log sigmoid(reward of the chosen answer - reward of the rejected one)

log P(answer) is the sum over the tokens of the answer that have loss, or with form 'mean' that sum divided by their
number (`sigmoid_norm` of TRL). The rows are those of `data/pairs.py`: the answers of a pair are segments of one row.
"""

import jax
import jax.numpy as jnp


def loss(
  log_probs_BT: jax.Array,
  reference_BT: jax.Array,
  pair_ids_BT: jax.Array,
  weights_BT: jax.Array,
  beta: float,
  form: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(sum of the loss of all pairs in nats, the number of `pairs` and sums over them by name), float32 scalars.

  log_probs_BT, reference_BT: of the target at each position, by the model and by the reference, which gets no gradient;
  0 where there is no loss. pair_ids_BT: as in `data/pairs.py`. weights_BT: 1 at positions with loss, 0 elsewhere.
  form: 'sum' or 'mean'.
  """
  pairs = pair_ids_BT.shape[1] // 2  # N: no row has more, because an answer takes a position or more

  def answers(sign):
    """(log P, log P - log P_reference, tokens with loss) of the chosen (sign 1) or the rejected (-1) answers."""
    in_answer_BTN = sign * pair_ids_BT[..., None] == jnp.arange(1, pairs + 1)
    # Compare and sum instead of scattering: XLA fuses both, on any mesh, and always adds in the same order.
    total = lambda values_BT: jnp.sum(jnp.where(in_answer_BTN, values_BT[..., None], 0), axis=1)
    tokens_BN = total(weights_BT)
    divisor_BN = jnp.maximum(tokens_BN, 1) if form == 'mean' else 1
    # Subtracted token by token: the difference of two large sums would lose digits.
    ratio_BT = log_probs_BT - jax.lax.stop_gradient(reference_BT)
    return total(log_probs_BT) / divisor_BN, total(ratio_BT) / divisor_BN, tokens_BN

  chosen_BN, chosen_ratio_BN, tokens_BN = answers(1)
  rejected_BN, rejected_ratio_BN, _ = answers(-1)
  margin_BN = beta * (chosen_ratio_BN - rejected_ratio_BN)
  over_pairs = lambda values_BN: jnp.sum(jnp.where(tokens_BN > 0, values_BN, 0.0))
  sums = {
    'pairs': over_pairs(jnp.ones_like(margin_BN)),
    'reward_margin': over_pairs(margin_BN),
    'reward_accuracy': over_pairs(margin_BN > 0),
    'log_prob_chosen': over_pairs(chosen_BN),
    'log_prob_rejected': over_pairs(rejected_BN),
  }
  loss_sum = over_pairs(-jax.nn.log_sigmoid(margin_BN))
  return loss_sum, jax.lax.stop_gradient(sums)
