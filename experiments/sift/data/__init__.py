"""The study's data: public files to canonical TSV and token files, splits, duplicates.

Preparations of whole benchmarks for training (GLUE, SuperGLUE, …) live in `experiments/<data set>/`.
"""
