"""Both strands: augmentation, conjoined prediction, models that turn with DNA.

What is turned here are rows of the nucleotide tokenizer. Pieces and k-mers have
no complement token by token: turn bases, then make tokens anew.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from genomics import alphabet
from genomics import tokenizers

_SPECIAL = tokenizers.NUM_SPECIAL
# Ids of the complements of the nucleotide tokenizer's ids.
COMPLEMENT = (*range(_SPECIAL), *range(_SPECIAL + 3, _SPECIAL - 1, -1))


def augment(
  codes: np.ndarray,
  rng: np.random.Generator,
  *,
  turn: float = 0.5,
  max_shift: int = 0,
) -> tuple[np.ndarray, bool]:
  """A window as it might have been cut, on either strand.

  Args:
    codes: `[n + 2 max_shift]`, with bases to spare on both sides.
    rng: to draw from.
    turn: chance of the reverse complement; 0 where strands differ, as those of
      promoters and variants do.
    max_shift: bases by which the window moves at most; 3 in Basenji.

  Returns:
    `[n]` codes, and whether they were turned, upon which labels of stranded
    tracks change places.

  Example:
    >>> codes = np.array([4, 0, 1, 4], np.uint8)
    >>> augment(codes, np.random.default_rng(0), turn=0)[0].tolist()
    [4, 0, 1, 4]

  Source: Kelley et al., 2018 (Basenji), https://doi.org/10.1101/gr.227819.117.
  """
  start = int(rng.integers(2 * max_shift + 1))
  window = codes[start : len(codes) - 2 * max_shift + start]
  turned = bool(rng.random() < turn)
  return (alphabet.reverse_complement(window) if turned else window), turned


def turn_ids(
  ids: jax.Array, *, leading: int = 0, trailing: int = 0
) -> jax.Array:
  """Rows of nucleotide tokens as the other strand reads them.

  Args:
    ids: `[..., T]` ints of the nucleotide tokenizer.
    leading: tokens in front that stay, such as [CLS].
    trailing: tokens at the end that stay, such as [SEP].

  Returns:
    The same shape.

  Example:
    >>> turn_ids(jnp.array([1, 5, 6, 2]), leading=1, trailing=1).tolist()
    [1, 7, 8, 2]

  Source: none.
  """
  end = ids.shape[-1] - trailing
  middle = jnp.asarray(COMPLEMENT, ids.dtype)[ids[..., leading:end]]
  parts = [ids[..., :leading], middle[..., ::-1], ids[..., end:]]
  return jnp.concatenate(parts, axis=-1)


def invariant(
  f: Callable[[jax.Array], jax.Array],
  turn: Callable[[jax.Array], jax.Array] = turn_ids,
) -> Callable[[jax.Array], jax.Array]:
  """A function of rows that is the same for both strands: the mean of both.

  Both strands go through `f` at once, as rows of one batch.

  Args:
    f: from `[B, T]` ids, or `[B, T, 4]` channels with a `turn` to match, to
      `[B, ...]`, such as logits of classes.
    turn: how the other strand reads its argument.

  Returns:
    The function.

  Example:
    >>> first = lambda ids: ids[:, 0].astype(jnp.float32)
    >>> invariant(first)(jnp.array([[5, 6]])).tolist()
    [6.0]

  Source: the conjoined model of Schiff et al., 2024 (Caduceus-Ph),
  https://arxiv.org/abs/2403.03234.
  """

  def both(x: jax.Array) -> jax.Array:
    forward, backward = jnp.split(f(jnp.concatenate([x, turn(x)])), 2)
    return (forward + backward) / 2

  return both


def equivariant(
  f: Callable[[jax.Array], jax.Array],
  *,
  channels: tuple[int, ...] = COMPLEMENT,
  turn: Callable[[jax.Array], jax.Array] = turn_ids,
) -> Callable[[jax.Array], jax.Array]:
  """A function of places that turns with the strand: the mean of both.

  Args:
    f: from `[B, T]` ids to `[B, T, V]`, such as logits of tokens.
    channels: of V, which takes whose place on the other strand.
    turn: how the other strand reads its argument.

  Returns:
    g, with `g(turn(x))[:, i, v] = g(x)[:, T - 1 - i, channels[v]]`.

  Example:
    >>> logits = lambda ids: jax.nn.one_hot(ids, 9)
    >>> equivariant(logits)(jnp.array([[5, 6]]))[0, 0, 5].item()
    1.0

  Source: the tied head of Schiff et al., 2024 (Caduceus-PS),
  https://arxiv.org/abs/2403.03234.
  """

  def both(x: jax.Array) -> jax.Array:
    forward, backward = jnp.split(f(jnp.concatenate([x, turn(x)])), 2)
    return (forward + backward[:, ::-1][..., jnp.asarray(channels)]) / 2

  return both


def turn_features(h: jax.Array) -> jax.Array:
  """Features of both strands as the other one has them.

  Args:
    h: `[..., T, 2D]`, a half for each strand.

  Returns:
    The same shape, places turned round and halves exchanged.

  Example:
    >>> turn_features(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[4.0, 3.0], [2.0, 1.0]]

  Source: as of `over_strands`.
  """
  first, second = jnp.split(h[..., ::-1, :], 2, axis=-1)
  return jnp.concatenate([second, first], axis=-1)


def over_strands(
  layer: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """Any layer, with one set of parameters for both strands.

  Random blocks, global tokens in front and positions are not alike in both
  directions; each strand is read in its own, so that the whole is, whatever
  the attention. It costs what two rows cost.

  Args:
    layer: from `[B, T, D]` to `[B, T, E]`, for instance one of `jaxattn.nn`.

  Returns:
    g from `[B, T, 2D]` to `[B, T, 2E]`, with
    `g(turn_features(h)) = turn_features(g(h))`.

  Example:
    >>> ramp = lambda x: x + jnp.arange(2.0)[None, :, None]
    >>> over_strands(ramp)(jnp.zeros((1, 2, 2)))[0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]

  Source: parameter sharing as of Schiff et al., 2024 (Caduceus-PS),
  https://arxiv.org/abs/2403.03234.
  """

  def both(h: jax.Array) -> jax.Array:
    first, second = jnp.split(h, 2, axis=-1)
    out = layer(jnp.concatenate([first, second[..., ::-1, :]]))
    first, second = jnp.split(out, 2)
    return jnp.concatenate([first, second[..., ::-1, :]], axis=-1)

  return both


def features_of(
  f: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """Features of both strands from an encoder of one.

  Args:
    f: from `[B, T]` nucleotide ids to `[B, T, D]`.

  Returns:
    g from ids to `[B, T, 2D]`, with `g(turn_ids(x)) = turn_features(g(x))`.

  Example:
    >>> f = lambda ids: ids[..., None].astype(jnp.float32)
    >>> features_of(f)(jnp.array([[5, 6]]))[0].tolist()
    [[5.0, 8.0], [6.0, 7.0]]

  Source: as of `over_strands`.
  """

  def both(ids: jax.Array) -> jax.Array:
    out = f(jnp.concatenate([ids, turn_ids(ids)]))
    first, second = jnp.split(out, 2)
    return jnp.concatenate([first, second[..., ::-1, :]], axis=-1)

  return both
