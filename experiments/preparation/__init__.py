"""From texts to token files: the command prepro_std.py, and tables of your own as tasks (`--from`).

Public data sets have folders of their own next to this one; formats of files are read in `data_utils/`.
"""
