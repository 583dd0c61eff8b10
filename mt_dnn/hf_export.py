"""Thin name: the export, and its command, live in `mt_dnn/huggingface/export.py`."""

from mt_dnn.huggingface.export import main

if __name__ == "__main__":
    main()
