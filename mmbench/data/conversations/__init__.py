"""Conversations: features of every utterance in pickles, made into rows that are split by dialogue.

``layouts`` reads the three forms in which people have such files, ``folders`` the features of the
third; ``store`` keeps the rows; ``dataset`` is what the datasets are made of.
"""
