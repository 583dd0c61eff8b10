"""What a run leaves behind and goes on from: files in MT-DNN's structure, encoders out of them, resumption."""
