"""``seqcls_fast.toolkit.stream.Stream``: the public name of :class:`~seqcls_fast.toolkit.data.stream.Stream`."""

from ._extras import need as _need

_need("numpy", "Stream")
from .data.stream import Stream as Stream  # noqa: E402
