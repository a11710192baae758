"""Where latents come from: noise of seeds, paths between key frames, neighbours.

Pure numpy, and the same bits on every machine.
"""
