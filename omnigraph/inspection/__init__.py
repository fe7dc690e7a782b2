"""Views of models, graphs and artifacts, for a person."""
