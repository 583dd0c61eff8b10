"""Data sets and measurements: a folder for each data set, the study (`sift/`), the bench (`bench/`).

A data set's folder has its task definitions (YAML), a prepro command to canonical TSV, and a run script. Files at this
level are shared by the prepro commands. Nothing below this floor (`mt_dnn`, `tasks`, `module`, `data_utils`) imports
from here.
"""
