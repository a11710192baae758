"""Someone else's encoder and decoder as a model folder of ours, without torch.

graph, external         ONNX in memory, and weights that lie beside it
foreign, batch          a graph that is given: read within bounds, made ready, its batch size freed
options                 what was said of a pair of graphs
images, ranges          what the numbers mean that stand for images
output_names,
latents_fit             what outputs are by their names, and by their shapes
posterior               which outputs say q(z|x), and how
plan                    all of this settled
wrap                    the same graphs between nodes that keep the contract
runtime, parity         the wrapped graphs against the given ones
measured, card, folder  the model folder
"""
