"""Longformer and LED against Hugging Face Transformers, small and random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxattn
from jaxattn.models import encoder
from jaxattn.models import encoder_decoder
from jaxattn.models import heads

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

_HEADS, _DEPTH, _WIDTH, _VOCAB = 2, 4, 8, 31
_LOCAL = ("query", "key", "value")
_ALL = (*_LOCAL, *(f"{name}_global" for name in _LOCAL))


class _Weights:
  """Tensors of a model by name, in our shapes."""

  def __init__(self, model):
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
      size = 0.3 * torch.randn_like(weight)
      scale = "norm" in name.lower() and name.endswith("weight")
      weight.data = size + 1.0 if scale else size
    self._found = model.state_dict()

  def __call__(self, name):
    return jnp.asarray(self._found[name].detach().numpy())

  def linear(self, name):
    return {"kernel": self(f"{name}.weight").T, "bias": self(f"{name}.bias")}

  def heads(self, name):
    found = self.linear(name)
    return {
      "kernel": found["kernel"].reshape(_WIDTH, _HEADS, _DEPTH),
      "bias": found["bias"].reshape(_HEADS, _DEPTH),
    }

  def out(self, name):
    found = self.linear(name)
    kernel = found["kernel"].reshape(_HEADS, _DEPTH, _WIDTH)
    return {"kernel": kernel, "bias": found["bias"]}

  def norm(self, name):
    return {"scale": self(f"{name}.weight"), "bias": self(f"{name}.bias")}

  def block(self, prefix, attention, out, norm, feed):
    """A block of an encoder; `feed` names its three other parts."""
    mixing = {name: self.heads(prefix + attention + name) for name in _ALL}
    mixing["out"] = self.out(prefix + out)
    first, second, last = (prefix + name for name in feed)
    return {
      "attention": mixing,
      "attention_norm": self.norm(prefix + norm),
      "mlp_in": self.linear(first),
      "mlp_out": self.linear(second),
      "mlp_norm": self.norm(last),
    }


def _rows():
  """Padded rows with other global tokens in each."""
  tokens = np.random.default_rng(0).integers(3, _VOCAB, (2, 21))
  tokens[1, 15:] = 1
  marks = np.zeros_like(tokens)
  marks[0, [0, 11]] = marks[1, 3] = 1
  return tokens, tokens != 1, marks


def _call(model, variables, tokens, valid, **inputs):
  mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
  name = "source_mask" if "target" in inputs else "mask"
  target = [inputs.pop("target")] if "target" in inputs else []
  return jax.jit(model.apply)(
    {"params": variables},
    jnp.asarray(tokens),
    *target,
    global_positions=jnp.array([[0, 11], [3, -1]]),
    **{name: mask},
    **inputs,
  )


def _same_tree(model, params, *inputs):
  made = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  want = jax.tree.map(lambda x: x.shape, nn.unbox(made))
  assert jax.tree.map(lambda x: x.shape, params) == want


def _longformer_params(weights):
  at = "longformer.embeddings."
  return {
    "encoder": {
      "embed": {"embedding": weights(at + "word_embeddings.weight")},
      "position_embed": {
        "embedding": weights(at + "position_embeddings.weight")
      },
      "type_embed": {"embedding": weights(at + "token_type_embeddings.weight")},
      "embed_norm": weights.norm(at + "LayerNorm"),
      **{
        f"blocks_{i}": weights.block(
          f"longformer.encoder.layer.{i}.",
          "attention.self.",
          "attention.output.dense",
          "attention.output.LayerNorm",
          ("intermediate.dense", "output.dense", "output.LayerNorm"),
        )
        for i in range(2)
      },
    },
    "transform": weights.linear("lm_head.dense"),
    "norm": weights.norm("lm_head.layer_norm"),
    "bias": weights("lm_head.bias"),
  }


def test_longformer_for_masked_language_modelling():
  config = transformers.LongformerConfig(
    vocab_size=_VOCAB,
    hidden_size=_WIDTH,
    num_hidden_layers=2,
    num_attention_heads=_HEADS,
    intermediate_size=12,
    attention_window=[4, 8],
    max_position_embeddings=40,
    type_vocab_size=1,
    pad_token_id=1,
  )
  theirs = transformers.LongformerForMaskedLM(config).eval()
  weights = _Weights(theirs)
  ours = heads.MaskedLanguageModel(
    encoder.EncoderConfig(
      vocab_size=_VOCAB,
      width=_WIDTH,
      num_layers=2,
      num_heads=_HEADS,
      mlp_width=12,
      methods=tuple(jaxattn.longformer(window=w) for w in (4, 8)),
      global_projections=True,
      max_length=40,
      type_vocab_size=1,
      layer_norm_eps=config.layer_norm_eps,
    )
  )
  params = _longformer_params(weights)
  tokens, valid, marks = _rows()
  _same_tree(ours, params, jnp.asarray(tokens))
  with torch.no_grad():
    want = theirs(
      torch.tensor(tokens),
      attention_mask=torch.tensor(valid.astype(int)),
      global_attention_mask=torch.tensor(marks),
    ).logits.numpy()
  positions = jnp.asarray(np.cumsum(valid, 1) * valid + 1)
  got = _call(ours, params, tokens, valid, positions=positions)
  # 1e-4: their scores are float32 with a mask of -10000 added.
  np.testing.assert_allclose(got[valid], want[valid], atol=2e-4)


def _led_params(weights):
  feed = ("fc1", "fc2", "final_layer_norm")

  def decoder_block(prefix):
    def attention(name):
      found = {x: weights.heads(f"{prefix}{name}.{x[0]}_proj") for x in _LOCAL}
      return {**found, "out": weights.out(f"{prefix}{name}.out_proj")}

    return {
      "attention": attention("self_attn"),
      "attention_norm": weights.norm(prefix + "self_attn_layer_norm"),
      "cross": attention("encoder_attn"),
      "cross_norm": weights.norm(prefix + "encoder_attn_layer_norm"),
      "mlp_in": weights.linear(prefix + feed[0]),
      "mlp_out": weights.linear(prefix + feed[1]),
      "mlp_norm": weights.norm(prefix + feed[2]),
    }

  def stack(name, make):
    at = f"led.{name}."
    return {
      "position_embed": {"embedding": weights(at + "embed_positions.weight")},
      "embed_norm": weights.norm(at + "layernorm_embedding"),
      **{f"blocks_{i}": make(f"{at}layers.{i}.") for i in range(2)},
    }

  return {
    "embed": {"embedding": weights("led.shared.weight")},
    "encoder": stack(
      "encoder",
      lambda prefix: weights.block(
        prefix,
        "self_attn.longformer_self_attn.",
        "self_attn.output",
        "self_attn_layer_norm",
        feed,
      ),
    ),
    "decoder": stack("decoder", decoder_block),
  }


def test_led():
  config = transformers.LEDConfig(
    vocab_size=_VOCAB,
    d_model=_WIDTH,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=_HEADS,
    decoder_attention_heads=_HEADS,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    attention_window=[4, 8],
    max_encoder_position_embeddings=32,
    max_decoder_position_embeddings=16,
    pad_token_id=1,
  )
  theirs = transformers.LEDForConditionalGeneration(config).eval()
  weights = _Weights(theirs)
  ours = encoder_decoder.EncoderDecoder(
    encoder_decoder.led(
      vocab_size=_VOCAB,
      width=_WIDTH,
      num_layers=2,
      num_heads=_HEADS,
      mlp_width=12,
      window=(4, 8),
      max_source=32,
      max_target=16,
      dropout=0.0,
    )
  )
  params = _led_params(weights)
  tokens, valid, marks = _rows()
  target = np.random.default_rng(1).integers(3, _VOCAB, (2, 7))
  _same_tree(ours, params, jnp.asarray(tokens), jnp.asarray(target))
  with torch.no_grad():
    want = theirs(
      torch.tensor(tokens),
      attention_mask=torch.tensor(valid.astype(int)),
      global_attention_mask=torch.tensor(marks),
      decoder_input_ids=torch.tensor(target),
    ).logits.numpy()
  got = _call(ours, params, tokens, valid, target=jnp.asarray(target))
  np.testing.assert_allclose(got, want, atol=1e-4)
