"""Pictures of a trained model, from a run's folder or from a model folder's graphs: `latentry draw`."""
