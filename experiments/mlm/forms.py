"""The two forms of a masked language model: any encoder, and ETC."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxattn
from experiments.common import encoders
from experiments.common import files
from experiments.common import transformers
from experiments.mlm import hiding
from jaxattn.models import etc
from jaxattn.models import heads
from jaxattn.models import losses


def nats_of(logits: jax.Array, hidden: Any) -> jax.Array:
  """Nats of every hidden token, `[B, P]`, 0 where there is none."""
  targets = jnp.where(hidden.weights, hidden.targets, 0)
  nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.where(hidden.weights, nats, 0.0)


class EncoderForm:
  """An encoder with any attention method.

  Args:
    config: of the run.
    hide: hides tokens.

  Raises:
    UserError: if the options do not fit together.

  Example:
    >>> from experiments.common import tokens
    >>> from experiments.mlm import train
    >>> config = train.Config(width=32)
    >>> EncoderForm(config, hiding.Hider(tokens.Bytes())).model.cfg.width
    32

  Source: `jaxattn.models.heads.MaskedLanguageModel`.
  """

  apart = True  # Whether the documents of a row can be kept so.

  def __init__(self, config: Any, hide: hiding.Hider):
    self._config = config
    cfg = encoders.model_config(
      config, vocab_size=hide.vocab_size, length=config.length
    )
    self.model = heads.MaskedLanguageModel(cfg)

  def init(self, rng: jax.Array) -> Any:
    """Variables of the model."""
    tokens = jnp.zeros((1, min(self._config.length, 8)), jnp.int32)
    return self.model.init(rng, tokens)

  def check(self, documents: int) -> None:
    """Raises UserError if the method does not take the rows."""
    config = self._config
    transformers.check_rows(
      config, self.model, config.length, f"--config.length {config.length}"
    )
    if documents > 1 and not config.join_documents:
      methods = self.model.cfg.layer_methods()
      transformers.check_segments(config, methods)

  def logits(
    self,
    params: Any,
    carried: Any,
    batch: Any,
    hidden: Any,
    rng: jax.Array | None,
    *,
    train: bool,
  ) -> tuple[jax.Array, Any]:
    """Logits `[B, P, V]` of what is hidden, and the model's collections."""
    mask, positions = jaxattn.FULL, None
    if "segment_ids" in batch:
      mask = jaxattn.packed(batch["segment_ids"], causal=False, pad_id=0)
      if self.model.cfg.positions != "none":
        positions = batch["positions"]
    return self.model.apply(
      {"params": params, **carried},
      hidden.tokens,
      predict=hidden.places,
      mask=mask,
      positions=positions,
      train=train,
      rngs=transformers.draws(rng),
      mutable=list(carried),
    )

  def loss(
    self, params: Any, carried: Any, batch: Any, hidden: Any, rng: jax.Array
  ) -> tuple[jax.Array, jax.Array, Any]:
    """Sum of the loss, of its weights, and the model's collections."""
    logits, carried = self.logits(
      params, carried, batch, hidden, rng, train=True
    )
    nats = jnp.sum(nats_of(logits, hidden))
    return nats, jnp.sum(hidden.weights), dict(carried)


