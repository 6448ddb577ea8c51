"""How good predictions are: metrics, warnings, calibration, and the pages and pictures that show them."""

from .._extras import need as _need

_need("numpy", "evaluate_predictions")  # which every module here imports
