"""The only part of the package that knows MMSA: plugins, settings, data loaders, runs, tuning and their reports.

Importing this package has no side effect; MMSA itself is imported where it is first needed, because that takes seconds.
"""
