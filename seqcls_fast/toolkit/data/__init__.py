"""Reads files, lists and arrays, and makes batches of encoded sequences and labels of them."""