class EtcForm:
  """ETC: a global token for every line, and the CPC loss on hidden lines.

  In each row, lines are hidden whole; of each the global token, which still
  stands in the row, has to be more like that line encoded alone than like the
  other hidden lines of the batch. Hidden words in hidden lines do not count.
  Rows are read as one text.

  Args:
    config: of the run.
    hide: hides tokens.

  Raises:
    UserError: if the options do not fit together.

  Example:
    >>> from experiments.common import tokens
    >>> from experiments.mlm import train
    >>> config = train.Config(model="etc", positions="none", width=32,
    ...                       join_documents=True)
    >>> EtcForm(config, hiding.Hider(tokens.Bytes())).model.cfg.vocab_size
    259

  Source: Ainslie et al., 2020, https://arxiv.org/abs/2004.08483, section 3.4.
  """

  apart = False

  def __init__(self, config: Any, hide: hiding.Hider):
    if not config.join_documents:
      raise files.UserError(
        "--config.model=etc reads a row as one text: set "
        "--config.join_documents."
      )
    self._config, self._hide = config, hide
    decoded = [
      hide.tokenizer.decode(np.array([i], np.int32))
      for i in range(hide.tokenizer.separator)
    ]
    # Separator and mask end no line; the next id is that of global tokens.
    self._ends = np.array(["\n" in x for x in decoded] + [True, False])
    self._global_id = hide.vocab_size
    cfg = encoders.etc_config(config, vocab_size=hide.vocab_size + 1)
    self.model = etc.EtcMaskedLM(cfg)

  def init(self, rng: jax.Array) -> Any:
    """Variables of the model."""
    tokens = jnp.zeros((1, min(self._config.length, 8)), jnp.int32)
    return self.model.init(rng, *self._inputs(tokens, tokens))

  def check(self, documents: int) -> None:
    """Raises UserError if the model does not take the rows."""
    del documents  # It joins them.
    try:
      jax.eval_shape(self.init, jax.random.key(0))
    except (ValueError, NotImplementedError) as error:
      raise files.UserError(f"the model does not run: {error}") from error

  def lines(self, tokens: jax.Array) -> jax.Array:
    """Of every token its line, `[B, T]`; the last takes those beyond."""
    ends = jnp.asarray(self._ends)[tokens[:, :-1]]
    line = jnp.cumsum(ends, axis=-1, dtype=jnp.int32)
    line = jnp.pad(line, ((0, 0), (1, 0)))
    return jnp.minimum(line, self._config.etc_lines - 1)

  def _inputs(self, tokens: jax.Array, was: jax.Array) -> etc.EtcInputs:
    return etc.sentence_inputs(
      tokens,
      self.lines(was),
      num_global=self._config.etc_lines,
      global_id=self._global_id,
    )

  def _apply(
    self, params: Any, inputs: etc.EtcInputs, rng: jax.Array | None, train: bool
  ) -> Any:
    return self.model.apply(
      {"params": params}, *inputs, train=train, rngs=transformers.draws(rng)
    )

  def logits(
    self,
    params: Any,
    carried: Any,
    batch: Any,
    hidden: Any,
    rng: jax.Array | None,
    *,
    train: bool,
  ) -> tuple[jax.Array, Any]:
    """Logits `[B, P, V]` of what is hidden; no line is hidden."""
    inputs = self._inputs(hidden.tokens, batch["inputs"])
    logits, _ = self._apply(params, inputs, rng, train)
    return _at(logits, hidden.places), carried

  def loss(
    self, params: Any, carried: Any, batch: Any, hidden: Any, rng: jax.Array
  ) -> tuple[jax.Array, jax.Array, Any]:
    """Sum of the loss, of its weights, and the model's collections."""
    rng, line_rng = jax.random.split(rng)
    mlm, weight, cpc = self.parts(params, batch, hidden, line_rng, rng)
    share = self._config.cpc_weight
    total = losses.etc_pretraining_loss(mlm, cpc, cpc_weight=share)
    return total * weight, weight, carried

  def parts(
    self,
    params: Any,
    batch: Any,
    hidden: Any,
    line_rng: jax.Array,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The masked loss, its weight, and the CPC loss, in nats.

    Args:
      params: of the model.
      batch: of `PackedRows`.
      hidden: of the hider.
      line_rng: draws the hidden lines.
      rng: of dropout; None without.

    Returns:
      Three scalars.
    """
    config, was = self._config, batch["inputs"]
    found = losses.hide_sentences(
      line_rng,
      was,
      self.lines(was),
      num_sentences=config.etc_lines,
      max_hidden=config.cpc_lines,
      max_length=config.cpc_length,
      mask_id=self._hide.mask_id,
      rate=config.cpc_rate,
      pad_id=self._hide.tokenizer.separator,
    )
    tokens = jnp.where(found.hidden, found.tokens, hidden.tokens)
    train = rng is not None
    keys = (None, None) if rng is None else jax.random.split(rng)
    logits, global_ = self._apply(
      params, self._inputs(tokens, was), keys[0], train
    )
    gone = jnp.take_along_axis(found.hidden, hidden.places, axis=-1)
    kept = hidden._replace(weights=hidden.weights & ~gone)
    weight = jnp.sum(kept.weights)
    nats = nats_of(_at(logits, kept.places), kept)
    mlm = jnp.sum(nats) / jnp.maximum(weight, 1)
    alone = found.sentence_tokens.reshape(-1, config.cpc_length)
    valid = found.sentence_valid.reshape(alone.shape)
    single = etc.sentence_inputs(
      alone,
      jnp.where(valid, 0, -1),
      num_global=1,
      global_id=self._global_id,
    )
    _, encoded = self._apply(params, single, keys[1], train)
    context = _at(global_, jnp.maximum(found.sentences, 0))
    encoded = encoded.reshape(*context.shape)
    cpc = losses.cpc_loss(context, encoded, found.sentences >= 0)
    return mlm, weight.astype(jnp.float32), cpc


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
  """`[B, P, D]` of `[B, T, D]` at `[B, P]` places."""
  return jnp.take_along_axis(x, places[..., None], axis=1)


_FORMS = {"encoder": EncoderForm, "etc": EtcForm}


def make(config: Any, hide: hiding.Hider) -> EncoderForm | EtcForm:
  """The form that a configuration names.

  Args:
    config: of the run.
    hide: hides tokens.

  Returns:
    The form.

  Raises:
    UserError: if there is none of this name or the options do not fit.
  """
  if config.model not in _FORMS:
    raise files.UserError(
      f"--config.model must be encoder or etc, got {config.model!r}."
    )
  return _FORMS[config.model](config, hide)
