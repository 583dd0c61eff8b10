"""SciTail and SNLI with shares of their training sets: task definitions, prepro command, run scripts."""
