"""Files on disk: written whole or not at all, locked, checked, read within limits.

Nothing here knows what a file means: formats are read in the folder above.
"""
