"""`python -m benchmarks.gpu`: builds, checks and measures the CUDA part on a machine with a GPU.

The checks take their cases, tensors and tolerances from tests/support, which is made importable here and nowhere else.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
