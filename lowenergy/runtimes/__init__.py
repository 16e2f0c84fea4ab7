"""From a stored model to something that runs: networks, int8 graphs, ONNX, samplers. Imported where they are used."""
