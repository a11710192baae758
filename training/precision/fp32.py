"""The graphs of a model as they are computed everywhere: in float32."""

from __future__ import annotations

from latentry import graph_notes
from latentry import manifest as manifests
from latentry.manifest import Manifest
from training import graphs, prior_graphs
from training.graphs import DecoderGraph, EncoderGraph
from training.prior_graphs import PriorGraphs


def graph_files(
    encoder: EncoderGraph, decoder: DecoderGraph, density: PriorGraphs | None, about: Manifest
) -> dict[str, bytes]:
    """The contents of all graphs of the model folder that `about` is of."""
    return {
        manifests.ENCODER_FILE: graphs.export_encoder(
            encoder, about.image_shape, graph_notes.metadata(about, "encoder")
        ),
        manifests.DECODER_FILE: graphs.export_decoder(
            decoder, about.latent_dim, graph_notes.metadata(about, "decoder")
        ),
        **({} if density is None else prior_graphs.export(density, about)),
    }
