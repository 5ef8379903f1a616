"""What every test runs under; loaded before anything imports JAX."""

import os

_DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get(
  "XLA_FLAGS", ""
):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}"

# ruff: noqa: E402
import gc
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn

_ROOT = pathlib.Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
# Raw uint32 keys are refused: the library takes `jax.random.key` only.
jax.config.update("jax_legacy_prng_key", "error")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
  jax.config.update("jax_compilation_cache_dir", str(_ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Compiling takes most of the time, and much less of it without optimizations;
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment tests with them.
if not os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
  jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile(
  "jaxattn", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("jaxattn")

# Modules that touch neither Flax nor optax, which break under strict dtypes.
STRICT_DTYPES = frozenset(
  {
    "bigbird_plans_test",
    "bigbird_test",
    "block_sparse_test",
    "bucketed_test",
    "bucketed_tpu_test",
    "etc_method_test",
    "etc_test",
    "dispatch_test",
    "explain_test",
    "favor_test",
    "gathered_test",
    "global_tokens_test",
    "hopper_kernels_test",
    "jaxpr_walker_test",
    "kmeans_test",
    "layout_test",
    "linear_attention_test",
    "linformer_test",
    "longformer_test",
    "lsh_test",
    "masks_test",
    "merge_test",
    "method_contract_test",
    "method_cost_test",
    "method_decoding_test",
    "patterns_test",
    "positions_test",
    "reformer_test",
    "reversible_test",
    "routing_test",
    "sinkhorn_sorting_test",
    "sinkhorn_test",
    "sparse_transformer_test",
    "split_heads_test",
    "star_test",
    "synthesizer_learning_test",
    "synthesizer_limits_test",
    "synthesizer_test",
    "token_projections_test",
    "tpu_kernels_test",
  }
)


@pytest.fixture(autouse=True)
def strict_dtypes(request):
  """Forbids implicit dtype promotion in the modules listed above."""
  name = getattr(request, "module", None)
  name = "" if name is None else name.__name__.rpartition(".")[2]
  mode = "strict" if name in STRICT_DTYPES else "standard"
  with jax.numpy_dtype_promotion(mode):
    yield


@pytest.fixture(scope="module", autouse=True)
def _forget():
  """Frees what a module traced and compiled: gigabytes, by the end."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
  doctest_namespace.update(jax=jax, jnp=jnp, np=np, jaxattn=jaxattn)


def pytest_collection_modifyitems(items):
  """Skips what needs a device that is not here."""
  platform = jax.default_backend()
  for item in items:
    for kind in ("gpu", "tpu"):
      if item.get_closest_marker(kind) and platform != kind:
        item.add_marker(pytest.mark.skip(reason=f"needs a {kind}"))
