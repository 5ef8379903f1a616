r"""SQuAD's development articles whole, by windows of 1,024 tokens.

They are split by article, so the result is none of SQuAD's.

Command:
  python -m experiments.common.fetch squad
  python -m experiments.qa.main --workdir=runs/qa_squad \
    --config=experiments/qa/configs/squad.py

Hardware: meant for one accelerator. Time: not measured. Result: not run.
"""

from experiments.qa import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 2},
  "longformer": {"window": 128},
  "sliding_window": {"window": 65, "right": 64},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="squad",
    eval_questions=200,
    tokenizer="bpe",
    vocab_size=16_384,
    length=1024,
    stride=768,
    max_question=48,
    empty_rate=0.1,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=256,
    num_layers=6,
    num_heads=8,
    dropout=0.1,
    steps=20_000,
    batch_size=32,
    learning_rate=5e-4,
    warmup_steps=1000,
    final_learning_rate=0.05,
    beta2=0.98,
    log_every=50,
    eval_every=2000,
    checkpoint_every=1000,
  )
