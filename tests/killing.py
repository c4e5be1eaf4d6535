"""Kill a run with SIGKILL at random moments, again and again, and see that nothing is lost, doubled or made twice.

    python tests/killing.py MODEL CORPUS FOLDER [--kills 25] [--keep norms] [--seed 0]

Children are forked from this process, which has imported everything and used nothing, so that most kills fall into
the work and not into imports. A folder goes on from kill to kill until a child comes to its end before its kill;
its files must then be those of the run that nobody killed, and the next child begins a new folder. Prints a JSON
line a kill and a last one with the sums; exits with 1 at the first broken promise.
"""

import argparse
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from run_files import contents, shards_of

import mechreg.check  # noqa: F401  (torch, TransformerLens and all else are imported here, once)
from mechreg import store
from mechreg.run import run_spec
from mechreg.spec import Spec


def flip_a_bit(path: Path) -> None:
    """Flip the last bit of a column's values."""
    column = pq.read_metadata(path).row_group(0).column(3)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what changes when a shard is written again."""
    return {str(path): ((stat := path.stat()).st_ino, stat.st_mtime_ns) for path in shards_of(folder)}


def where(folder: Path, whole: int) -> str:
    """Return how far a run had come."""
    if not (folder / "spec.toml").exists():
        return "beginning"
    if (folder / "coefficients.parquet").exists():
        return "figures and report"
    done = len(shards_of(folder))
    return "tokens" if not (folder / "norms").exists() else "shards" if done < whole else "tables"


def child(spec: Spec, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run_spec(spec, out=folder, shard_tokens=100, progress=False)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def require(promise: bool, words: str) -> None:
    if not promise:
        sys.exit(f"broken: {words}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--keep", default="norms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-pictures", action="store_true", help="in a fraction of the time")
    args = parser.parse_args()
    if args.without_pictures:
        carry_out = importlib.import_module("mechreg.run.carry_out")
        carry_out.begin_drawing = lambda: None
        carry_out.draw_figures = lambda *args, **options: None
        carry_out.run_report = lambda folder: ""
    logging.basicConfig(level=logging.ERROR)
    spec = Spec(models=(args.model,), corpus=args.corpus, keep=args.keep)
    rng = np.random.default_rng(args.seed)

    began = time.monotonic()
    require(os.waitpid(child(spec, args.folder / "whole"), 0)[1] == 0, "the uninterrupted run failed")
    length = time.monotonic() - began
    expected = contents(args.folder / "whole")
    whole = len(shards_of(args.folder / "whole"))

    kills, ended, half_written = 0, 0, 0
    folder, near_the_end = args.folder / "killed", False
    while True:
        before = marks(folder)
        pid = child(spec, folder)
        if kills < args.kills and not near_the_end:
            time.sleep(rng.uniform(0.05, length))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        after = marks(folder)
        require(before.items() <= after.items(), "a finished shard was made again")
        damaged = store.folder.damaged_shards(folder)
        require(not damaged, f"{damaged} under the real names")
        require(not (folder / store.folder.SET_ASIDE).exists(), "a whole shard was set aside")
        if os.WIFSIGNALED(status):
            kills += 1
            left = len(list(folder.rglob(".tmp-*")))
            half_written += left > 0
            told = {
                "kill": kills,
                "in": where(folder, whole),
                "shards": len(after),
                "of": whole,
                "left": left,
            }
            near_the_end = told["in"] == "figures and report"  # the next child may come to its end
            print(json.dumps(told), flush=True)
            continue
        require(os.waitstatus_to_exitcode(status) == 0, "a run that was taken up failed")
        require(contents(folder) == expected, "a run that was taken up ended with other bytes")
        require(not list(folder.rglob(".tmp-*")), "half-written files were left")
        ended += 1
        if kills >= args.kills:
            break
        shutil.rmtree(folder)
        near_the_end = False
    print(json.dumps({"kills": kills, "runs ended": ended, "kills in a write": half_written, "broken": 0}))


if __name__ == "__main__":
    main()
