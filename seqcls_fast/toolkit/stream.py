"""``seqcls_fast.toolkit.stream.Stream``: the public name of :class:`~seqcls_fast.toolkit.data.stream.Stream`."""

from .data.stream import Stream as Stream
