"""Where latents come from: noise of seeds, paths between key frames, neighbours. Pure numpy: the same bits everywhere."""
