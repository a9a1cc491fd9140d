"""Scored sentences with features of text, sound and face over time: CMU-MOSI and CMU-MOSEI."""
