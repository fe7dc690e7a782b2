"""Text out of a decoder: the loop, what changes the scores, what stops it. Needs numpy alone.

A `Decoder` is all that the loop knows of a model and of its keys and values.
"""
