"""Tests of the command line. A package, so that its conftest.py and that of tests/ have names of their own."""
