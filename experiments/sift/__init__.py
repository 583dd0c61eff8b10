"""The study: plain, SMART and SiFT fine-tuning compared.

A file here is a command, `python -m experiments.sift.NAME`. Its parts live in the rooms: `studies/` (what is run, as
YAML), `data/` (public files to token files), `running/` (runs and their files), `attacks/` (PGD, changed letters),
`reporting/` (tables, statistics, figures), `runs/` (finished runs, compressed). Methods and training belong into
`mt_dnn/`; nothing there imports this package.
"""
