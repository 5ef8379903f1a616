r"""MNIST's images of 28 x 28 pixels, 784 tokens, with the model of the paper.

Eight layers of width 256 with 8 heads (Katharopoulos et al., 2020,
https://arxiv.org/abs/2006.16236, section 4.2.1). There are 5,000 images here
and not 60,000, of which 4,000 to learn from, and a softmax over 256 levels in
place of ten logistics: so the paper's result (0.644 bits per dimension) is not
what to expect.

Command:
  python -m experiments.common.fetch mnist_5k
  python -m experiments.images.main --workdir=runs/mnist \
    --config=experiments/images/configs/mnist.py

Hardware: meant for one accelerator. Time: not measured. Result: not run.
"""

from experiments.images import train

_OPTIONS = {"sliding_window": {"window": 128}}


def get_config(method: str = "linear") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    dataset="mnist",
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=256,
    num_layers=8,
    num_heads=8,
    dropout=0.1,
    steps=20_000,
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=500,
    final_learning_rate=0.02,
    log_every=50,
    eval_every=500,
    checkpoint_every=500,
    samples=36,
  )
