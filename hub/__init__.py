"""What export.py is made of: a model as a folder for transformers."""
