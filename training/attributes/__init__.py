"""Attribute vectors: directions in latent space that add what a table or the classes say, each held to a test.

command -> table (who has what) -> study -> directions, probe, edits -> record (manifest and card)
"""
