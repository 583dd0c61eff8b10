"""Thin name: the export, and its command, live in `mt_dnn/export/export.py`."""

from mt_dnn.export.export import main

if __name__ == "__main__":
    main()
