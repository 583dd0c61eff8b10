"""Parts of the commands that run a study: its definition, its runs, and their files.

`study.py` reads a study's YAML; `study_run.py` is one run of it, in a process of its own; `run_files.py` reads and
writes runs' files; `runs.py` is a run of the demo, the sweep and the bench. No command that a user types lives here,
and nothing that draws or tabulates: that is `reporting/`.
"""
