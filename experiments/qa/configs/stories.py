r"""NarrativeQA's questions upon summaries: minutes on 2 CPU cores.

A thousand questions are too few to learn to read from nothing; expect it below
the floors. It shows what a run on real questions looks like.

Command:
  python -m experiments.common.fetch stories
  python -m experiments.qa.main --workdir=runs/qa_stories \
    --config=experiments/qa/configs/stories.py
"""

from experiments.qa import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 64},
  "sliding_window": {"window": 33, "right": 32},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="stories",
    eval_questions=64,
    tokenizer="bpe",
    vocab_size=4096,
    length=512 if method == "dense" else 1408,
    max_question=32,
    max_answer=16,
    empty_rate=0.0,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.1,
    steps=150,
    batch_size=8,
    learning_rate=2e-3,
    warmup_steps=20,
    final_learning_rate=0.05,
    beta2=0.98,
    log_every=25,
    eval_every=75,
    checkpoint_every=75,
  )
