"""What makes the site of docs/ out of its pages: `make docs`."""
