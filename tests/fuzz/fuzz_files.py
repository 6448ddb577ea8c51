"""Fuzzes what reads files, guided by coverage: `make fuzz-files SECONDS=300`. Targets are in file_targets.py.

    python tests/fuzz/fuzz_files.py [TARGET ...] [--seconds N] [--minimise] [--only FILE]

Needs atheris, which is libFuzzer for Python, and Linux. Each target runs in a process of its own, which is started
again when it dies. Findings (an input for each place in the code and each kind of exception) go to build/fuzz/findings.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "fuzz"
# libFuzzer's own limits end the process; those of file_targets.py are stricter, and are findings like any other
LIMITS = ("-timeout=300", "-rss_limit_mb=4096", "-max_len=200000", "-print_final_stats=1")


def fuzz(target: str, seconds: int) -> None:
    """Runs libFuzzer in this process until the time is over. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["seqcls_fast"]):
        import file_changes
        import file_targets

    seen: set[tuple[str, ...]] = set()
    findings = WORK / "findings" / target
    findings.mkdir(parents=True, exist_ok=True)

    def one_input(data: bytes) -> None:
        try:
            file_targets.run(target, data)
        except Exception as error:
            key = place_of(error)
            if key not in seen:
                seen.add(key)
                (findings / re.sub(r"\W+", "-", "-".join(key))[-80:]).write_bytes(data)
                print(f"== finding in {target}: {' '.join(key)}: {str(error)[:300]!r}", flush=True)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        new = file_changes.changed(target, data, rng) if rng.random() < 0.5 else None
        return atheris.Mutate(data, most) if new is None or len(new) > most else new

    corpus = str(WORK / "corpus" / target)
    crashes = f"-artifact_prefix={findings}/"
    arguments = [sys.argv[0], f"-max_total_time={seconds}", crashes, *LIMITS, corpus]
    atheris.Setup(arguments, one_input, custom_mutator=changed)
    atheris.Fuzz()


def place_of(error: Exception) -> tuple[str, ...]:
    """What tells findings apart: the exception and the last line of ours that it came through, or its message."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "seqcls_fast" in frame.filename]
    words = re.sub(r"\S*/\S+|\d+", "#", str(error))[:60]
    return type(error).__name__, ours[-1] if ours else words


def write_seeds(target: str) -> Path:
    """The inputs that a run starts from: valid files, the committed corpus, and what earlier runs found here."""
    import file_changes
    import file_corpus

    folder = WORK / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    committed = file_corpus.load().get(target, []) if file_corpus.ARCHIVE.exists() else []
    for data in file_changes.seeds_of(target) + committed:
        (folder / file_corpus.name_of(data)).write_bytes(data)
    return folder


def fuzz_in_processes(target: str, seconds: int) -> bool:
    """Fuzzes one target, and starts again after a crash. Returns whether there is a finding."""
    write_seeds(target)
    end, runs, crashed = time.monotonic() + seconds, 0, False
    covered = kept = ""
    log = WORK / f"{target}.log"
    while (left := int(end - time.monotonic())) > 5 or not runs:
        command = [sys.executable, __file__, target, "--worker", "--seconds", str(max(left, 5))]
        with log.open("w") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        words = log.read_text(errors="replace")
        print("\n".join(line for line in words.splitlines() if line.startswith("== finding")))
        if found := re.findall(r"stat::number_of_executed_units: *(\d+)", words):
            runs += int(found[-1])
        if found := re.findall(r"cov: (\d+) .*? corp: (\d+)", words):
            covered, kept = found[-1]
        if status:
            crashed = True
            print(f"== {target}: the process ended with {status}\n{words[-1500:]}")
            if not runs:
                break
    findings = list((WORK / "findings" / target).iterdir())
    print(f"== {target}: {seconds} s, {runs} inputs, coverage {covered}, {kept} inputs kept, {len(findings)} findings")
    return crashed or bool(findings)


def minimise(targets: list[str]) -> None:
    """Writes the committed corpus from what is in build/fuzz/corpus, and says which lines it reaches."""
    import file_corpus
    import file_targets

    corpus = file_corpus.load() if file_corpus.ARCHIVE.exists() else {}
    for target in targets:
        paths = sorted(write_seeds(target).iterdir())
        kept, steps = file_corpus.minimised(target, [path.read_bytes() for path in paths], file_targets.run)
        corpus[target] = kept
        print(f"{target}: {len(kept)} of {len(paths)} inputs, {sum(map(len, kept))} bytes, {len(steps)} steps")
        for file in file_corpus.FILES[target]:
            lines = file_corpus.lines_in_functions(file)
            reached = {line for name, line, _ in steps if name == file} & lines
            print(f"  {file}: {len(reached)} of {len(lines)} lines of functions; not {sorted(lines - reached)}")
    file_corpus.save(corpus)
    print(f"{file_corpus.ARCHIVE.name}: {file_corpus.ARCHIVE.stat().st_size} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="the kinds of files (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--minimise", action="store_true", help="write the committed corpus instead")
    parser.add_argument("--only", type=Path, metavar="FILE", help="run this one input of the target")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        fuzz(chosen.targets[0], chosen.seconds)
    import file_targets

    targets = chosen.targets or list(file_targets.TARGETS)
    if chosen.only:
        file_targets.run(targets[0], chosen.only.read_bytes())
        return 0
    if chosen.minimise:
        minimise(targets)
        return 0
    failed = [target for target in targets if fuzz_in_processes(target, chosen.seconds)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
