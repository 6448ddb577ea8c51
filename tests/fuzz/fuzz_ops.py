"""Fuzzes the operators and the extension's own functions: `python tests/fuzz/fuzz_ops.py --calls 100000 --seed 1`.

A call is a pure function of the seed and its number, so `--only NUMBER` repeats one alone. Calls run in another process
(fuzz_worker.py), which writes each to a file before it begins: after a crash or a hang, the call is known, and the
others still run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

WORKER = (sys.executable, str(Path(__file__).with_name("fuzz_worker.py")))


@dataclass
class Failure:
    number: int
    fault: str  # one line, or more with a report
    call: str = ""

    @property
    def kind(self) -> str:
        """The first line without numbers, shapes and long quotations, so that similar failures have the same kind."""
        line = re.sub(r"0x[0-9a-f]+|-?\d+", "#", self.fault.split("\n")[0])
        return re.sub(r"'[^']{20,}.*|\(#.*|(?<=KeyError): .*", "...", line)[:160]


def run_calls(seed: int, start: int, stop: int, races: bool, worker: Sequence[str] = WORKER) -> Iterator[Failure]:
    """The failures of calls from `start` on. When their process dies, another one runs the calls that are left."""
    with tempfile.TemporaryDirectory() as folder:
        progress, errors = Path(folder, "progress"), Path(folder, "stderr")
        while start < stop:
            progress.write_text(f"{start}\n")
            command = [*worker, str(seed), str(start), str(stop), "races" if races else "alone", str(progress)]
            with open(errors, "wb") as stderr:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield Failure(**json.loads(line))
                status = process.wait()
            finally:
                process.kill()
                process.stdout.close()
            if status == 0:
                return
            number, call = progress.read_text().split("\n", 1)
            yield Failure(int(number), cause_of_death(status, errors.read_text(errors="replace")), call)
            start = int(number) + 1


def cause_of_death(status: int, errors: str) -> str:
    """The kind of crash in the first line, then the report of the sanitizers or of faulthandler."""
    told = re.search(r"runtime error: .*|ERROR: AddressSanitizer: [\w-]+|Timeout \(.*|Fatal Python error: .*", errors)
    if told is None:
        return f"crash: exit status {status}\n{errors[-3000:]}"
    ours = re.findall(r"^\s+#\d+ .* in .*?(?:sf::|anonymous namespace\)::)+(\w+)", errors, re.MULTILINE)
    frames = [line for line in errors[told.start() :].split("\n") if not re.search("Python/|Objects/|Modules/", line)]
    report = "\n".join(line[:200] for line in frames[:40])
    return f"{'hang' if 'Timeout (' in errors else 'crash'}: {told[0]} in {' < '.join(ours[:3])}\n{report}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="the number of the first call")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="show this call and run it here")
    parser.add_argument("--races", action="store_true", help="calls whose arguments another process changes meanwhile")
    parser.add_argument("--shards", type=int, default=1, help="processes that share the calls")
    parser.add_argument("--failures", type=int, default=50, help="how many to find before a process stops")
    given = parser.parse_args()
    if given.only is not None:
        from fuzz_worker import run_one

        return run_one(given.seed, given.only, given.races)
    return fuzz(given)


def fuzz(given: argparse.Namespace) -> int:
    bounds = [given.start + given.calls * k // given.shards for k in range(given.shards + 1)]
    kinds: dict[str, list[int]] = {}
    lock = threading.Lock()

    def shard(k: int) -> None:
        for failure in run_calls(given.seed, bounds[k], bounds[k + 1], given.races):
            with lock:
                numbers = kinds.setdefault(failure.kind, [])
                numbers.append(failure.number)
                if len(numbers) <= 2:  # print two of each kind
                    print(f"\ncall {failure.number} of seed {given.seed}: {failure.fault}\n{failure.call}", flush=True)
                if sum(map(len, kinds.values())) >= given.failures:
                    return

    with ThreadPoolExecutor(given.shards) as pool:
        list(pool.map(shard, range(given.shards)))
    for kind, numbers in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers)} times (calls {', '.join(map(str, numbers[:5]))}): {kind}")
    failures = sum(map(len, kinds.values()))
    print(f"{given.calls} calls from {given.start} on of seed {given.seed}: {failures} failures")
    if failures:
        again = f"{sys.argv[0]} --seed {given.seed}{' --races' if given.races else ''} --only NUMBER"
        print(f"To repeat one: python {again}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
