"""The commands of ``mmsa``: a module each.

``add(commands)`` makes the command's parser, ``run(arguments)`` calls the package and shows the result. Thin: no logic
beyond that, and whatever takes long to import is imported inside ``run``, so that ``--help`` and mistakes are answered
at once. What commands share is in parsing.py; ``cli.py`` puts them together.
"""
