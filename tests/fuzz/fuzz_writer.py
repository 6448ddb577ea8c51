"""Writes to the arguments of calls while they run in another process: `python fuzz_writer.py FILE`.

Race in fuzz_worker.py maps the same file. It has three parts: two words, which are the number of words of integers and
the number of all words; the arguments; and a copy of the arguments with the right values.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time

ROOM = 1 << 22  # bytes for all arguments of a call
BAD = (-(2**63), 2**63 - 1, 2**40 + 1, -(2**40), 2**33, 2**31, -1, 0, 1, 40)


def main(path: str) -> None:
    """Replaces a right word with a wrong one for some microseconds, again and again."""
    rng, parent = random.Random(0), os.getppid()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory, memoryview(memory).cast("q") as words:
        while os.getppid() == parent:
            integers, total = words[0], words[1]
            if not total:
                time.sleep(1e-3)
                continue
            # mostly integers, since a wrong length or id may lead to a wrong address
            place = 2 + rng.randrange(integers if integers and rng.random() < 0.9 else total)
            words[place] = rng.choice(BAD)
            for _ in range(rng.randrange(100)):
                pass
            words[place] = words[place + ROOM // 8]


if __name__ == "__main__":
    main(sys.argv[1])
