"""A worker of `python -m benchmarks.gpu` without torch or GPU, whose parts do what their names say.

    python gpu_worker.py LOG STAGE/NAME ...      a part's kind is its name up to the first digit

LOG gets a line for each start and each part that begins.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.messages import tell

FACTS = {"device": "NVIDIA H200", "torch": "2.11.0", "cuda": "13.0", "cudnn": 91900}


def part(name: str) -> None:
    if name.startswith("hang"):
        tell(found={"line": "half of it", "error": 0.5})
        time.sleep(600)
    if name.startswith("mute"):
        time.sleep(600)
    if name.startswith("die"):
        print("CUDA error: an illegal memory access was encountered", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("endless"):
        while True:
            tell(beat=True)
            time.sleep(0.05)
    if name.startswith("slow"):
        time.sleep(0.5)
    if name.startswith("sick"):
        tell(done={"failed": "left the device in error: illegal memory access"}, last=True)
        sys.exit(17)
    result = {"failed": "wrong: h_n: error 1.0e-01"} if name.startswith("wrong") else {"line": f"{name} is fine"}
    tell(done=result)


def main() -> None:
    log, names = Path(sys.argv[1]), sys.argv[2:]

    def note(what: str) -> None:
        with log.open("a") as file:
            print(what, file=file)

    note("start")
    if names == ["cannot"]:
        raise SystemExit("torch 2.11.0 sees no CUDA device here")
    if names == ["silent"]:
        time.sleep(600)
    kinds = {name: name.partition("/")[2].rstrip("0123456789") for name in names}
    tell(parts=[[name.partition("/")[0], name, kind] for name, kind in kinds.items()], facts=FACTS)
    for line in sys.stdin:
        name = line.split()[0]
        note(name)
        part(name.partition("/")[2])


if __name__ == "__main__":
    main()
