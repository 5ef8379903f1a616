"""The structured mask: its meaning, its checks and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxattn

_Q, _K = 4, 5


def _dense(mask):
  return np.asarray(jnp.broadcast_to(mask.dense(_Q, _K), (2, 1, _Q, _K)))


class MaskTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("full", {}, lambda b, i, j: True),
    ("causal", {"causal": True}, lambda b, i, j: j <= i),
    (
      "keys",
      {"key_valid": [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]},
      lambda b, i, j: ([1, 1, 0, 1, 0], [1, 0, 0, 0, 0])[b][j],
    ),
    (
      "queries",
      {"query_valid": [[1, 0, 1, 1]]},
      lambda b, i, j: (1, 0, 1, 1)[i],
    ),
    (
      "segments",
      {
        "query_segment_ids": [[0, 0, 1, 2]],
        "key_segment_ids": [[0, 1, 1, 2, 3]],
      },
      lambda b, i, j: (0, 0, 1, 2)[i] == (0, 1, 1, 2, 3)[j],
    ),
    (
      "positions",
      {
        "causal": True,
        "query_positions": [[7, 1, 2, 0]],
        "key_positions": [[3, 0, 9, 1, 2]],
      },
      lambda b, i, j: (3, 0, 9, 1, 2)[j] <= (7, 1, 2, 0)[i],
    ),
    (
      "offset",
      {"causal": True, "query_positions": [[1, 2, 3, 4]]},
      lambda b, i, j: j <= i + 1,
    ),
  )
  def test_dense_is_the_definition(self, given, definition):
    given = {
      k: v if v is True else jnp.asarray(v, bool if "valid" in k else int)
      for k, v in given.items()
    }
    mask = jaxattn.Mask(**given).check((2,), _Q, _K)
    want = [
      [[[definition(b, i, j) for j in range(_K)] for i in range(_Q)]]
      for b in range(2)
    ]
    np.testing.assert_array_equal(_dense(mask), np.asarray(want, bool))

  def test_packed_documents_see_only_themselves(self):
    mask = jaxattn.packed(jnp.array([[1, 1, 2, 0]]), causal=True, pad_id=0)
    want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(mask.dense(4, 4)[0, 0], want)

  def test_is_a_pytree_with_static_causal(self):
    mask = jaxattn.Mask(causal=True, key_valid=jnp.ones((2, _K), bool))
    leaves, tree = jax.tree.flatten(mask)
    self.assertLen(leaves, 1)
    self.assertTrue(jax.tree.unflatten(tree, leaves).causal)

  @parameterized.named_parameters(
    (
      "shape",
      {"key_valid": jnp.ones((2, _Q), bool)},
      r"mask.key_valid must have shape \(2, 5\), got \(2, 4\)",
    ),
    ("rank", {"key_valid": jnp.ones((_K,), bool)}, "mask.key_valid"),
    ("dtype", {"key_valid": jnp.ones((2, _K))}, "must be bool"),
    (
      "ids",
      {
        "query_segment_ids": jnp.ones((2, _Q)),
        "key_segment_ids": jnp.ones((2, _K)),
      },
      "must be integers",
    ),
    ("alone", {"query_segment_ids": jnp.ones((2, _Q), int)}, "go together"),
    ("unused", {"key_positions": jnp.ones((2, _K), int)}, "causal=True"),
  )
  def test_bad_masks_are_named(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      jaxattn.Mask(**given).check((2,), _Q, _K)

  def test_refuses_what_an_op_cannot_honour(self):
    mask = jaxattn.Mask(causal=True, key_valid=jnp.ones((2, _K), bool))
    self.assertIs(mask.only("causal", "key_valid", by="op"), mask)
    with self.assertRaisesRegex(NotImplementedError, "op .* mask.key_valid"):
      mask.only("causal", by="op")
