"""Two hosts on one machine, for tests of torchrun: network namespaces with an address each, joined by a cable.

Making them takes Linux, root and the program `ip`. Where one is missing, two loopback addresses of this machine stand
for the hosts: the processes find each other in the same way, but could also reach each other by other addresses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .processes import ROOT, TESTS

PORT = 29517


@dataclass(frozen=True)
class Host:
    address: str
    device: str  # its network device
    namespace: str | None = None

    def torchrun(self, first: Host, log: IO[str], *words: str, folder: Path) -> subprocess.Popen[str]:
        """torchrun on this host, one of two with a process each; they meet at the address of the first."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        # A host that its own name does not lead to, as here, must be told whether the meeting point is its own.
        meeting = f"is_host={int(self == first)},join_timeout=120,timeout=120"
        command = [
            *inside, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            "--max-restarts=5", "--rdzv-backend=c10d", f"--rdzv-endpoint={first.address}:{PORT}",
            "--rdzv-id=test", f"--rdzv-conf={meeting}", f"--local-addr={self.address}", *words,
        ]  # fmt: skip
        known = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]), "OMP_NUM_THREADS": "1"}
        known["GLOO_SOCKET_IFNAME"] = self.device
        return subprocess.Popen(command, cwd=folder, env=known, stdout=log, stderr=subprocess.STDOUT, text=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    mark = os.getpid()
    spaces, devices = [f"sf{side}{mark}" for side in "ab"], [f"v{side}{mark}" for side in "ab"]
    made = []
    try:
        try:
            for space in spaces:
                ip("netns", "add", space)
                made.append(space)
            cable = ["type", "veth", "peer", "name", devices[1], "netns", spaces[1]]
            ip("link", "add", devices[0], "netns", spaces[0], *cable)
            for number, (space, device) in enumerate(zip(spaces, devices, strict=True), 1):
                ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", device)
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError):
            yield Host("127.0.0.1", "lo"), Host("127.0.0.2", "lo")
        else:
            yield Host("10.77.0.1", devices[0], spaces[0]), Host("10.77.0.2", devices[1], spaces[1])
    finally:
        for space in made:  # the devices go with them
            ip("netns", "del", space)
