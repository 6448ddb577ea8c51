"""Writes into the arguments of calls while these run, from a process of its own: `python fuzz_writer.py FILE`.

The file is what Race of fuzz_worker.py maps: two words, which say how many words hold integers and how many there are;
the arguments; what these hold between two writes.
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
    """Puts a wrong word in the place of a right one for some microseconds, again and again."""
    rng, parent = random.Random(0), os.getppid()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory, memoryview(memory).cast("q") as words:
        while os.getppid() == parent:
            integers, total = words[0], words[1]
            if not total:
                time.sleep(1e-3)
                continue
            # mostly integers, which say where something is
            place = 2 + rng.randrange(integers if integers and rng.random() < 0.9 else total)
            words[place] = rng.choice(BAD)
            for _ in range(rng.randrange(100)):
                pass
            words[place] = words[place + ROOM // 8]


if __name__ == "__main__":
    main(sys.argv[1])
