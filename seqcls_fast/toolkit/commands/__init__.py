"""The commands around a model, a file for each kind; every import of a library stands inside a function."""
