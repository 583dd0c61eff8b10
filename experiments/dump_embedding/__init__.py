"""A command that writes an encoder's hidden states for texts, in MT-DNN's format."""
