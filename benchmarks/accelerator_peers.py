"""What `benchmarks.accelerator` compares with: jax.nn and torch."""

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxattn import patterns


def versions() -> dict[str, str]:
  """Of the peers that are installed."""
  found = {}
  for name in ("torch", "triton", "nvidia-cudnn-cu13"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def jax_peers(case: str) -> dict[str, Callable[..., jax.Array]]:
  """`jax.nn` through cuDNN, where it has the pattern."""
  if case == "window":
    window: dict[str, Any] = {"local_window_size": (4095, 0)}
    window["is_causal"] = True
  elif case in ("causal", "linear"):
    window = {"is_causal": True}
  else:
    return {}
  return {
    "jax.nn, cuDNN": lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, implementation="cudnn", **window
    )
  }


def torch_peers(
  case: str, length: int, heads: int, depth: int, *, flex: bool, budget: float
) -> dict[str, Any]:
  """Seconds of torch's functions, by name and pass.

  Args:
    case: which pattern.
    length: tokens.
    heads: heads.
    depth: size of heads.
    flex: whether to compile FlexAttention, which takes a while.
    budget: seconds of measuring each.
  """
  try:
    import torch
  except ImportError:
    return {}
  if not torch.cuda.is_available():
    return {}
  generator = torch.Generator("cuda").manual_seed(0)
  query, key, value, dout = (
    torch.randn(
      (1, heads, length, depth),
      generator=generator,
      device="cuda",
      dtype=torch.bfloat16,
    )
    for _ in range(4)
  )
  functions: dict[str, Any] = {}
  if case in ("causal", "linear") or length <= 16384:
    functional = torch.nn.functional
    functions["torch SDPA"] = lambda q, k, v: (
      functional.scaled_dot_product_attention(
        q, k, v, is_causal=case != "bigbird"
      )
    )
  if flex and case != "linear":
    functions["FlexAttention"] = _flex(torch, case, length)
  found: dict[str, Any] = {}
  for name, attend in functions.items():
    found[name] = {}
    for which in ("forward", "forward+backward"):
      run = _pass(torch, attend, which, query, key, value, dout)
      try:
        found[name][which] = _measure(torch, run, budget)
      except Exception as error:  # What a peer cannot do is a result.
        found[name][which] = {"error": str(error).splitlines()[0][:200]}
  return found


def _flex(torch: Any, case: str, length: int) -> Callable[..., Any]:
  from torch.nn.attention import flex_attention

  blocks = np.arange(0, length, 64)
  pattern = patterns.RandomBlocks(3, 64).resolve(length, length)
  random = torch.tensor(
    np.asarray(pattern.mask(blocks[:, None], blocks[None, :])), device="cuda"
  )

  def window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (i >= j) & (i - j < 4096)

  def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i >= j

  def strided(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (i >= j) & (((i - j) % 128 == 0) | (i - j < 128))

  def bigbird(b: Any, h: Any, i: Any, j: Any) -> Any:
    near = (i - j).abs() <= 192
    return near | (i < 128) | (j < 128) | random[i // 64, j // 64]

  masks = {"window": window, "causal": causal, "strided": strided}
  keep = masks.get(case, bigbird)
  mask = torch.compile(flex_attention.create_block_mask, dynamic=False)(
    keep, None, None, length, length, device="cuda"
  )
  attend = torch.compile(flex_attention.flex_attention, dynamic=False)
  return lambda q, k, v: attend(q, k, v, block_mask=mask)


def _pass(
  torch: Any, attend: Any, which: str, *arrays: Any
) -> Callable[[], Any]:
  query, key, value, dout = arrays
  if which == "forward":

    def forward() -> Any:
      with torch.no_grad():
        return attend(query, key, value)

    return forward
  leaves = [x.detach().requires_grad_() for x in (query, key, value)]
  return lambda: torch.autograd.grad(attend(*leaves), leaves, dout)


def _measure(
  torch: Any, run: Callable[[], Any], budget: float
) -> dict[str, Any]:
  run()
  torch.cuda.synchronize()
  before = torch.cuda.memory_allocated()
  torch.cuda.reset_peak_memory_stats()
  run()
  torch.cuda.synchronize()
  peak = torch.cuda.max_memory_allocated() - before

  def batch(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count

  count = max(1, int(budget / 3 / max(batch(2), 1e-6)))
  return {"seconds": min(batch(count) for _ in range(3)), "temporary": peak}
