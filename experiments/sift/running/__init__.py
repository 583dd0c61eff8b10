"""Parts of the commands that run a study.

`study.py` reads a study's YAML, `layout.py` makes its folders, `plan.py` lists its runs, `jobs.py` starts them,
`study_run.py` is one run in a process of its own, `run_files.py` reads and writes runs' files; `runs.py` is a run of
the demo, the sweep and the bench. No command that a user types lives here, and nothing that draws or tabulates: that is
`reporting/`.
"""
