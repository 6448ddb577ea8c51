"""The command line, a file for each command. Libraries are imported inside functions, so that --help does not wait."""
