"""From files, lists and arrays to batches of numbered sequences and labels."""
