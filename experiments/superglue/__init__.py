"""SuperGLUE: task definitions, prepro command, MultiRC's metrics, run script."""
