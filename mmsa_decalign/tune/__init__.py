"""A search for settings with Optuna, scored on the validation split alone.

space.py says what may be drawn, study.py keeps the account of the trials, trial.py does them, search.py runs the
search in this process or in several, worker.py is one of those, result.py is what comes out.
"""
