"""BigBird against Hugging Face Transformers; needs the `parity` extra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn._src import bigbird
from jaxattn._src import bigbird_plans
from tests import method_cases as cases

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
big_bird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")

_HEADS, _DEPTH = 2, 8

# Tokens, block, random blocks: each way in which a plan is made.
_CASES = [
  (1024, 64, 3),
  (3072, 128, 2),
  (192, 16, 3),
  (64, 8, 3),
  (168, 8, 8),
]


def _attention(block, num_random, layer):
  """Their attention layer, with random projections."""
  torch.manual_seed(layer)
  config = big_bird.BigBirdConfig(
    hidden_size=_HEADS * _DEPTH,
    num_attention_heads=_HEADS,
    block_size=block,
    num_random_blocks=num_random,
    max_position_embeddings=4096,
  )
  layer = big_bird.BigBirdBlockSparseAttention(config, seed=layer)
  for weight in layer.parameters():
    torch.nn.init.normal_(weight, std=0.5)
  return layer


@pytest.mark.parametrize("layer", [0, 1, 7])
@pytest.mark.parametrize("case", _CASES)
def test_plan_in_training(case, layer):
  length, block, num_random = case
  theirs = _attention(block, num_random, layer).train()
  np.random.seed(layer)
  if length in (1024, 3072, 4096):
    want = [
      theirs._bigbird_block_rand_mask(
        4096, 4096, block, block, num_random, last_idx=1024
      )[: length // block - 2]
      for _ in range(_HEADS)
    ]
  else:
    ends, counts = theirs._get_rand_attn_plan(length, block, num_random)
    want = theirs._bigbird_block_rand_mask_with_head(
      length, length, block, block, _HEADS, ends, counts
    )
  got = bigbird_plans.huggingface_plan(
    _HEADS, length, block=block, num_random=num_random, layer=layer, train=True
  )
  np.testing.assert_array_equal(got, np.stack(want))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", _CASES)
def test_attention(case, train, padded):
  """Both sum some hundred products in float32: 1e-5 of the largest entry."""
  length, block, num_random = case
  theirs = _attention(block, num_random, 3).train(train)
  x = torch.randn(2, length, _HEADS * _DEPTH)
  valid = np.ones((2, length), bool)
  if padded:
    valid[0, length - block - 5 :] = False
    valid[1, 3 * block // 2 : 2 * block] = False
  blocked, band, rows, cols = (
    big_bird.BigBirdModel.create_masks_for_block_sparse_attn(
      torch.tensor(valid, dtype=torch.float32), block
    )
  )
  with torch.no_grad():
    want, _ = theirs(x, band, rows, cols, blocked, blocked)
    qkv = [
      jnp.asarray(f(x).numpy()).reshape(2, length, _HEADS, _DEPTH)
      for f in (theirs.query, theirs.key, theirs.value)
    ]
  # Explicit, because their models attend fully to the shorter inputs.
  plan = bigbird_plans.huggingface_plan(
    _HEADS, length, block=block, num_random=num_random, layer=3, train=train
  )
  methods = [bigbird.bigbird(block=block, plan=plan)]
  if length > (5 + 2 * num_random) * block:
    name = "huggingface_train" if train else "huggingface"
    methods.append(
      bigbird.bigbird(block=block, num_random=num_random, plan=name, layer=3)
    )
  mask = jaxattn.FULL
  if padded:
    valid = jnp.asarray(valid)
    mask = jaxattn.Mask(key_valid=valid, query_valid=valid)
  attend = jax.jit(
    lambda method, *qkv, mask: method.apply((), (), *qkv, mask=mask)[0],
    static_argnums=0,
  )
  for method in methods:
    got = attend(method, *qkv, mask=mask)
    cases.assert_close(got.reshape(want.shape), want.numpy(), 1e-5)


@pytest.mark.parametrize("extra", [0, 1])
def test_short_inputs_take_full_attention(extra):
  block, num_random = 4, 1
  config = big_bird.BigBirdConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    block_size=block,
    num_random_blocks=num_random,
  )
  model = big_bird.BigBirdModel(config).eval()
  length = (5 + 2 * num_random) * block + extra
  model(torch.ones((1, length), dtype=torch.long))
  full = model.attention_type == "original_full"
  method = bigbird.bigbird(
    block=block, num_random=num_random, plan="huggingface"
  )
  found = method.pattern(2, length, length)
  assert full == (extra == 0)
  assert full == (found == jaxattn.patterns.Full())
