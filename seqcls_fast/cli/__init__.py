"""The command line: one file for each command. Libraries are imported inside functions, so that --help need not wait
for them; nothing else of the package imports from here."""
