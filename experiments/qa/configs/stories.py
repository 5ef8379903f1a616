r"""NarrativeQA's questions upon summaries: minutes on 2 CPU cores.

So few questions teach no one to read from nothing: it stays below floors. It
shows what a run on real questions looks like.

Command:
  python -m experiments.common.fetch stories
  python -m experiments.qa.main --workdir=runs/qa_stories \
    --config=experiments/qa/configs/stories.py

Hardware: 2 CPU cores, shared with other work.
Time: 5 minutes in all.
Result: F1 4.3 on 296 held-out questions, above a random span (4.1), below the
first sentence (6.0) and the most similar one (17.2). Seed 0.
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
