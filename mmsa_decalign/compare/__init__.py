"""Comparing models: a grid of runs, each in a process of its own, one store of results, and honest statistics.

``plan`` says which runs a comparison consists of, ``store`` holds what came out, ``grid`` starts a ``worker`` per run,
``sanity`` are the rows that any model should beat, ``measures`` and ``statistics`` tell what a difference is worth,
``table`` puts it together and ``writing`` shows it. The command line is in mmsa_decalign.commands.
"""
