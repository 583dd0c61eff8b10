"""The settings of a run: flags with their checks and help, presets, configuration files, and settings in words.

Nothing here imports a model or reads data: `train.py --help` and a mistake in a flag must answer at once.
"""
