"""Runs every check of the project and says how long each took.

python -m tests                 all but the slow ones
python -m tests --slow          the slow tests and the quickstart as well
python -m tests --only doctests --only wheel
"""

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import jaxattn
assert jaxattn.__file__.startswith(sys.argv[1]), jaxattn.__file__
assert "flax" not in sys.modules, "import jaxattn imports flax"
import jaxattn.nn.linen, jaxattn.nn.nnx, jaxattn.models.encoder_decoder
print("jaxattn", jaxattn.__version__, "imports from its wheel")
"""

Stage = Callable[[], int]


def _python(*arguments: str) -> int:
  """Runs this interpreter on `arguments` at the root of the checkout."""
  return subprocess.run([sys.executable, *arguments], cwd=_ROOT).returncode


def _tool(name: str, *arguments: str) -> Stage:
  """A stage that runs an executable of this environment."""
  path = pathlib.Path(sys.executable).parent / name
  return lambda: subprocess.run([path, *arguments], cwd=_ROOT).returncode


def _pytest(*arguments: str) -> Stage:
  return lambda: _python("-m", "pytest", *arguments)


def _wheel() -> int:
  """Builds the wheel and imports it without the checkout."""
  with tempfile.TemporaryDirectory() as folder:
    if _python(
      "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "."
    ):
      return 1
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    inside = pathlib.Path(folder, "inside")
    with zipfile.ZipFile(wheel) as archive:
      archive.extractall(inside)
      tops = {name.partition("/")[0] for name in archive.namelist()}
    strays = {t for t in tops if t != "jaxattn" and ".dist-info" not in t}
    if strays:
      print(f"the wheel holds more than jaxattn: {sorted(strays)}")
      return 1
    command = [sys.executable, "-I", "-c", _IMPORT, str(inside.resolve())]
    return subprocess.run(command, cwd=folder).returncode


def _quickstart() -> int:
  """Runs the experiments at their smallest setting."""
  with tempfile.TemporaryDirectory() as folder:
    codes = [
      _python(
        "-m",
        f"{name}.main",
        f"--config={name.replace('.', '/')}/configs/smoke.py",
        f"--workdir={folder}/{name}",
      )
      for name in _EXPERIMENTS
    ]
  return max(codes)


# Those whose smallest setting downloads nothing.
_EXPERIMENTS = (
  "experiments.classification",
  "experiments.images",
  "experiments.lm",
  "experiments.mlm",
  "experiments.qa",
  "experiments.summarization",
  "experiments.synthetic",
)
_STAGES: dict[str, Stage] = {
  "lint": _tool("ruff", "check", "."),
  "format": _tool("ruff", "format", "--check", "."),
  "types": _tool(
    "pyrefly", "check", f"--python-interpreter-path={sys.executable}"
  ),
  "imports": _tool("lint-imports", "--no-cache"),
  "tests": _pytest(
    "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow", "--durations=10"
  ),
  # The plug-in gives the modules outside tests/ the names of their examples.
  "doctests": _pytest(
    "-q",
    "-n",
    "2",
    "-p",
    "tests.conftest",
    "--doctest-modules",
    # Programs define flags, some of the same name, and hold no examples.
    "--ignore-glob=*/main.py",
    "jaxattn",
    "experiments",
    "genomics",
  ),
  "wheel": _wheel,
}
_SLOW_STAGES: dict[str, Stage] = {
  "slow": _pytest("-q", "--durations=10", "-m", "slow"),
  "quickstart": _quickstart,
}


def main() -> int:
  """Runs the stages asked for; returns how many failed."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--slow", action="store_true", help="run the slow stages as well"
  )
  parser.add_argument(
    "--only",
    action="append",
    choices=[*_STAGES, *_SLOW_STAGES],
    help="run this stage only; may be repeated",
  )
  options = parser.parse_args()
  stages = _STAGES | _SLOW_STAGES
  names = options.only or list(stages if options.slow else _STAGES)
  results = {}
  for name in names:
    print(f"\n=== {name}", flush=True)
    start = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
      code = stages[name]()
      results[name] = (code, time.monotonic() - start)
      continue
    return 130
  print("\nstage        seconds  result")
  for name, (code, seconds) in results.items():
    print(f"{name:<12} {seconds:7.1f}  {'ok' if code == 0 else 'FAILED'}")
  failed = [name for name, (code, _) in results.items() if code]
  print(f"{len(results) - len(failed)} of {len(results)} stages passed")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
