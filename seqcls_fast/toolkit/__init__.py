"""Classifiers on top of the layers, from raw texts or series, with training, evaluation and saving. The libraries that
it needs are the ``[toolkit]`` extra; nothing here is imported before it is used."""
